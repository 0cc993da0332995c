"""What each place declares, as it was seen last: what the definitions are made from.

Dagster loads the definitions in several processes and once for every run. They must agree, load at once, and not need
a dataset that is out of reach: they read these files, and only the server and the sensor look at the places.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from cluster.user_data import write_whole
from labeling.dataset import RECIPE_FIELDS, Dataset, digest_json, open_store
from model.inputs import InputError, one_line
from pipelines.dashboard.ranges import Range, cut_ranges
from pipelines.dashboard.tracked_assets import Kind, Place, folder, place_kind, places, remember

NOT_YET = "not looked at yet"
LOOK_SECONDS = 20.0  # after which a place that does not answer is taken for unreachable


@dataclass(frozen=True)
class Snapshot:
    """A place as it was seen last.

    trouble: why it cannot be read now (the rest is then as before, or empty). kind: of a dataset's rows, "pictures" or
    "sets"; shards: how many; groups: what each declares; sources: where the pictures came from. config: of a run;
    reads: (dataset's address, group) of all that it learns from.
    """

    place: Place
    trouble: str = ""
    kind: str = ""
    shards: int = 0
    sources: Sequence[str] = ()
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    reads: Sequence[tuple[str, str]] = ()

    @property
    def ranges(self) -> list[Range]:
        """The ranges of shards that are partitions; a single one where there are few."""
        return cut_ranges(self.shards)

    @property
    def labels(self) -> list[str]:
        """The groups that can be made anew; the others are what they are (ingested, rendered)."""
        return [group for group, declared in self.groups.items() if declared.get("reads")]

    def code_version(self, group: str) -> str | None:
        """Digest of what a group declares; None of one that nothing here can make anew."""
        declared = self.groups[group]
        return digest_json({key: declared.get(key) for key in RECIPE_FIELDS}) if declared.get("reads") else None

    def upstream(self, group: str) -> list[str]:
        """The groups that a group is made from; a row's identity always comes from `images`."""
        reads = self.groups[group].get("reads") or ()
        found = dict.fromkeys(column.split(".", 1)[0] for column in ("images.id", *reads)) if reads else {}
        return [name for name in found if name in self.groups and name != group]


def look(place: Place) -> Snapshot:
    """Read what a place declares. Raises InputError, or OSError for a place that does not answer."""
    kind = place.kind
    if kind == "unknown":
        kind = place_kind(place.address)
    if kind == "run":
        return _look_at_run(replace(place, kind=kind))
    dataset = Dataset.open(place.address)
    return Snapshot(
        replace(place, kind=kind),
        kind=dataset.kind,
        shards=len(dataset.shards),
        sources=[str(source["uri"]) for source in dataset.description.get("sources", ()) if source.get("uri")],
        groups={group: dataset.declaration(group) or {} for group in dataset.groups()},
    )


def _look_at_run(place: Place) -> Snapshot:
    import yaml

    from training.config import parse_config
    from training.mixture import Stream
    from training.run import CONFIG

    store = open_store(place.address)
    try:
        values = yaml.safe_load(store.read(CONFIG))
    except FileNotFoundError:
        return Snapshot(place, trouble="training has not begun yet")
    config = parse_config(values, f"{place.address}/{CONFIG}")
    reads = [
        (open_store(source.dataset).uri, group)
        for name, source in config.mixture.items()
        for task, weight in source.tasks.items()
        for group in Stream(name, task, weight, source.size or config.size).groups
    ]
    return Snapshot(place, config=config.model_dump(mode="json"), reads=list(dict.fromkeys(reads)))


def refresh(only: Sequence[str] | None = None) -> bool:
    """Look at the places (all, or those named) at the same time; whether anything is declared otherwise than before."""
    chosen = [place for place in places() if only is None or place.name in only]
    seen: dict[str, Snapshot] = {}

    def see(place: Place) -> None:
        try:
            seen[place.name] = look(place)
        except Exception as error:  # one broken place must not take the others down: it is shown with its reason
            seen[place.name] = _troubled(place, one_line(error))

    # Not a pool: nobody waits at its end for a place that never answers.
    threads = [threading.Thread(target=see, args=(place,), daemon=True) for place in chosen]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + LOOK_SECONDS
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    changed = False
    found: list[tuple[Kind, str]] = []
    for place in chosen:
        snapshot = seen.get(place.name) or _troubled(place, f"does not answer within {LOOK_SECONDS:.0f} s")
        changed |= _keep(snapshot)
        if place.kind != snapshot.place.kind:
            found.append((snapshot.place.kind, place.address))
    if found:
        remember(found)
    return changed


def snapshots() -> list[Snapshot]:
    """Of all places, as they were seen last."""
    return [_kept(place) or Snapshot(place, trouble=NOT_YET) for place in places()]


def find_snapshot(name: str) -> Snapshot:
    """Of the place of that name. Raises InputError."""
    for snapshot in snapshots():
        if snapshot.place.name == name:
            return snapshot
    raise InputError(f"{name}: not on the dashboard")


def shape() -> str:
    """Digest of all that definitions are made from: where it changes, they have to be loaded anew."""
    return digest_json([asdict(snapshot) for snapshot in snapshots()])


def _troubled(place: Place, trouble: str) -> Snapshot:
    return replace(_kept(place) or Snapshot(place), trouble=trouble)


def _path(place: Place) -> Path:
    path = folder() / "snapshots"
    path.mkdir(exist_ok=True)
    return path / f"{place.name}.json"


def _kept(place: Place) -> Snapshot | None:
    try:
        values = json.loads(_path(place).read_text())
    except (FileNotFoundError, ValueError):
        return None
    if values["place"]["address"] != place.address:  # forgotten, and the name given to another
        return None
    reads = [(address, group) for address, group in values["reads"]]
    try:
        return Snapshot(**{**values, "place": place, "reads": reads})
    except TypeError:  # as another version of the project kept it
        return None


def _keep(snapshot: Snapshot) -> bool:
    path = _path(snapshot.place)
    text = json.dumps(asdict(snapshot), indent=1, sort_keys=True)
    if path.exists() and path.read_text() == text:
        return False
    write_whole(path, text)
    return True
