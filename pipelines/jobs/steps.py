"""What a job does, by its kind."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import Any

from cluster.ray_environment import starts_own_ray
from cluster.session import cluster_has, ray_session
from cluster.work import MORE_CPUS
from model.inputs import InputError
from pipelines.jobs.running import RunningAttempt
from pipelines.jobs.specification import EvaluateJob, JobSpecification, LabelJob, ReportJob, SetsJob, TrainJob, ViewsJob


def run_job(specification: JobSpecification, attempt: RunningAttempt) -> dict[str, Any]:
    """Do what a job is to do with the same functions as the command line; figures of what it did."""
    if isinstance(specification, LabelJob):
        return _label(specification)
    if isinstance(specification, ViewsJob):
        from labeling.sources.view_sets import ViewOptions
        from pipelines.views import views

        one = specification
        options = ViewOptions(one.count, one.size, one.seed, one.path, one.lens)
        return asdict(views(one.source, one.dataset, options, one.photographs, one.gpus, one.pile))
    if isinstance(specification, SetsJob):
        from pipelines.sets import sets

        made = sets(specification.of, specification.sources, specification.dataset, specification.options)
        print(*made.summary(specification.dataset), sep="\n", flush=True)
        return asdict(made)
    if isinstance(specification, EvaluateJob):
        return evaluate_on_worker(specification)
    if isinstance(specification, ReportJob):
        from pipelines.reports.request import requested_page

        page = requested_page(specification.of, specification.where, specification.beside, specification.replay_step)
        print(page)
        return {"page": page}
    return _train(specification, attempt)


def _label(specification: LabelJob) -> dict[str, Any]:
    from pipelines.ingest import ingest
    from pipelines.ingest_job.addresses import ListOptions
    from pipelines.label import label
    from pipelines.row_errors import labeled_errors

    result: dict[str, Any] = {}
    if specification.source:
        options = specification.ingest
        ingested = ingest(
            specification.source,
            specification.dataset,
            text=options.text,
            image=options.image,
            update=options.update,
            prune=options.prune,
            listed=ListOptions(options.url, options.fetching(), options.retry_failed),
        )
        print(*(f"ingest: {line}" for line in ingested.summary(specification.dataset)), sep="\n", flush=True)
        result["ingest"] = asdict(ingested)
    request = specification.workers.resources()
    labeled = label(
        specification.dataset,
        specification.groups,
        specification.parameters,
        specification.shards,
        most_cpus=request.max_workers * request.cpus + float(os.environ.get(MORE_CPUS, 0)),
        resources=specification.resources,
        only_errors=specification.only_errors,
        most_gpus=request.max_workers * request.gpus,
        where=specification.where,
    )
    errors = labeled_errors(specification.dataset, list(labeled.fresh), specification.shards, labeled.footers)
    print(*labeled.summary(), *errors.lines(), sep="\n", flush=True)
    errors.check()
    result["errors"] = {group: one.to_json() for group, one in errors.groups.items() if one.in_error or one.unavailable}
    figures = ("written", "fresh", "rows", "busy", "seconds")
    return result | {name: _plain(getattr(labeled, name)) for name in figures}


def evaluate_on_worker(specification: EvaluateJob) -> dict[str, Any]:
    """Evaluate on a worker, since this process may have no GPU. Raises InputError where this machine is too small."""
    with ray_session():
        import ray

        from pipelines.evaluate import evaluate

        each = specification.workers.resources()
        for unit, needed in (("CPU", each.cpus), ("GPU", each.gpus)):
            if needed > (available := cluster_has(unit)):  # Ray itself waits for them without a word
                shortage = f"evaluate: its worker asks for {needed:g} {unit}s, and Ray has {available:g}"
                if starts_own_ray():
                    raise InputError(f"{shortage}: this machine's; ask for less (workers.{unit.lower()}s)")
                print(f"{shortage}; waiting for nodes that may yet join", flush=True)
        task = ray.remote(evaluate).options(num_cpus=each.cpus, num_gpus=each.gpus, max_retries=0)
        figures = ray.get(task.remote(specification.run))
    for name, figure in figures.items():
        print(f"{name}: {figure['model']:.2f}", flush=True)
    return {"figures": {name: figure["model"] for name, figure in figures.items()}}


def _plain(value: Any) -> Any:
    """A counter or defaultdict as a dict, which JSON and processes without our code can take."""
    return dict(value) if isinstance(value, dict) else value


def _train(specification: TrainJob, attempt: RunningAttempt) -> dict[str, Any]:
    from pipelines.train import train
    from training.config import parse_config
    from training.coordinator import ControlRequest

    assert isinstance(specification.config, dict)
    config = parse_config(specification.config, "config")

    def control() -> ControlRequest:
        return ControlRequest(attempt.interrupted, attempt.workers.count if attempt.workers else None)

    back = specification.from_checkpoint if specification.from_checkpoint != attempt.folder.went_back_to() else None

    def went_back() -> None:
        if back is not None:
            attempt.folder.put_went_back_to(back)

    attempt.polls = True
    done = train(config, specification.run, control=control, from_checkpoint=back, went_back=went_back)
    finished = done.step >= config.steps
    return {"step": done.step, "checkpoint": done.checkpoint, "metrics": done.metrics, "finished": finished}
