"""The coordinator: how workers are told to stop, and when nobody would notice."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from training.config import load_config
from training.coordinator import ControlRequest, Coordinator, StepAnnouncer, monitor


@pytest.mark.usefixtures("ray_cluster")
def test_lost_coordinator_aborts_the_training(small_config: dict[str, Any]) -> None:
    """Otherwise no worker would notice a stop, and the workers would restart for ever."""
    import ray

    coordinator, aborted = ray.remote(num_cpus=0)(Coordinator).remote(), threading.Event()
    ray.kill(coordinator)
    config = load_config("debug", small_config)
    with (
        pytest.raises(RuntimeError, match="cannot be monitored any more"),
        monitor(coordinator, config, print, ControlRequest, [ControlRequest()], aborted.set),
    ):
        assert aborted.wait(60)


@pytest.mark.usefixtures("ray_cluster")
def test_trainer_that_is_ended_gives_back_what_its_workers_had() -> None:
    """Ray keeps it for them until the driver ends: the next workers of the run would wait for it."""
    import ray
    from ray.util.placement_group import placement_group, placement_group_table

    from training.ray_internals import StoppableTrainer

    coordinator, controller = (ray.remote(num_cpus=0)(Coordinator).remote() for _ in range(2))
    group = placement_group([{"CPU": 0.01}])
    ray.get([group.ready(), coordinator.hold_placement_group.remote(group)])
    trainer = StoppableTrainer(coordinator, "runs/a", train_loop_per_worker=lambda: None)
    trainer._controller = controller  # without a training
    trainer.end()
    assert placement_group_table(group)["state"] == "REMOVED"
    ray.kill(coordinator)


@pytest.mark.usefixtures("ray_cluster")
def test_next_trainer_of_a_run_takes_the_place_of_one_whose_driver_was_killed() -> None:
    """Of what Ray keeps for it; it would wait three minutes where that is all there is."""
    from ray.data._internal.cluster_autoscaler import default_autoscaling_coordinator as ray_coordinator

    from training.ray_internals import StoppableTrainer

    nodes = [{"NodeID": "a", "Alive": True, "Resources": {"CPU": 2.0}}]
    reserved = ray_coordinator._AutoscalingCoordinatorActor(
        send_resources_request=lambda *asked, **named: None, get_cluster_nodes=lambda: nodes
    )

    def ask(run: str) -> dict[str, Any]:
        """What a new trainer's controller gets of the two CPUs that it asks for."""
        trainer = StoppableTrainer(None, run, train_loop_per_worker=lambda: None)
        name = f"train-{trainer.train_run_context.run_id}"
        reserved.request_resources(name, [{"CPU": 2.0}], 180.0)
        return dict(reserved.get_reserved_resources(name))

    assert ask("runs/a") == ask("runs/a") == {"a": {"CPU": 2.0}}
    assert not ask("runs/b")


def test_coordinator_tells_stepping_workers_from_unresponsive_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("training.coordinator.time.monotonic", lambda: now)
    coordinator = Coordinator()
    assert coordinator.unresponsive()
    for step, moment in ((0, 10.0), (0, 11.0), (1, 20.0), (1, 21.0)):  # of two workers
        now = moment
        assert coordinator.begin_step(step) is None
    assert not coordinator.unresponsive()
    now = 21.0 + 60 + 89
    assert not coordinator.unresponsive()  # a step took nine seconds
    now += 2
    assert coordinator.unresponsive()
    coordinator.begin_long_operation()  # a checkpoint takes longer than any step
    assert not coordinator.unresponsive()
    now += 1801
    assert coordinator.unresponsive()
    coordinator.request_stop()
    assert coordinator.begin_step(2) == 4
    now += 1e6
    assert not coordinator.unresponsive()  # the workers write their checkpoint


@pytest.mark.usefixtures("ray_cluster")
def test_workers_at_different_steps_stop_before_the_same_step() -> None:
    import ray

    coordinator = ray.remote(num_cpus=0)(Coordinator).remote()
    fast, slow = StepAnnouncer(coordinator), StepAnnouncer(coordinator)
    assert not any(fast.stops_before(step) for step in range(2))
    assert not slow.stops_before(0)
    ray.get(coordinator.request_stop.remote())
    stops = [
        next(step for step in range(first, 20) if worker.stops_before(step)) for worker, first in ((slow, 1), (fast, 2))
    ]
    assert stops[0] == stops[1] == 3
