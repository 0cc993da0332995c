"""Targets: small typed YAML files that say where jobs run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from model.errors import InputError, nearest

TARGETS = Path(__file__).parent / "targets"


class Section(BaseModel):
    """A part of a target; a key it does not have is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class LocalTarget(Section):
    """This machine, in the background: the job outlives the terminal.

    environment: further variables of the job, no secrets (what the shell has, it gets anyway).
    """

    type: Literal["local"]
    environment: dict[str, str] = {}


class RayTarget(Section):
    """A Ray cluster that runs already, through its Jobs API.

    address: of its dashboard, http://HOST:8265. token_file: of its token; by default the project's own.
    working_dir: the checkout to upload, without what git ignores; by default the one that runs.
    install: whether Ray installs the packages pinned in constraints.txt for the job ("pip"), or the cluster has them
    ("none"). environment: variables of the job, no secrets
    (S3 credentials are the cluster's own).
    """

    type: Literal["ray"]
    address: str = "http://127.0.0.1:8265"
    token_file: str | None = None
    working_dir: str | None = None
    install: Literal["none", "pip"] = "none"
    environment: dict[str, str] = {}


class KubernetesTarget(Section):
    """A Kubernetes cluster with the KubeRay operator."""

    type: Literal["kubernetes"]
    image: str
    namespace: str = "default"
    environment: dict[str, str] = {}


class SlurmTarget(Section):
    """A Slurm site, where sbatch, squeue and scancel work."""

    type: Literal["slurm"]
    environment: dict[str, str] = {}


Target = Annotated[LocalTarget | RayTarget | KubernetesTarget | SlurmTarget, Field(discriminator="type")]


def targets() -> list[str]:
    """Names of the targets that come with the project."""
    return sorted(path.stem for path in TARGETS.glob("*.yaml"))


def load_target(name: str) -> Target:
    """The target in a YAML file, or the one of that name that comes with the project.

    Raises InputError for a file that is not there, an unknown key (with the nearest right one) or a wrong value.
    """
    path = TARGETS / f"{name}.yaml" if name in targets() else Path(name).expanduser()
    try:
        values = yaml.safe_load(path.read_text())
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(
            f"{name}: no such target file{nearest(name, targets())}; targets here are {', '.join(targets())}"
        ) from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{name}: not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise InputError(f"{name}: a target is `key: value` lines, with a `type`")
    return parse_target(values, name)


def parse_target(values: dict[str, Any], place: str) -> Target:
    """The target that nested values state; `place` is where they came from. Raises InputError."""
    try:
        return TypeAdapter[Target](Target).validate_python(values)
    except ValidationError as error:
        raise InputError(f"{place}: {_explain(error, values)}") from None


def _explain(error: ValidationError, values: dict[str, Any]) -> str:
    """The first thing that is wrong, in one line."""
    problem = error.errors()[0]
    kinds: dict[str, type[Section]] = {
        "local": LocalTarget,
        "ray": RayTarget,
        "kubernetes": KubernetesTarget,
        "slurm": SlurmTarget,
    }
    if problem["type"].startswith("union_tag"):
        given = values.get("type")
        known = ", ".join(kinds)
        return f"`type` is one of {known}, not {given!r}" if given else f"`type` is missing; it is one of {known}"
    where = ".".join(str(part) for part in problem["loc"][1:])
    if problem["type"] == "extra_forbidden":
        fields = list(kinds[values["type"]].model_fields)
        return f"no key {where!r}{nearest(where, fields) or '; there are ' + ', '.join(fields)}"
    if problem["type"] == "missing":
        return f"key {where!r} is missing"
    shown = f", got {problem['input']!r}" if isinstance(problem["input"], str | int | float | bool) else ""
    return f"{where}: {problem['msg'].removeprefix('Value error, ')}{shown}"
