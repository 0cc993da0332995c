"""The parts of Ray that are not public are where training.ray_internals expects them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import version


def moved(what: str) -> str:
    from training.ray_internals import CHECKED_VERSION

    return f"Ray {version('ray')} is unlike {CHECKED_VERSION}: adapt training/ray_internals.py ({what})"


def test_ray_keeps_the_hook_that_hands_over_the_controller(ray_prepared: None) -> None:
    from training.ray_internals import DataParallelTrainer, StoppableTrainer

    hook = getattr(DataParallelTrainer, "_register_sigint_handler", None)
    assert hook is not None, moved("DataParallelTrainer._register_sigint_handler is gone")
    parameters = list(inspect.signature(hook).parameters)
    assert parameters == ["self", "controller"], moved(f"_register_sigint_handler now takes {parameters}")
    callers = [
        name
        for name, function in inspect.getmembers(DataParallelTrainer, inspect.isfunction)
        if name != hook.__name__ and "_register_sigint_handler(controller)" in inspect.getsource(function)
    ]
    assert callers, moved("nothing calls _register_sigint_handler with the controller")
    assert StoppableTrainer._register_sigint_handler is not hook


def test_ray_sets_up_process_groups_with_the_same_parts(ray_prepared: None) -> None:
    """Those of TorchConfig; a change of what it does with them shows here as well."""
    from ray.train.torch import config

    parts = {
        "_set_torch_distributed_env_vars": [],
        "_setup_torch_process_group": ["backend", "world_rank", "world_size", "init_method", "timeout_s"],
        "_shutdown_torch": ["destroy_process_group"],
    }
    for name, expected in parts.items():
        parameters = list(inspect.signature(getattr(config, name, lambda gone: None)).parameters)
        assert parameters == expected, moved(f"{name} now takes {parameters}")
        assert inspect.getsource(config._TorchBackend).count(name) > 0, moved(f"TorchConfig does not use {name}")
    assert config._TorchBackend.share_cuda_visible_devices, moved("workers of a node no longer see each other's GPUs")
    assert config.TorchConfig().train_func_context is config.TorchConfigContextManager, moved("train_func_context")


def test_ray_starts_the_actors_that_are_left_out_by_callbacks(ray_prepared: None) -> None:
    from ray.train.v2._internal.execution.callback import WorkerGroupCallback
    from ray.train.v2._internal.execution.worker_group import worker_group

    from training.ray_internals import DataParallelTrainer, DatasetsCallback, PlacementGroupCleanerCallback

    source = inspect.getsource(DataParallelTrainer._create_default_callbacks)
    for callback in (DatasetsCallback, PlacementGroupCleanerCallback):
        assert f"{callback.__name__}(" in source, moved(f"{callback.__name__} is not among the callbacks")
    parameters = list(inspect.signature(WorkerGroupCallback.after_worker_group_start).parameters)
    assert parameters == ["self", "worker_group"], moved(f"after_worker_group_start now takes {parameters}")
    state = inspect.signature(worker_group.WorkerGroupState).parameters
    assert "placement_group_handle" in state, moved("WorkerGroupState.placement_group_handle")
    assert hasattr(worker_group.WorkerGroup, "get_worker_group_state"), moved("get_worker_group_state")


def test_driver_and_controller_start_without_torch() -> None:
    """Ray's controller loads what the driver gives it: these modules, and what they import."""
    code = "import sys, training.ray_internals; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout == "False\n"


def test_ray_keeps_the_table_of_draining_nodes(ray_prepared: None) -> None:
    from ray._private.state import state

    assert callable(getattr(state, "get_draining_nodes", None)), moved("state.get_draining_nodes is gone")


def test_ray_keeps_the_callback_that_hears_of_every_failure(ray_prepared: None) -> None:
    from ray.train.v2._internal.execution.callback import ControllerCallback
    from ray.train.v2._internal.execution.controller.controller import TrainController

    name = "before_controller_execute_failure_decision"
    hook = getattr(ControllerCallback, name, None)
    assert hook is not None, moved(f"ControllerCallback.{name} is gone")
    parameters = list(inspect.signature(hook).parameters)
    assert parameters == ["self", "failure_decision"], moved(f"{name} now takes {parameters}")
    assert name in inspect.getsource(TrainController), moved(f"nothing calls {name}")


def test_ray_keeps_what_a_controller_asks_for_under_the_id_of_its_run(ray_prepared: None) -> None:
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as coordinator
    from ray.train.v2._internal.execution.context import TrainRunContext
    from ray.train.v2._internal.execution.scaling_policy import ScalingPolicy

    from training.ray_internals import RESERVATIONS

    source = inspect.getsource(coordinator.get_or_create_autoscaling_coordinator)
    for key, value in RESERVATIONS.items():
        assert f'{key}="{value}"' in source, moved(f"the actor of reservations has another {key}")
    parameters = list(inspect.signature(coordinator._AutoscalingCoordinatorActor.cancel_request).parameters)
    traced = "_ray_trace_ctx"  # Ray adds it to the methods of a class that has become an actor in this process
    assert [name for name in parameters if name != traced] == ["self", "requester_id"], moved(
        f"cancel_request now takes {parameters}"
    )
    assert 'f"train-{train_run_context.run_id}"' in inspect.getsource(ScalingPolicy), moved("the name of a request")
    assert "run_id" in TrainRunContext.__dataclass_fields__, moved("TrainRunContext.run_id")
