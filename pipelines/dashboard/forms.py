"""Fields of launch forms that say where a job runs and how much it may use."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import dagster as dg

from cluster.target import targets
from labeling.resources import parse_resources
from model.inputs import InputError
from pipelines.jobs.specification import WorkersSpec

# The values of a form by which a job keeps the workers that it has.
_UNCHANGED = {"least": 0, "most": 0, "cpus": 0.0, "gpus": -1.0}


def workers_field(keep: bool = False) -> dg.Field:
    """The part of a form that says how much a job may use. keep: what is left out stays as it is."""
    fields: dict[str, tuple[type, Any, str]] = {  # name → type, default, description
        "least": (int, 1, "Workers, at least."),
        "most": (int, 1, "Workers, at most."),
        "cpus": (float, 1.0, "CPUs of each worker."),
        "gpus": (float, 0.0, "GPUs of each worker."),
    }
    shape = {
        name: dg.Field(kind, default_value=_UNCHANGED[name] if keep else default, is_required=False, description=text)
        for name, (kind, default, text) in fields.items()
    }
    description = "How much it may use; more than one worker where the target has room for them."
    if keep:
        description += " 0 (of GPUs -1): as it is; of `least` and `most` alone, exactly so many."
    return dg.Field(dg.Shape(shape), description=description)


def target_fields(target: str = "local") -> dict[str, dg.Field]:
    """The part of a form that says where a job runs."""
    return {
        "target": dg.Field(
            dg.Enum("Target", [dg.EnumValue(name) for name in targets()]),
            default_value=target,
            is_required=False,
            description="Where it runs.",
        ),
        "target_file": dg.Field(
            str, default_value="", is_required=False, description="A target file of your own, instead of `target`."
        ),
    }


def labeling_fields() -> dict[str, dg.Field]:
    """The form of a labeling, except what is labeled."""
    return {
        **target_fields(),
        "workers": workers_field(),
        "resources": dg.Field(
            dg.Permissive(),
            default_value={},
            is_required=False,
            description="What labelers may use, as {depth: {gpus: 0.5, batch: 64}}: gpus, cpus, batch, processes, "
            "timeout, memory_gb, max_errors, python.",
        ),
        "only_errors": dg.Field(
            bool, default_value=False, is_required=False, description="Only rows that are in error, once more."
        ),
    }


def labeling_values_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a `LabelJob` that such a form states. Raises InputError."""
    return {
        "workers": workers_in(config),
        "resources": parse_resources(config["resources"], "resources"),
        "only_errors": config["only_errors"],
    }


@cache  # all runs share it: a lab has hundreds
def training_fields() -> Mapping[str, dg.Field]:
    """The form of a training, except its configuration."""
    return {
        **target_fields(),
        "workers": workers_field(keep=True),
        "batch": dg.Field(
            int, default_value=0, is_required=False, description="Samples of a step over all workers; 0: as configured."
        ),
        "steps": dg.Field(int, default_value=0, is_required=False, description="To train; 0: as configured."),
    }


@cache
def evaluation_fields() -> Mapping[str, dg.Field]:
    """The form of an evaluation."""
    return {**target_fields(), "workers": workers_field()}


def target_in(config: Mapping[str, Any]) -> str:
    """Where a form says that a job runs: the name of a target, or a file."""
    return str(config.get("target_file") or config["target"])


def workers_in(config: Mapping[str, Any]) -> WorkersSpec:
    """How much a form says that a job may use. Raises InputError."""
    return WorkersSpec(**worker_values_in(config))


def worker_values_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Values of `WorkersSpec`, without those that the form leaves out. Raises InputError."""
    values = dict(config.get("workers") or {})
    values = {name: value for name, value in values.items() if value != _UNCHANGED[name]}
    least, most = (values.pop(name, None) for name in ("least", "most"))
    if least is None and most is None:
        return values
    least, most = (most if least is None else least), (least if most is None else most)
    if not 1 <= least <= most:
        raise InputError(f"workers: at least {least} and at most {most}; give 1 or more, in order")
    return {"count": least if least == most else (least, most), **values}


def training_overrides_in(config: Mapping[str, Any]) -> dict[str, Any]:
    """Batch, steps and workers of a training's form, as overrides of a configuration. Raises InputError."""
    workers = worker_values_in(config)
    overrides = {key: config[key] for key in ("batch", "steps") if config[key]}
    return {**overrides, "workers": workers} if workers else overrides
