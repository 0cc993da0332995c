"""The parts of Ray that are not public and that a training needs, checked with Ray 2.60.0.

They are used in this module only, so that a new version of Ray concerns one place (and `cluster.ray_internals`, which a
training does not know); tests/training/test_ray_internals.py fails for those that have changed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import ray
from ray._private.state import state
from ray.exceptions import GetTimeoutError
from ray.train import UserCallback
from ray.train._internal.utils import get_address_and_port
from ray.train.backend import Backend, BackendConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback, WorkerGroupCallback
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.util.placement_group import remove_placement_group

from model.inputs import one_line

CHECKED_VERSION = "2.60.0"
RESERVATIONS = {"name": "AutoscalingCoordinator", "namespace": "AutoscalingCoordinator"}  # Ray's actor
_LEAVE_SECONDS = 30.0  # that workers may take to leave their process group


def draining_nodes() -> set[str]:
    """Ids of the nodes that are being removed. Ray Train asks in this way too; the public table of nodes lacks it."""
    return set(state.get_draining_nodes())


@dataclass
class ProcessGroup(BackendConfig):
    """torch.distributed among the workers, as Ray's own TorchConfig sets it up: with parts of it, on the workers alone.

    TorchConfig imports torch wherever it is known. The driver and Ray's controller would each take two seconds for it,
    one after the other, before the workers start. backend: of torch.distributed, as in "gloo".
    """

    backend: str

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets it up."""
        return _WorkersOnly

    @property
    def train_func_context(self) -> Callable[[], AbstractContextManager[None]]:
        """What the training runs in, in its thread of a worker."""
        return _own_device

    def to_dict(self) -> dict[str, Any]:
        """For Ray's own records."""
        return {"backend": self.backend}


class _WorkersOnly(Backend):
    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Join all workers, called by the controller."""
        address, port = worker_group.execute_single(0, get_address_and_port)
        count = len(worker_group)
        joined = [
            worker_group.execute_single_async(rank, _join, address, port, backend_config.backend, rank, count)
            for rank in range(count)
        ]
        ray.get(joined)

    def on_shutdown(self, worker_group: Any, backend_config: ProcessGroup) -> None:
        """Let the workers go; one that does not answer is not waited for."""
        left = worker_group.execute_async(_leave, len(worker_group) > 1)
        try:
            ray.get(left, timeout=_LEAVE_SECONDS)
        except GetTimeoutError:
            return


def _join(address: str, port: int, backend: str, rank: int, count: int) -> None:
    """Become one of the processes that meet at an address."""
    from ray.train.torch.config import TorchConfig, _set_torch_distributed_env_vars, _setup_torch_process_group

    os.environ |= {"MASTER_ADDR": address, "MASTER_PORT": str(port)}
    _set_torch_distributed_env_vars()
    _setup_torch_process_group(backend, rank, count, "env://", TorchConfig.timeout_s)


@contextmanager
def _own_device() -> Iterator[None]:
    """Within, the worker's GPU is torch's default."""
    from ray.train.torch.config import TorchConfigContextManager

    with TorchConfigContextManager():
        yield


def _leave(destroys_group: bool) -> None:
    from ray.train.torch.config import _shutdown_torch

    _shutdown_torch(destroys_group)


class _PlacementTold(WorkerGroupCallback):
    """Tells the run's coordinator which resources Ray holds for the workers."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def after_worker_group_start(self, worker_group: Any) -> None:
        """Called by the controller when all workers are there."""
        handle = worker_group.get_worker_group_state().placement_group_handle
        ray.get(self._coordinator.hold_placement_group.remote(handle.placement_group))


class FailureReporter(ControllerCallback):
    """Tells a run's coordinator of every group of workers that failed, also of one that never began to train.

    The public callback, below, hears of those alone that raised something while they trained.
    """

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def before_controller_execute_failure_decision(self, failure_decision: Any) -> None:
        """Ray calls it before it starts the workers again, or gives up."""
        self._coordinator.end_group.remote()


class ReasonReporter(UserCallback):
    """Tells a run's coordinator why its workers fail."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Ray calls it with the errors by rank. One that died explains those of the others, who waited for it."""

        def raised(item: tuple[int, Exception]) -> bool:
            return not isinstance(item[1], WorkerHealthCheckFailedError)

        rank, error = min(worker_exceptions.items(), key=lambda item: (raised(item), item[0]))
        lines = [line for line in str(error).splitlines() if line.strip()]  # the last one says it, also of a traceback
        self._coordinator.explain.remote(f"worker {rank}: {one_line(lines[-1] if lines else error, 300)}")


class StoppableTrainer(DataParallelTrainer):
    """Leaves Ctrl-C to the caller, and can be ended at any time.

    Ray's own handler of Ctrl-C asks the controller to abort, which does not answer while its workers wait for
    resources. Two actors of Ray's are left out, for which the workers would wait: one divides Ray Data's datasets among
    workers, which take none here; the other gives resources back after the controller has died, which `end` does.
    """

    ended = False
    _controller: Any = None

    def __init__(self, coordinator: Any, run: str, **arguments: Any) -> None:
        """coordinator: the run's (training.coordinator); run: its address."""
        super().__init__(**arguments)
        self._coordinator = coordinator
        # A driver that is killed cancels nothing, and Ray keeps what its controller asked for, for three minutes. The
        # run's next controller asks under the same name, and so in its place.
        name = f"{ray.get_runtime_context().get_node_id()} {run}"  # a folder of the same name may lie on another node
        object.__setattr__(self.train_run_context, "run_id", blake2b(name.encode(), digest_size=16).hexdigest())

    def _create_default_callbacks(self) -> list[Any]:
        left_out = (DatasetsCallback, PlacementGroupCleanerCallback)
        callbacks = [one for one in super()._create_default_callbacks() if not isinstance(one, left_out)]
        return [*callbacks, _PlacementTold(self._coordinator)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """Keep the controller. Ray would install its handler of Ctrl-C here; it calls this in the main thread only."""
        self._controller = controller
        if self.ended:
            ray.kill(controller)

    def end(self) -> None:
        """End the controller and with it all workers: `fit` raises ActorDiedError."""
        self.ended = True
        if self._controller is not None:
            ray.kill(self._controller)
            with suppress(Exception):  # the coordinator is gone as well, as where Ray is
                if group := ray.get(self._coordinator.placement_group.remote(), timeout=_LEAVE_SECONDS):
                    remove_placement_group(group)
            # Ray would keep what the controller asked for, for three minutes, and elastic workers would wait so long.
            with suppress(ValueError):  # nothing has been asked for
                reserved = ray.get_actor(**RESERVATIONS)
                cancelled = reserved.cancel_request.remote(f"train-{self.train_run_context.run_id}")
                with suppress(GetTimeoutError):
                    ray.get(cancelled, timeout=_LEAVE_SECONDS)  # the next controller asks under the same name
