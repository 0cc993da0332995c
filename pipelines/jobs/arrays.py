"""Job arrays: a labeling job that is cut into ranges of shards, each labeled by a task that a site starts by itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from cluster.target import SlurmTarget, Target
from labeling.dataset.lease import Range
from model.inputs import InputError
from pipelines.jobs.attempt import Attempt, AttemptState
from pipelines.jobs.resolved import ResolvedJob
from pipelines.jobs.specification import JobSpecification, LabelJob

SUMMED = ("written", "fresh", "rows", "busy")  # figures of a labeling job, by group


def array_of(job: ResolvedJob, target: Target) -> tuple[int, Range | None]:
    """How many tasks a job is sent as, and the shards that they share; (1, None) for a job that is not cut.

    There are no more tasks than shards. Raises InputError for a job or target that has no tasks.
    """
    tasks, specification = job.workers.tasks, job.specification
    if tasks == 1:
        return 1, None
    if not isinstance(target, SlurmTarget):
        raise InputError(
            f"workers.tasks {tasks}: is a job array, and this target is of type {target.type}; leave it out, and ask "
            "for more workers (count)"
        )
    if not isinstance(specification, LabelJob):
        raise InputError(f"workers.tasks {tasks}: only jobs that label are cut into tasks; leave it out")
    if specification.source:
        raise InputError(
            f"workers.tasks {tasks}: tasks take ranges of shards that are there; ingest {specification.source} by a "
            "job without tasks first, and leave `source` out"
        )
    shards = _shards(specification)
    tasks = min(tasks, shards[1] - shards[0])
    return (tasks, shards) if tasks > 1 else (1, None)


def _shards(specification: LabelJob) -> Range:
    """The shards to label. Raises InputError where a labeler depends on all rows."""
    from labeling.labeler import WholeLabeler
    from pipelines.label import Labeling

    one = specification
    work = Labeling.of(one.dataset, one.groups, one.parameters, one.shards, one.where)
    if whole := [group for group, labeler in work.labelers.items() if isinstance(labeler, WholeLabeler)]:
        raise InputError(f"{whole[0]}: depends on all rows of {one.dataset}; label it by a job without workers.tasks")
    return one.shards or (0, len(work.dataset.shards))


def task_range(shards: Range, tasks: int, task: int) -> Range:
    """The part of a range of shards that a task has; the parts differ by one shard at most."""
    first, end = shards
    count = end - first
    return first + count * task // tasks, first + count * (task + 1) // tasks


def task_specification(specification: JobSpecification, attempt: Attempt, task: int) -> JobSpecification:
    """What a task of an attempt does."""
    assert isinstance(specification, LabelJob) and attempt.shards
    return specification.model_copy(update={"shards": task_range(attempt.shards, attempt.tasks, task)})


def state_of_tasks(attempt: Attempt, states: Sequence[AttemptState | None]) -> AttemptState | None:
    """What the tasks of an attempt say together; None before the first has begun. states: by task, None unbegun."""
    begun = {task: state for task, state in enumerate(states) if state and state.attempt == attempt.number}
    if not begun:
        return None
    running = [state for state in begun.values() if state.phase == "running"]
    ended = {task: state for task, state in begun.items() if state.has_ended}
    shown = next((state for state in running if state.is_running), [*running, *begun.values()][0])
    told = replace(
        shown,
        started=min(state.started for state in begun.values()),
        time=max(state.time for state in running or begun.values()),
        reason="",
        progress=_progress(begun, len(ended), attempt.tasks),
        result=_result([state.result for state in ended.values()]),
    )
    if len(ended) < attempt.tasks:
        waits = not running and any(state.phase == "interrupted" for state in begun.values())
        return replace(told, phase="interrupted" if waits else "running")
    failed = {task: state for task, state in ended.items() if state.phase == "failed"}
    if failed:
        task, first = next(iter(failed.items()))
        reason = f"task {task}: {first.reason}"
        if len(failed) > 1:
            reason += f" (and {len(failed) - 1} more of {attempt.tasks} tasks failed)"
        return replace(told, phase="failed", reason=reason)
    stopped = any(state.phase == "stopped" for state in ended.values())
    return replace(told, phase="stopped" if stopped else "succeeded")


def _progress(begun: dict[int, AttemptState], ended: int, tasks: int) -> dict[str, object]:
    """Progress of all tasks: how many ended, and what those that run are at, together where it is the same."""
    told: dict[str, object] = {"tasks": [ended, tasks]}
    at = [state.progress for state in begun.values() if state.phase == "running" and state.progress]
    same = [one for one in at if (one["what"], one["unit"]) == (at[0]["what"], at[0]["unit"])]
    if same:
        told |= {key: same[0][key] for key in ("what", "unit")}
        told |= {key: sum(one.get(key, 0) for one in same) for key in ("done", "total", "before")}
        if began := [one["began"] for one in same if "began" in one]:
            told["began"] = min(began)
    return told


def _result(results: Sequence[dict[str, object]]) -> dict[str, object]:
    """Figures of all tasks: counts by group added, the longest time, and the errors of each group."""
    told: dict[str, object] = {}
    for name in SUMMED:
        total: Counter[str] = Counter()
        for result in results:
            values = result.get(name)
            if isinstance(values, dict):
                total.update(values)
        if total:
            told[name] = dict(total)
    seconds = [value for result in results if isinstance(value := result.get("seconds"), int | float)]
    return told | ({"seconds": max(seconds)} if seconds else {})
