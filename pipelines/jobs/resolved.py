"""From a specification to the one value that everything after it works with: the resolved job."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.work import ResourceRequest
from labeling.dataset import digest_json, open_store
from labeling.resources import check_names, needed_gpus
from model.inputs import InputError
from pipelines.jobs.folder import JobFolder, job_address
from pipelines.jobs.specification import (
    EvaluateJob,
    JobSpecification,
    LabelJob,
    ReportJob,
    SetsJob,
    TrainJob,
    ViewsJob,
    WorkersSpec,
)


@dataclass(frozen=True)
class ResolvedJob:
    """A job as any machine can take it.

    id: the same for the same job, however it is scaled; address: of its folder, OUTPUT/jobs/ID; specification: with
    whole addresses, and of a training the whole configuration; resources: what a target is asked for.
    """

    id: str
    address: str
    specification: JobSpecification
    resources: ResourceRequest

    @cached_property
    def folder(self) -> JobFolder:
        """What is stored of the job."""
        return JobFolder(self.address)

    @property
    def workers(self) -> WorkersSpec:
        """What the specification says of workers, or the defaults."""
        return self.specification.workers or WorkersSpec()

    def does_the_same(self, other: JobSpecification) -> bool:
        """Whether another resolved specification states the same work; its scale does not count."""
        return _without_scale(self.specification) == _without_scale(other)

    def scaled(self, workers: WorkersSpec) -> ResolvedJob:
        """Change the job's workers. Raises InputError when a training's configuration does not allow them."""
        specification = _with_whole_addresses(self.specification.model_copy(update={"workers": workers}))
        return ResolvedJob(self.id, self.address, specification, _resources(specification))


def resolve_job(specification: JobSpecification) -> ResolvedJob:
    """Resolve a specification. Raises InputError for a wrong configuration: here, and not later on a cluster."""
    whole = _with_whole_addresses(specification)
    job_id = _job_id(whole)
    return ResolvedJob(job_id, job_address(whole.output, job_id), whole, _resources(whole))


def stored_job(address: str) -> ResolvedJob:
    """The job that was resolved and written to this folder before. Raises InputError where there is none."""
    specification = JobFolder(address).specification()
    return ResolvedJob(address.rpartition("/")[2], address, specification, _resources(specification))


def whole_address(address: str) -> str:
    """An s3:// address as it is, a local path made absolute. Raises InputError for another scheme."""
    return open_store(address).uri


def _job_id(specification: JobSpecification) -> str:
    if isinstance(specification, TrainJob):  # the run alone: two trainings cannot share one
        return f"train-{digest_json(specification.run)[:8]}"
    values = specification.model_dump(mode="json", exclude={"workers", "resources"})
    # Jobs of earlier versions, which had no such keys, keep their ids.
    for key in ("only_errors", "where", "with", "replay_step"):
        if not values.get(key):
            values.pop(key, None)
    if isinstance(specification, ViewsJob):
        given = specification.model_dump(mode="json", exclude_defaults=True)
        values = {key: values[key] for key in values if key in given or key in ("kind", "count", "size", "seed")}
    if isinstance(specification, LabelJob):
        values["ingest"] = specification.ingest.model_dump(mode="json", exclude_defaults=True)
        if not values["ingest"]:
            del values["ingest"]
    return f"{specification.kind}-{digest_json(values)[:8]}"


def _resources(specification: JobSpecification) -> ResourceRequest:
    readers = 0.0
    if isinstance(specification, TrainJob) and isinstance(specification.config, dict):
        reader = specification.config["reader"]
        readers = reader["processes"] * reader["cpus"] * reader.get("beside", True)
    return (specification.workers or WorkersSpec()).resources(readers)


def _with_whole_addresses(specification: JobSpecification) -> JobSpecification:
    if isinstance(specification, LabelJob):
        source = whole_address(specification.source) if specification.source else None
        workers = _workers_for(specification)
        addresses = {"dataset": whole_address(specification.dataset), "source": source}
        return specification.model_copy(update={**addresses, "workers": workers})
    if isinstance(specification, ViewsJob):
        addresses = {"dataset": whole_address(specification.dataset), "source": whole_address(specification.source)}
        return specification.model_copy(update=addresses)
    if isinstance(specification, SetsJob):
        sources = [whole_address(source) for source in specification.sources]
        return specification.model_copy(update={"dataset": whole_address(specification.dataset), "sources": sources})
    if isinstance(specification, EvaluateJob):
        return specification.model_copy(update={"run": whole_address(specification.run)})
    if isinstance(specification, ReportJob):
        beside = whole_address(specification.beside) if specification.beside else None
        return specification.model_copy(update={"of": whole_address(specification.of), "beside": beside})
    return _with_whole_configuration(specification)


def _workers_for(specification: LabelJob) -> WorkersSpec:
    """Workers that have the GPUs and CPUs its labelers ask for, where the job does not say how many they have.

    Raises InputError where it does, and they are too few for one process of a labeler.
    """
    check_names(specification.resources, specification.groups, "resources")
    workers = specification.workers
    least = workers.count if isinstance(workers.count, int) else workers.count[0]
    cpus = [own.cpus for own in specification.resources.values() if "cpus" in own.model_fields_set]
    needs = {"gpus": needed_gpus(specification.resources, least), "cpus": max(cpus, default=0.0)}
    # No GPUs is what forms and files say that do not care; resources that ask for some do.
    unsaid = {unit: need for unit, need in needs.items() if unit not in workers.model_fields_set}
    if not workers.gpus:
        unsaid["gpus"] = needs["gpus"]
    for name, own in specification.resources.items():
        for unit in needs.keys() - unsaid.keys():
            if unit in own.model_fields_set and (share := getattr(own, unit) or 0.0) > (has := getattr(workers, unit)):
                raise InputError(
                    f"resources.{name}.{unit}: {share:g} for each process, and a worker has {has:g} (workers.{unit}); "
                    f"give a worker more, or leave workers.{unit} out"
                )
    more = {unit: need for unit, need in unsaid.items() if need > getattr(workers, unit)}
    return workers.model_copy(update=more)


def _with_whole_configuration(specification: TrainJob) -> TrainJob:
    from training.checkpoint.files import is_model_name
    from training.config import load_config, override_config, parse_config

    if isinstance(specification.config, str):
        config = load_config(specification.config, specification.overrides)
    else:
        config = parse_config(override_config(specification.config, specification.overrides), "config")
    values = config.model_dump(mode="json")
    for source in values["mixture"].values():
        source["dataset"] = whole_address(source["dataset"])
    if values["initialize"] and not is_model_name(values["initialize"]):
        values["initialize"] = whole_address(values["initialize"])
    if specification.workers:
        values["workers"] |= specification.workers.model_dump(mode="json", include={"count", "cpus", "gpus"})
    workers = parse_config(values, "workers").workers
    asked = specification.workers or WorkersSpec()
    spec = asked.model_copy(update={"count": workers.count, "cpus": workers.cpus, "gpus": workers.gpus})
    return TrainJob(
        kind="train",
        config=values,
        run=whole_address(specification.run),
        from_checkpoint=specification.from_checkpoint,
        workers=spec,
    )


def _without_scale(specification: JobSpecification) -> dict[str, Any]:
    values = specification.model_dump(mode="json", exclude={"workers", "resources"})
    if isinstance(specification, TrainJob) and isinstance(specification.config, dict):
        from training.config import parse_config

        # An earlier version may have stored it: parsing gives its keys their present names, and adds newer ones.
        config = parse_config(specification.config, specification.run)
        values["config"] = config.model_dump(mode="json", exclude={"workers"})
    return values
