"""Job arrays: how a labeling job is cut, what its tasks say together, and what is refused."""

from __future__ import annotations

import itertools
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from labeling.dataset import GrowingText
from model.inputs import InputError
from pipelines.jobs.arrays import state_of_tasks, task_range
from pipelines.jobs.attempt import Attempt, AttemptState
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.log import log_lines
from pipelines.jobs.resolved import resolve_job
from pipelines.jobs.run import execute
from pipelines.jobs.specification import parse_specification
from pipelines.jobs.status import job_status
from pipelines.jobs.submit import plan_job


def attempt(folder: Path, tasks: int = 3, number: int = 1) -> Attempt:
    target = {"type": "slurm", "cpus_per_node": 2}
    return Attempt("label-0a", number, str(folder), "slurm", target, 0.0, "me@here", tasks, (0, 7))


def state(phase: str, number: int = 1, reason: str = "", **values: Any) -> AttemptState:
    return AttemptState(number, phase, "elsewhere", 1, 0.0, time.time(), reason, **values)


def test_ranges_cover_all_shards_once() -> None:
    for shards, tasks in (((0, 7), 3), ((5, 6), 1), ((10, 1010), 64), ((3, 6), 3)):
        ranges = [task_range(shards, tasks, task) for task in range(tasks)]
        assert [ranges[0][0], ranges[-1][1]] == list(shards)
        assert all(before[1] == after[0] for before, after in itertools.pairwise(ranges))
        assert {end - first for first, end in ranges} <= {
            (shards[1] - shards[0]) // tasks,
            (shards[1] - shards[0]) // tasks + 1,
        }


@pytest.mark.parametrize(
    ("states", "phase", "reason"),
    [
        ([None, state("running"), None], "running", ""),
        ([state("succeeded"), None, None], "running", ""),
        ([state("succeeded"), state("interrupted"), None], "interrupted", ""),
        ([state("succeeded")] * 3, "succeeded", ""),
        ([state("succeeded"), state("failed", reason="bad"), state("failed", reason="worse")], "failed",
         "task 1: bad (and 1 more of 3 tasks failed)"),
        ([state("failed", reason="bad"), state("running"), None], "running", ""),
        ([state("succeeded"), state("stopped"), state("succeeded")], "stopped", ""),
    ],
)  # fmt: skip
def test_tasks_say_together_how_the_job_stands(states: list[Any], phase: str, reason: str) -> None:
    told = state_of_tasks(attempt(Path("/none")), states)
    assert told is not None and (told.phase, told.reason) == (phase, reason)
    earlier = [one and AttemptState(**{**asdict(one), "attempt": 4}) for one in states]
    assert state_of_tasks(attempt(Path("/none")), earlier) is None, "another attempt's say nothing of this one"


def test_status_and_log_of_an_array_are_those_of_its_tasks(tmp_path: Path) -> None:
    place = tmp_path / "jobs" / "label-0a"
    sent = attempt(place)
    at = {"what": "edges", "unit": "shards", "began": time.time() - 10, "before": 0}
    labeled = {"written": {"edges": 2}, "rows": {"edges": 20}, "busy": {"edges": 1.5}, "seconds": 4.0}
    states = [state("succeeded", result=labeled), state("running", progress={**at, "done": 1, "total": 2}), None]
    for task, one in enumerate(states):
        folder = JobFolder(str(place), task)
        log = GrowingText(folder.own, "log")
        log.add(f"this is task {task}\nunfinished".encode())
        assert log.put()
        if one:
            folder.put_state(one)
    folder = JobFolder(str(place))
    folder.put_attempt(sent)
    assert folder.attempt() == sent
    assert folder.last_begun() == 1
    status = job_status(sent)  # Slurm is not there: what the tasks say counts
    assert status.phase == "running" and status.progress.startswith("1 of 3 tasks have ended; edges: 1 of 2 shards")
    lines = list(log_lines(sent))
    assert lines[:3] == ["[0] this is task 0", "[1] this is task 1", "[2] this is task 2"]
    assert list(log_lines(sent, task=2)) == ["this is task 2", "unfinished"]
    with pytest.raises(InputError, match="label-0a: no task 3; its tasks are 0 to 2"):
        list(log_lines(sent, task=3))
    for task in (1, 2):
        JobFolder(str(place), task).put_state(state("succeeded", result=labeled))
    done = job_status(sent)
    assert done.phase == "succeeded"
    assert done.result == {"written": {"edges": 6}, "rows": {"edges": 60}, "busy": {"edges": 4.5}, "seconds": 4.0}


def test_task_of_an_earlier_attempt_does_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = JobFolder(str(tmp_path))
    folder.put_specification(parse_specification({"kind": "label", "dataset": "/none", "groups": ["edges"]}, "job"))
    folder.put_attempt(attempt(tmp_path, number=2))
    assert execute(str(tmp_path), 1, task=0) == 0
    assert "attempt 1 is over" in capsys.readouterr().out
    assert folder.last_begun() == 0


@pytest.mark.parametrize(
    ("values", "target", "words"),
    [
        ({}, "local", "workers.tasks 4: is a job array, and this target is of type local"),
        ({"kind": "evaluate", "run": "/none"}, "slurm", "workers.tasks 4: only jobs that label are cut into tasks"),
        ({"source": "/pictures"}, "slurm", "ingest /pictures by a job without tasks first"),
        ({"groups": ["duplicates"]}, "slurm", "depends on all rows of"),
    ],
)
def test_what_has_no_tasks_is_refused(
    pictures_dataset: Path, own_data: None, values: dict[str, Any], target: str, words: str
) -> None:
    label = {"kind": "label", "dataset": str(pictures_dataset), "groups": ["edges"]}
    given = {**({} if values.get("kind") else label), **values, "workers": {"tasks": 4}}
    with pytest.raises(InputError) as raised:
        plan_job(resolve_job(parse_specification(given, "job")), target)
    assert words in str(raised.value) and "\n" not in str(raised.value)


def test_dry_run_shows_the_array(pictures_dataset: Path, own_data: None, tmp_path: Path) -> None:
    """On the command line; there are no more tasks than shards, and the job's id is that of the job without tasks."""
    from typer.testing import CliRunner

    from pipelines.cli.app import app

    shards = len(json.loads((pictures_dataset / "dataset.json").read_text())["shards"])
    values = {"kind": "label", "dataset": str(pictures_dataset), "groups": ["edges"], "workers": {"tasks": 500}}
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(values))
    told = CliRunner().invoke(app, ["submit", str(tmp_path / "job.yaml"), "--target", "slurm", "--dry-run"])
    assert told.exit_code == 0, told.output
    assert f"#SBATCH --array=0-{shards - 1}\n" in told.output and '--task "$SLURM_ARRAY_TASK_ID")' in told.output
    ids = {
        resolve_job(parse_specification({**values, "workers": workers}, "job")).id
        for workers in ({"tasks": 500}, {"count": 3})
    }
    assert len(ids) == 1
