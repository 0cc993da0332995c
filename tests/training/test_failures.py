"""Failures that repeat at the same step end a run, whatever it allows; others do not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faulty_training
import pytest

from labeling.dataset import open_store
from model.inputs import InputError
from training.checkpoint import whole_checkpoints
from training.config import load_config
from training.coordinator import Coordinator
from training.failures import FailureWatch
from training.run import run_training


def checkpoint(run: Path, step: int) -> None:
    folder = run / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text("{}")


@pytest.fixture
def watch(tmp_path: Path) -> FailureWatch:
    return FailureWatch(open_store(str(tmp_path)))


def verdicts(watch: FailureWatch, *steps: int | None) -> list[str | None]:
    return [watch.verdict(watch.add(step, "worker 1: aborted")) for step in steps]


@pytest.mark.parametrize("steps", [(7, 7, 7), (None, None, None), (7, 8, 7)])
def test_third_failure_at_the_same_step_ends_the_run(
    watch: FailureWatch, steps: tuple[int | None, ...], tmp_path: Path
) -> None:
    first, second, third = verdicts(watch, *steps)
    assert first is None and second is None and third is not None
    place = "before their first step" if steps[0] is None else "at step 7"
    assert third == (
        f"{tmp_path}: its workers failed 3 times {place} and it has no checkpoint yet, so it is not tried again "
        "(worker 1: aborted); mend that, and the same command goes on"
    )


@pytest.mark.parametrize("steps", [(7, 40, 7, 40, 7), (7, 7, None, 7, 7), (7, 17, 27, 37)])
def test_failures_at_other_steps_do_not_end_the_run(watch: FailureWatch, steps: tuple[int | None, ...]) -> None:
    assert not any(verdicts(watch, *steps))


def test_new_checkpoint_between_begins_the_count_again(watch: FailureWatch, tmp_path: Path) -> None:
    checkpoint(tmp_path, 500)
    assert not any(verdicts(watch, 507, 507))
    checkpoint(tmp_path, 505)
    said = verdicts(watch, 507, 507, 507)
    assert said[:2] == [None, None] and f"since {tmp_path}/checkpoints/step-000505" in str(said[2])


def test_coordinator_tells_the_step_that_a_group_reached() -> None:
    coordinator = Coordinator()
    coordinator.begin_step(4)
    coordinator.begin_step(3)  # of a slower worker
    coordinator.explain("worker 1: aborted")
    coordinator.end_group()
    coordinator.end_group()  # the next one never began
    assert coordinator.pop_events() == [
        {"event": "failure", "step": 5, "reason": "worker 1: aborted"},
        {"event": "failure", "step": None, "reason": ""},
    ]
    assert coordinator.unresponsive()


@pytest.mark.usefixtures("ray_cluster")
def test_worker_that_aborts_at_the_same_step_is_not_started_for_ever(
    small_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.run._train_worker", faulty_training.train_until_it_aborts)
    settings = {"steps": 8, "checkpoints": {"every": 2}, "workers": {"count": 1, "max_failures": -1}}
    config = load_config("debug", {**small_config, **settings})
    events: list[dict[str, Any]] = []
    run = tmp_path / "run"
    with pytest.raises(InputError, match=rf"its workers failed 3 times at step {faulty_training.STEP} since") as error:
        run_training(config, str(run), events.append)
    assert "step-000004" in str(error.value) and "worker 0: " in str(error.value) and "\n" not in str(error.value)
    assert whole_checkpoints(open_store(run))[-1] == 4
    failures = [event for event in events if event["event"] == "failure"]
    assert [(event["step"], event["times"]) for event in failures] == [(5, 1), (5, 2), (5, 3)]
