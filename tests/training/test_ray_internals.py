"""The parts of Ray that are not public are where training.ray_internals expects them."""

from __future__ import annotations

import inspect

import ray

from training.ray_internals import CHECKED_VERSION, StoppableTrainer, TorchTrainer

MOVED = f"Ray {ray.__version__} is unlike {CHECKED_VERSION}: adapt training/ray_internals.py ({{}})"


def test_ray_keeps_the_hook_that_hands_over_the_controller() -> None:
    hook = getattr(TorchTrainer, "_register_sigint_handler", None)
    assert hook is not None, MOVED.format("TorchTrainer._register_sigint_handler is gone")
    parameters = list(inspect.signature(hook).parameters)
    assert parameters == ["self", "controller"], MOVED.format(f"_register_sigint_handler now takes {parameters}")
    callers = [
        name
        for name, function in inspect.getmembers(TorchTrainer, inspect.isfunction)
        if name != hook.__name__ and "_register_sigint_handler(controller)" in inspect.getsource(function)
    ]
    assert callers, MOVED.format("nothing calls _register_sigint_handler with the controller")
    assert StoppableTrainer._register_sigint_handler is not hook


def test_ray_keeps_the_table_of_draining_nodes() -> None:
    from ray._private.state import state

    assert callable(getattr(state, "get_draining_nodes", None)), MOVED.format("state.get_draining_nodes is gone")
