"""The datasets and runs that the dashboard shows: those given to it once, and those that jobs were sent to work on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from cluster.user_data import data_folder, one_at_a_time, write_whole
from labeling.dataset import open_store
from model.inputs import InputError
from pipelines.jobs.known_jobs import remembered_jobs

Kind = Literal["dataset", "run", "unknown"]
Policy = Literal["ask", "build", "ignore"]
POLICIES: tuple[Policy, ...] = ("ask", "build", "ignore")
_JOB_FOLDER = re.compile(r"(.+)/jobs/([a-z]+)-[0-9a-f]+")
_OWN_NAMES = ("jobs", "runs", "datasets")  # folders that say nothing of what is in them


@dataclass(frozen=True)
class Place:
    """A dataset or a run. name: of its assets, never changed; owner: an e-mail address or team:NAME.

    new_pictures: what to do about pictures that are new in a dataset's sources.
    """

    name: str
    kind: Kind
    address: str
    owner: str = ""
    new_pictures: Policy = "ask"


def folder() -> Path:
    """Where the dashboard keeps what is its own, readable by its user only."""
    path = data_folder() / "dashboard"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def places() -> list[Place]:
    """All that were remembered, in the order of their names."""
    try:
        kept = json.loads((folder() / "places.json").read_text())
    except FileNotFoundError:
        return []
    known = {one.name for one in fields(Place)}  # another version of the dashboard may have kept more of them
    return [Place(**{key: value for key, value in values.items() if key in known}) for values in kept]


def remember(
    found: Iterable[tuple[Kind, str]], owner: str = "", new_pictures: Policy | None = None, asked: bool = False
) -> list[Place]:
    """Add places by kind and address, and return all. One that is there already keeps its name.

    A place that was of unknown kind takes the kind given now; owner and policy are set where they are given.
    asked: by a person; what was found by itself stays away where a person had it forgotten.
    """
    with one_at_a_time("dashboard"):
        known = {place.address: place for place in places()}
        before, unwanted = dict(known), _forgotten()
        for kind, given in found:
            address = open_store(given).uri
            if address in unwanted and not asked:
                continue
            unwanted.discard(address)
            place = known.get(address) or Place(_name(address, [one.name for one in known.values()]), kind, address)
            known[address] = replace(
                place,
                kind=kind if place.kind == "unknown" else place.kind,
                owner=owner or place.owner,
                new_pictures=new_pictures or place.new_pictures,
            )
        if known != before:
            _keep(list(known.values()))
        if unwanted != _forgotten():
            _write("forgotten.json", sorted(unwanted))
    return places()


def forget(names: Iterable[str]) -> None:
    """Take places out, until they are asked for again. Raises InputError for one that is not there."""
    with one_at_a_time("dashboard"):
        unwanted = _forgotten()
        kept = {place.name: place for place in places()}
        for name in names:
            if name not in kept:
                raise InputError(f"{name}: not on the dashboard; there are {', '.join(kept) or 'none'}")
            unwanted.add(kept.pop(name).address)
        _keep(list(kept.values()))
        _write("forgotten.json", sorted(unwanted))


def find_place(name: str) -> Place:
    """The place of that name. Raises InputError."""
    for place in places():
        if place.name == name:
            return place
    raise InputError(f"{name}: not on the dashboard")


def place_kind(address: str) -> Kind:
    """What lies at an address. Raises InputError when there is neither a dataset nor a run, or no answer."""
    from pipelines.reports.run import is_run

    store = open_store(address)
    if store.exists("dataset.json"):
        return "dataset"
    if is_run(store):
        return "run"
    raise InputError(f"{address}: neither a dataset nor a run; make one with `ingest` or `train`")


def worked_on() -> list[tuple[Kind, str]]:
    """The datasets and runs of the jobs that were sent from here, by the addresses of their folders alone."""
    found: list[tuple[Kind, str]] = []
    for address in remembered_jobs().values():
        match = _JOB_FOLDER.fullmatch(address)
        if match and match[2] != "report":  # a report's page lies in what it is about
            found.append(("run" if match[2] == "train" else "dataset", match[1]))
    return list(dict.fromkeys(found))


def _keep(kept: Sequence[Place]) -> None:
    _write("places.json", [asdict(place) for place in sorted(kept, key=lambda place: place.name)])


def _forgotten() -> set[str]:
    """Addresses that were taken out; jobs were sent there, or runs read them, and they would come back."""
    try:
        return set(json.loads((folder() / "forgotten.json").read_text()))
    except FileNotFoundError:
        return set()


def _write(name: str, values: list[Any]) -> None:
    write_whole(folder() / name, json.dumps(values, indent=1))


def _name(address: str, taken: Sequence[str]) -> str:
    """The last part of an address, with as many of those before it as it takes to be the only one."""
    parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in address.removeprefix("s3://").split("/") if part]
    parts = [part for part in parts if part not in _OWN_NAMES] or ["place"]
    for count in range(1, len(parts) + 1):
        name = "_".join(parts[-count:])
        if name not in taken:
            return name
    return next(f"{parts[-1]}_{number}" for number in range(2, len(taken) + 3) if f"{parts[-1]}_{number}" not in taken)
