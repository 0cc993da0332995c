"""The datasets and runs that the dashboard shows: those that a person named, and those that jobs were sent to work on.

They are kept in `places.json` of the state folder, and addresses that a person took out in `forgotten.json`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

from cluster.user_data import data_folder, one_at_a_time, write_whole
from labeling.dataset import DATASET_FILE, open_store
from model.inputs import InputError
from pipelines.jobs.known_jobs import remembered_jobs

Kind = Literal["dataset", "run", "unknown"]
Policy = Literal["ask", "build", "ignore"]
POLICIES: tuple[Policy, ...] = ("ask", "build", "ignore")
_TRACKED, _UNTRACKED = "places.json", "forgotten.json"
_JOB_FOLDER = re.compile(r"(.+)/jobs/([a-z]+)-[0-9a-f]+")
_GENERIC_FOLDERS = ("jobs", "runs", "datasets")  # they do not tell one dataset or run from another


@dataclass(frozen=True)
class TrackedAsset:
    """A dataset or a run.

    name: the first part of its assets' keys, which never changes; owner: an e-mail address or team:NAME; new_pictures:
    what to do about pictures that are new in a dataset's sources.
    """

    name: str
    kind: Kind
    address: str
    owner: str = ""
    new_pictures: Policy = "ask"


def state_folder() -> Path:
    """The folder of the dashboard's own state, readable by its user only."""
    path = data_folder() / "dashboard"
    path.mkdir(mode=0o700, exist_ok=True)
    return path


def tracked_assets() -> list[TrackedAsset]:
    """All datasets and runs on the dashboard, ordered by name."""
    try:
        entries = json.loads((state_folder() / _TRACKED).read_text())
    except FileNotFoundError:
        return []
    known = {field.name for field in fields(TrackedAsset)}  # another version of the dashboard may have written more
    return [TrackedAsset(**{key: value for key, value in entry.items() if key in known}) for entry in entries]


def track(
    additions: Iterable[tuple[Kind, str]],
    owner: str = "",
    new_pictures: Policy | None = None,
    by_person: bool = False,
) -> list[TrackedAsset]:
    """Add datasets and runs, given by kind and address, and return all. One that is there already keeps its name.

    Where the kind was unknown, the one given now is taken; owner and policy are set where they are given. What a person
    took out is added again only by_person.
    """
    with one_at_a_time("dashboard"):
        known = {asset.address: asset for asset in tracked_assets()}
        known_before, untracked = dict(known), _untracked()
        for kind, text in additions:
            address = open_store(text).uri
            if address in untracked and not by_person:
                continue
            untracked.discard(address)
            names = [asset.name for asset in known.values()]
            asset = known.get(address) or TrackedAsset(_unique_name(address, names), kind, address)
            known[address] = replace(
                asset,
                kind=kind if asset.kind == "unknown" else asset.kind,
                owner=owner or asset.owner,
                new_pictures=new_pictures or asset.new_pictures,
            )
        if known != known_before:
            _write_tracked(known.values())
        if untracked != _untracked():
            _write(_UNTRACKED, sorted(untracked))
    return tracked_assets()


def untrack(names: Iterable[str]) -> None:
    """Take datasets and runs out, until a person adds them again. Raises InputError for a name that is not there."""
    with one_at_a_time("dashboard"):
        untracked = _untracked()
        remaining = {asset.name: asset for asset in tracked_assets()}
        for name in names:
            if name not in remaining:
                raise InputError(f"{name}: not on the dashboard; there are {', '.join(remaining) or 'none'}")
            untracked.add(remaining.pop(name).address)
        _write_tracked(remaining.values())
        _write(_UNTRACKED, sorted(untracked))


def find_tracked(name: str) -> TrackedAsset:
    """The dataset or run of that name. Raises InputError."""
    for asset in tracked_assets():
        if asset.name == name:
            return asset
    raise InputError(f"{name}: not on the dashboard")


def kind_at(address: str) -> Kind:
    """What lies at an address. Raises InputError when there is neither a dataset nor a run, or no answer."""
    from pipelines.reports.run import is_run

    store = open_store(address)
    if store.exists(DATASET_FILE):
        return "dataset"
    if is_run(store):
        return "run"
    raise InputError(f"{address}: neither a dataset nor a run; make one with `ingest` or `train`")


def assets_of_jobs() -> list[tuple[Kind, str]]:
    """Kind and address of the datasets and runs that jobs of this machine work on, by the jobs' addresses alone."""
    assets: list[tuple[Kind, str]] = []
    for address in remembered_jobs().values():
        match = _JOB_FOLDER.fullmatch(address)
        if match and match[2] != "report":  # a report may be about any dataset or run: its folder does not say which
            assets.append(("run" if match[2] in ("train", "evaluate") else "dataset", match[1]))
    return list(dict.fromkeys(assets))


def _write_tracked(assets: Iterable[TrackedAsset]) -> None:
    _write(_TRACKED, [asdict(asset) for asset in sorted(assets, key=lambda asset: asset.name)])


def _untracked() -> set[str]:
    """Addresses that a person took out. Jobs and runs that use them would bring them back otherwise."""
    try:
        return set(json.loads((state_folder() / _UNTRACKED).read_text()))
    except FileNotFoundError:
        return set()


def _write(name: str, values: list[Any]) -> None:
    write_whole(state_folder() / name, json.dumps(values, indent=1))


def _unique_name(address: str, names: Sequence[str]) -> str:
    """The last part of an address, with as many of the parts before it as make it unique."""
    parts = [re.sub(r"\W", "_", part, flags=re.ASCII) for part in address.removeprefix("s3://").split("/") if part]
    parts = [part for part in parts if part not in _GENERIC_FOLDERS] or ["place"]
    for count in range(1, len(parts) + 1):
        name = "_".join(parts[-count:])
        if name not in names:
            return name
    return next(f"{parts[-1]}_{number}" for number in range(2, len(names) + 3) if f"{parts[-1]}_{number}" not in names)
