"""The parts of Ray that are not public and that a training needs, checked with Ray 2.60.0.

They are used in this module only, so that a new version of Ray concerns one place (and `cluster.ray_internals`, which a
training does not know); tests/training/test_ray_internals.py fails for those that have changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ray
from ray._private.state import state
from ray.train import UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.callback import ControllerCallback

from model.inputs import one_line

CHECKED_VERSION = "2.60.0"


def draining_nodes() -> set[str]:
    """Ids of the nodes that are being removed. Ray Train asks in this way too; the public table of nodes lacks it."""
    return set(state.get_draining_nodes())


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


class StoppableTrainer(TorchTrainer):
    """Leaves Ctrl-C to the caller, and can be ended at any time.

    Ray's own handler of Ctrl-C asks the controller to abort, which does not answer while its workers wait for
    resources.
    """

    ended = False
    _controller: Any = None

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
