"""The parts of Ray that are not public are where training.ray_internals expects them."""

from __future__ import annotations

import inspect
from importlib.metadata import version


def moved(what: str) -> str:
    from training.ray_internals import CHECKED_VERSION

    return f"Ray {version('ray')} is unlike {CHECKED_VERSION}: adapt training/ray_internals.py ({what})"


def test_ray_keeps_the_hook_that_hands_over_the_controller(ray_prepared: None) -> None:
    from training.ray_internals import StoppableTrainer, TorchTrainer

    hook = getattr(TorchTrainer, "_register_sigint_handler", None)
    assert hook is not None, moved("TorchTrainer._register_sigint_handler is gone")
    parameters = list(inspect.signature(hook).parameters)
    assert parameters == ["self", "controller"], moved(f"_register_sigint_handler now takes {parameters}")
    callers = [
        name
        for name, function in inspect.getmembers(TorchTrainer, inspect.isfunction)
        if name != hook.__name__ and "_register_sigint_handler(controller)" in inspect.getsource(function)
    ]
    assert callers, moved("nothing calls _register_sigint_handler with the controller")
    assert StoppableTrainer._register_sigint_handler is not hook


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
