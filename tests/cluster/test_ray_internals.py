"""The parts of Ray that are not public are where cluster.ray_internals expects them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import cluster.ray_internals as ours

ROOT = Path(__file__).parents[2]


def moved(what: str) -> str:
    return f"Ray {version('ray')} is unlike {ours.CHECKED_VERSION}: adapt cluster/ray_internals.py ({what})"


def parameters(function: Callable[..., Any] | None) -> list[str]:
    return list(inspect.signature(function).parameters) if function else []


def test_ray_prints_lines_of_the_raylet_where_they_are_silenced(ray_prepared: None) -> None:
    import ray._private.worker as worker

    names = parameters(getattr(worker, "print_to_stdstream", None))
    assert names == ["data", "ignore_prefix"], moved(f"print_to_stdstream now takes {names}")
    uses = inspect.getsource(worker).count("print_to_stdstream(") - 1  # its definition
    assert uses > 0, moved("nothing calls print_to_stdstream")


def test_ray_keeps_the_processes_of_its_own_node(ray_prepared: None) -> None:
    import ray._private.worker as worker
    from ray._private.node import Node

    assert hasattr(worker, "_global_node"), moved("_global_node is gone")
    assert hasattr(Node, "all_processes") or "self.all_processes" in inspect.getsource(Node), moved("all_processes")
    names = parameters(getattr(Node, "kill_all_processes", None))
    assert {"check_alive", "allow_graceful"} <= set(names), moved(f"kill_all_processes now takes {names}")


def test_ray_data_calls_back_at_each_step(ray_prepared: None) -> None:
    from ray.data import DataContext

    names = parameters(getattr(ours.execution_callback(), "on_execution_step", None))
    assert names == ["self", "executor"], moved(f"on_execution_step now takes {names}")
    fields = DataContext.__dataclass_fields__
    assert "custom_execution_callback_classes" in fields, moved("custom_execution_callback_classes is gone")


def test_private_parts_of_ray_are_used_nowhere_else() -> None:
    users = {
        str(path.relative_to(ROOT))
        for folder in ("model", "labeling", "training", "cluster", "pipelines")
        for path in (ROOT / folder).rglob("*.py")
        if "ray._private" in (text := path.read_text()) or "ray.data._internal" in text
    }
    assert users == {"cluster/ray_internals.py", "training/ray_internals.py"}
