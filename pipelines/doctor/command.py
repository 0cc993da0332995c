"""What `onediffusion doctor` does here: it sends the examination, waits, and gathers what was found."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from cluster.backend import Backend, open_backend
from cluster.kubernetes_target import KubernetesTarget
from cluster.target import SlurmTarget, load_target
from cluster.user_data import data_folder
from cluster.work import Finding, ResourceRequest, Work
from labeling.dataset import open_store
from model.inputs import InputError, WorkFailed
from pipelines.doctor.examination import MARK, RESULTS
from pipelines.doctor.machine import versions

PAUSE_SECONDS = 1.0
Say = Callable[[str], None]


def doctor(
    target_name: str,
    address: str | None = None,
    workers: int = 2,
    cpus: float = 1.0,
    gpus: float = 0.0,
    say: Say = lambda line: None,
) -> list[Finding]:
    """What a job of so many workers would find at a target. address: a place of data, which is probed as well.

    say: is given the reason for a wait, when that changes. Raises InputError for what a user can correct (a target
    that does not answer, workers that it cannot have), WorkFailed where the examination ended without a word.
    """
    target = load_target(target_name)
    backend = open_backend(target)
    name = f"doctor-{secrets.token_hex(4)}-1"
    if address is None and isinstance(target, KubernetesTarget):
        raise InputError(
            f"doctor --target {target_name}: name a place on S3 or a volume, as `doctor s3://bucket/folder --target "
            f"{target_name}`: it is probed, and the pods leave their answer there"
        )
    if address is None and isinstance(target, SlurmTarget) and not target.shared_disk:
        raise InputError(
            f"doctor --target {target_name}: name a place on S3, as `doctor s3://bucket/folder --target "
            f"{target_name}`: the nodes share no disk with this machine, and leave their answer there"
        )
    place = open_store(address).uri if address else None
    request = {
        "name": name,
        "workers": workers,
        "cpus": cpus,
        "gpus": gpus,
        "address": place,
        "versions": versions(),
    }
    work = Work(
        name=name,
        kind="doctor",
        arguments=("examine", json.dumps(request)),
        address=place or str(data_folder() / RESULTS / name),
        resources=ResourceRequest(workers, workers, cpus, gpus),
    )
    backend.plan(work)
    findings = backend.examine(work)
    if not all(finding.ok for finding in findings):
        return findings  # what was refused here would wait, or be refused again, there
    with _sent(backend, work):
        _wait(backend, name, say)
        told, reason = _answer(backend, name, place), backend.state(name).reason
    if told is None:
        raise WorkFailed(f"doctor: what was sent to {target_name} ended without an answer ({reason or 'no reason'})")
    return findings + [Finding(**finding) for finding in told]


@contextmanager
def _sent(backend: Backend, work: Work) -> Iterator[None]:
    """Send the work; whatever happens then, nothing of it is left at the target."""
    try:
        backend.submit(work)
    except ConnectionError as error:
        raise InputError(f"doctor: {error}; try again") from None
    try:
        yield
    finally:
        backend.stop(work.name)


def _wait(backend: Backend, name: str, say: Say) -> None:
    last = ""
    while (state := backend.state(name)).phase in ("pending", "running"):
        if state.reason and state.reason != last:
            last = state.reason
            say(f"{state.phase}: {last}")
        time.sleep(PAUSE_SECONDS)


def _answer(backend: Backend, name: str, place: str | None) -> list[dict[str, Any]] | None:
    """What the examination found, as it left it at the place or printed it."""
    if place:
        store = open_store(place)
        try:
            told = json.loads(store.read(f"{RESULTS}/{name}.json"))
        except FileNotFoundError:
            return None
        store.delete(f"{RESULTS}/{name}.json")
        return list(told)
    for line in backend.logs(name):
        if MARK in line:
            return list(json.loads(line.partition(MARK)[2]))
    return None


def gathered(findings: list[Finding]) -> list[Finding]:
    """Findings that many nodes share, in one line each: a table of 64 nodes stays readable."""
    places: dict[tuple[str, bool, str, str], list[str]] = {}
    for finding in findings:
        places.setdefault((finding.check, finding.ok, finding.found, finding.remedy), []).append(finding.where)
    lines = []
    for (check, ok, found, remedy), where in places.items():
        named = list(dict.fromkeys(where))
        lines.append(Finding(check, named[0] if len(named) == 1 else f"{len(named)} nodes", ok, found, remedy))
    return lines
