"""What each dataset and run declared when it was read last: the definitions are made from these snapshots alone.

Dagster loads the definitions in several processes and once for every run. They must agree, load at once, and need no
dataset that is out of reach. So they read these files, and only the server and the sensors read datasets and runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from concurrent.futures import wait
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cluster.user_data import write_whole
from labeling.dataset import RECIPE_FIELDS, Dataset, digest_json, open_store
from model.inputs import InputError, one_line
from model.inputs.yaml_files import parse_yaml
from pipelines.dashboard.background import in_background
from pipelines.dashboard.partitions import ShardRange, shard_ranges
from pipelines.dashboard.tracked_assets import Kind, TrackedAsset, kind_at, state_folder, track, tracked_assets

if TYPE_CHECKING:
    from training.plan.streams import Stream
    from training.source_config import SourceConfig

NOT_READ = "not looked at yet"
ANSWER_SECONDS = 20.0  # after which a dataset or run that does not answer counts as unreachable
_STORED_TRACKED = "place"  # the key of `tracked` in the files, as all versions of the dashboard write it


@dataclass(frozen=True)
class Snapshot:
    """A dataset or run as it was read last.

    trouble: why it cannot be read now (the other fields are then as before, or empty). Of a dataset: kind of its rows,
    "pictures" or "sets"; number of shards; groups, each with its declaration; sources, where the pictures came from.
    Of a run: its config, and (dataset's address, group) of all that it reads.
    """

    tracked: TrackedAsset
    trouble: str = ""
    kind: str = ""
    shards: int = 0
    sources: Sequence[str] = ()
    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    reads: Sequence[tuple[str, str]] = ()

    @property
    def ranges(self) -> list[ShardRange]:
        """The ranges of shards that are partitions; a single range where there are few shards."""
        return shard_ranges(self.shards)

    @property
    def labels(self) -> list[str]:
        """The groups that a labeler makes from others. The rest were ingested or rendered."""
        return [group for group, declared in self.groups.items() if declared.get("reads")]

    @property
    def has_sources(self) -> bool:
        """Whether an ingest can add new pictures of its sources; an ingest makes no sets."""
        return bool(self.sources) and self.kind == "pictures"

    def code_version(self, group: str) -> str | None:
        """Digest of a group's declaration; None where no labeler makes it."""
        declared = self.groups[group]
        return digest_json({key: declared.get(key) for key in RECIPE_FIELDS}) if declared.get("reads") else None

    def upstream(self, group: str) -> list[str]:
        """The groups that a group is made from; `images` always, since a row's id comes from there."""
        reads = self.groups[group].get("reads") or ()
        names = dict.fromkeys(column.split(".", 1)[0] for column in ("images.id", *reads)) if reads else {}
        return [name for name in names if name in self.groups and name != group]


def read_snapshot(tracked: TrackedAsset) -> Snapshot:
    """Read what a dataset or run declares now. Raises InputError, or OSError where it does not answer."""
    kind = kind_at(tracked.address) if tracked.kind == "unknown" else tracked.kind
    tracked = replace(tracked, kind=kind)
    if kind == "run":
        return _read_run(tracked)
    dataset = Dataset.open(tracked.address)
    return Snapshot(
        tracked,
        kind=dataset.kind,
        shards=len(dataset.shards),
        sources=[str(source["uri"]) for source in dataset.sources if source.get("uri")],
        groups={group: dataset.declaration(group) or {} for group in dataset.groups()},
    )


def _read_run(tracked: TrackedAsset) -> Snapshot:
    from training.config import parse_config
    from training.run import CONFIG

    store, file = open_store(tracked.address), f"{tracked.address}/{CONFIG}"
    try:
        text = store.read(CONFIG).decode()
    except FileNotFoundError:
        return Snapshot(tracked, trouble="training has not begun yet")
    config = parse_config(parse_yaml(text, file), file)
    reads = [
        (open_store(source.dataset).uri, group)
        for name, source in config.mixture.items()
        for task in source.tasks
        for group in _stream(name, source, task, config.size).groups
    ]
    return Snapshot(tracked, config=config.model_dump(mode="json"), reads=list(dict.fromkeys(reads)))


def _stream(name: str, source: SourceConfig, task: str, size: int) -> Stream:
    """What a source serves of a task; where its dataset cannot be asked, as if its prompts were in one group."""
    from training.plan.mixture import with_text_group
    from training.plan.streams import Stream

    stream = Stream.of(name, source, task, size)
    with suppress(Exception):  # whatever is wrong with a dataset is said where it is shown
        return with_text_group(stream, Dataset(source.dataset))
    return stream


def refresh(only: Sequence[str] | None = None) -> bool:
    """Read all datasets and runs (or those named) in parallel; whether any of them declares something else now."""
    assets = [asset for asset in tracked_assets() if only is None or asset.name in only]
    reads = [in_background(partial(read_snapshot, asset)) for asset in assets]
    wait(reads, ANSWER_SECONDS)
    changed = False
    known_kinds: list[tuple[Kind, str]] = []
    for asset, read in zip(assets, reads, strict=True):
        try:
            snapshot = read.result(0)
        except TimeoutError:
            snapshot = _with_trouble(asset, f"does not answer within {ANSWER_SECONDS:.0f} s")
        except Exception as error:  # one that is broken is shown with its reason, beside the others
            snapshot = _with_trouble(asset, one_line(error))
        changed |= _save(snapshot)
        if asset.kind != snapshot.tracked.kind:
            known_kinds.append((snapshot.tracked.kind, asset.address))
    if known_kinds:
        track(known_kinds)
    return changed


def snapshots() -> list[Snapshot]:
    """The snapshots of all datasets and runs, as they were read last."""
    return [_load(asset) or Snapshot(asset, trouble=NOT_READ) for asset in tracked_assets()]


def find_snapshot(name: str) -> Snapshot:
    """The snapshot of the dataset or run of that name. Raises InputError."""
    for snapshot in snapshots():
        if snapshot.tracked.name == name:
            return snapshot
    raise InputError(f"{name}: not on the dashboard")


def snapshots_digest() -> str:
    """Digest of all that the definitions are made from: when it changes, they must be loaded again."""
    return digest_json([[asdict(asset), _written(asset)] for asset in tracked_assets()])


def _with_trouble(asset: TrackedAsset, trouble: str) -> Snapshot:
    return replace(_load(asset) or Snapshot(asset), trouble=trouble)


def _path(asset: TrackedAsset) -> Path:
    folder = state_folder() / "snapshots"
    folder.mkdir(exist_ok=True)
    return folder / f"{asset.name}.json"


_Written = tuple[int, int] | None
_loaded: dict[str, tuple[_Written, TrackedAsset, Snapshot | None]] = {}  # by path


def _written(asset: TrackedAsset) -> _Written:
    """The file of a snapshot, and when it was written (ns): only when it is another."""
    try:
        stat = _path(asset).stat()
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def _load(asset: TrackedAsset) -> Snapshot | None:
    """The snapshot of an asset; parsed once, since hundreds are asked for every few seconds."""
    written, path = _written(asset), str(_path(asset))
    if (known := _loaded.get(path)) and known[:2] == (written, asset):
        return known[2]
    snapshot = _parsed(asset)
    _loaded[path] = written, asset, snapshot
    return snapshot


def _parsed(asset: TrackedAsset) -> Snapshot | None:
    try:
        values = json.loads(_path(asset).read_text())
    except (FileNotFoundError, ValueError):
        return None
    stored = values.pop(_STORED_TRACKED)
    if stored["address"] != asset.address:  # of an asset that was taken out, whose name another one has now
        return None
    reads = [(address, group) for address, group in values["reads"]]
    try:
        return Snapshot(**{**values, "tracked": asset, "reads": reads})
    except TypeError:  # as another version of the project wrote it
        return None


def _save(snapshot: Snapshot) -> bool:
    """Write a snapshot; whether it differs from the one before."""
    path, values = _path(snapshot.tracked), asdict(snapshot)
    values[_STORED_TRACKED] = values.pop("tracked")
    text = json.dumps(values, indent=1, sort_keys=True)
    if path.exists() and path.read_text() == text:
        return False
    write_whole(path, text)
    return True
