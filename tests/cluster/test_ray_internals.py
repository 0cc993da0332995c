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


def test_ray_can_start_without_its_helpers(ray_prepared: None) -> None:
    import ray._private.services as services
    import ray._private.worker as worker
    from ray._private.node import Node
    from ray._private.parameter import RayParams

    assert {"no_monitor", "include_log_monitor", "setup_worker_path"} <= set(parameters(RayParams)), moved("RayParams")
    assert "ray._private.parameter.RayParams(" in inspect.getsource(worker), moved("RayParams is taken from elsewhere")
    names = parameters(getattr(Node, "start_api_server", None))
    assert names == ["self", "include_dashboard", "raise_on_failure"], moved(f"start_api_server now takes {names}")
    source = inspect.getsource(services.start_raylet)
    asked = "if ray._private.utils.get_dashboard_dependency_error() is not None:"
    assert asked in source and '.append("--minimal")' in source, moved("the dashboard's agent")


def test_ray_data_asks_its_helpers_in_one_place(ray_prepared: None) -> None:
    import ray.data._internal.cluster_autoscaler.rate_based_cluster_autoscaler as autoscaler
    import ray.data._internal.stats as stats
    from ray.data._internal.cluster_autoscaler import DEFAULT_CLUSTER_AUTOSCALER_VERSION, AutoscalingCoordinator

    assert DEFAULT_CLUSTER_AUTOSCALER_VERSION == "RATE_BASED", moved("another autoscaler of clusters")
    assert "DefaultAutoscalingCoordinator(" in inspect.getsource(autoscaler), moved("DefaultAutoscalingCoordinator")
    asked = set(AutoscalingCoordinator.__abstractmethods__)
    assert asked == {"request_resources", "cancel_request", "get_reserved_resources"}, moved(f"it is asked {asked}")
    methods = {name for name, method in vars(stats._StatsManager).items() if isinstance(method, staticmethod)}
    silent = {"register_dataset_to_stats_actor", "update_execution_metrics", "update_iteration_metrics"}
    known = silent | {"gen_dataset_id_from_stats_actor", "_aggregate_per_node_metrics"}
    assert methods == known, moved(f"_StatsManager has {methods}")


def test_ray_data_keeps_the_nodes_of_its_processes_in_one_place(ray_prepared: None) -> None:
    import ray.data._internal.execution.operators.actor_pool_map_operator as actor_pool
    import ray.data._internal.utils.cached_ray_internals as locations
    from ray.data._internal.execution.node_trackers import actor_location

    for module in (actor_pool, locations):
        assert "get_or_create_actor_location_tracker()" in inspect.getsource(module), moved(f"{module.__name__}")
    tracker = actor_location.ActorLocationTracker.__ray_metadata__.modified_class
    methods = {name for name, method in vars(tracker).items() if inspect.isfunction(method) and name[:2] != "__"}
    assert {name for name in methods if "ray" not in name} == {"update_actor_location", "get_actor_locations"}, moved(
        f"the tracker of locations has {methods}"
    )
    assert methods >= {name for name in vars(ours._OneNode) if not name.startswith("_")}


def test_private_parts_of_ray_are_used_nowhere_else() -> None:
    users = {
        str(path.relative_to(ROOT))
        for folder in ("model", "labeling", "training", "cluster", "pipelines")
        for path in (ROOT / folder).rglob("*.py")
        if "ray._private" in (text := path.read_text()) or "ray.data._internal" in text
    }
    assert users == {"cluster/ray_internals.py", "training/ray_internals.py"}
