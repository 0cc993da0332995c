"""The labeling job: one pass of Ray Data over references to row groups, an actor pool for every labeler.

    read and decode ─▶ boxes ─▶ segmentation ─▶ … ─▶ (pictures dropped) ─▶ … ─▶ gather a shard, write it

A Ray Data row is one row group of one shard, with the decoded pictures and the finished columns as bytes, so neither
batches nor blocks ever span or split what a shard's bytes depend on.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.session import cluster_has, ray_session
from labeling.dataset import Dataset, Footer, expected_recipe, lease, write_shard
from labeling.declaration import declare, is_same
from labeling.labeler import Labeler
from labeling.plan import Wave, choose_labelers, next_wave
from labeling.registry import default_groups
from labeling.run import group_schema, label_table
from model.inputs import InputError
from pipelines.progress import progress

PICTURES = "images.image"
MAX_BLOCKS = 4096
MAX_ACTORS = 64


@dataclass
class LabelResult:
    """What a labeling run did: shards written and fresh before by group, rows in error by group, seconds."""

    written: Counter[str] = field(default_factory=Counter)
    fresh: Counter[str] = field(default_factory=Counter)
    rows: Counter[str] = field(default_factory=Counter)
    busy: dict[str, float] = field(
        default_factory=lambda: defaultdict(float)
    )  # seconds of work by labeler, over all its processes
    seconds: float = 0.0

    def summary(self) -> list[str]:
        """One line a group: shards written and fresh, rows a second."""
        lines = []
        for group, fresh in self.fresh.items():
            busy = self.busy.get(group, 0.0)
            speed = f", {self.rows[group] / busy:.1f} rows/s a process" if busy else ""
            lines.append(f"{group}: {self.written[group]} shards labeled, {fresh} fresh{speed}")
        return lines


def label(
    dataset_uri: str,
    names: Sequence[str],
    parameters: Mapping[str, Mapping[str, Any]] | None = None,
    shards: tuple[int, int] | None = None,
    most_cpus: float = 0.0,
) -> LabelResult:
    """Add or refresh column groups: compute the shards that are missing or stale, on the Ray of `cluster.session`.

    names: labelers or groups; empty for every group that is declared. parameters: by labeler or group name.
    shards: [first, end) of the dataset's, in order; all by default. most_cpus: what the cluster may grow to.
    Raises InputError for unknown names and parameters, and when another job works on one of the groups.
    """
    started = time.monotonic()
    dataset = Dataset.open(dataset_uri)
    present = [*dataset.groups(), *names]
    wanted = [group for name in names for group in default_groups(name, present)]
    wanted = wanted or [group for group in dataset.groups() if _is_refreshable(dataset, group)]
    labelers = choose_labelers(dataset, wanted, parameters or {})
    declarations = {group: declare(labeler) for group, labeler in labelers.items()}
    if shards and not 0 <= shards[0] < shards[1] <= len(dataset.shards):
        raise InputError(f"{dataset_uri}: no shards {shards[0]} to {shards[1]}; it has {len(dataset.shards)}")
    result = LabelResult()
    with lease(dataset.store, list(labelers)):
        for group, declaration in declarations.items():
            if not is_same(dataset.declaration(group), declaration):
                dataset.declare(group, declaration)
        footers = _footers(dataset, labelers)
        done: set[tuple[str, str]] = set()
        with ExitStack() as session:
            while (wave := next_wave(dataset, declarations, footers, shards)).work:
                todo = {(shard, group) for shard, groups in wave.work.items() for group in groups}
                assert not todo & done, f"computed and still stale: {sorted(todo & done)[:3]}"
                session.enter_context(ray_session())
                # What a lost node had gathered is missing, and comes with the next wave.
                if _run_wave(dataset, wave, labelers, declarations, footers, result, most_cpus):
                    done |= todo
                footers = _footers(dataset, labelers)
        for group in labelers:
            dataset.footers(group, save=True)
            result.fresh[group] = len(range(*(shards or (len(dataset.shards),)))) - result.written[group]
    result.seconds = time.monotonic() - started
    return result


def _is_refreshable(dataset: Dataset, group: str) -> bool:
    return bool((dataset.declaration(group) or {}).get("reads"))


def _footers(dataset: Dataset, labelers: Mapping[str, Labeler]) -> dict[str, dict[str, Footer]]:
    read = {column.split(".", 1)[0] for labeler in labelers.values() for column in labeler.reads}
    return {group: dataset.footers(group) for group in sorted({"images", *read, *labelers})}


def _run_wave(
    dataset: Dataset,
    wave: Wave,
    labelers: Mapping[str, Labeler],
    declarations: Mapping[str, Mapping[str, Any]],
    footers: Mapping[str, Mapping[str, Footer]],
    result: LabelResult,
    most_cpus: float,
) -> bool:
    """Compute the shards of a wave; whether all of them are written."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    active = {group: labelers[group] for group in labelers if group in wave.groups}
    stages = _stages(active)
    references: list[dict[str, Any]] = [
        {"shard": shard, "row_group": index, "groups": ",".join(groups)}
        for shard, groups in wave.work.items()
        for index in range(len(footers["images"][shard].row_groups))
    ]
    _write_empty(dataset, wave, active, declarations, footers, result)
    if not references:
        return True
    writers = [
        ray.remote(_ShardWriter)
        .options(
            num_cpus=0,
            max_restarts=-1,
            max_task_retries=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=True),
        )
        .remote(dataset, declarations, {group: footers[group] for group in footers})
        for node in ray.nodes()
        if node["Alive"]
    ]
    cpus = cluster_has("CPU") or 1.0  # of a cluster whose nodes are yet to come
    # Every pool holds at least one process at all times; on a small machine they share the cores.
    share = 0.8 * cpus / (len(stages) + 1)
    rows = ray.data.from_items(references, override_num_blocks=min(len(references), MAX_BLOCKS))
    rows = rows.map(_Read(dataset, active), num_cpus=min(1.0, share))
    # A cluster that grows does so for processes that wait for a place, so there must be some.
    most_cpus = max(cpus, most_cpus)
    last_picture = max((i for i, stage in enumerate(stages) if _reads_pictures(stage)), default=-1)
    for index, stage in enumerate(stages):
        labeler = next(iter(stage.values()))
        most = max(1, min(MAX_ACTORS, int(most_cpus // max(labeler.cpus, 1))))
        rows = rows.map(
            _Label,
            fn_constructor_args=(stage, dataset.kind == "sets", index >= last_picture),
            concurrency=(1, most) if most_cpus > 4 else 1,
            num_cpus=min(labeler.cpus, share),
            num_gpus=labeler.gpus or None,
        )
    rows = rows.map(_Gather(writers, list(active)), num_cpus=min(0.1, share))
    total = sum(footers["images"][row["shard"]].row_groups[row["row_group"]] for row in references)
    with progress("label " + " ".join(active), total, "rows") as advance:
        for row in rows.iter_rows():
            advance(row["rows"])
            for group in row["groups"].split(","):
                result.rows[group] += row["rows"]
                result.busy[group] += row[f"{group}:seconds"]
    whole = True
    for writer in writers:
        written, began_again = ray.get(writer.written.remote())
        result.written.update(written)
        whole &= not began_again
        ray.kill(writer)
    return whole


def _write_empty(
    dataset: Dataset,
    wave: Wave,
    labelers: Mapping[str, Labeler],
    declarations: Mapping[str, Mapping[str, Any]],
    footers: Mapping[str, Mapping[str, Footer]],
    result: LabelResult,
) -> None:
    """The shards without a row (every file of theirs was rejected): there is nothing to compute for them."""
    known = {group: dict(shards) for group, shards in footers.items()}
    for shard, groups in wave.work.items():
        if footers["images"][shard].row_groups:
            continue
        for group in (group for group in declarations if group in groups):
            wanted = expected_recipe(declarations[group], shard, known)
            assert wanted is not None, f"{group}/{shard} comes before what it reads"
            table = group_schema(labelers[group], dataset.kind == "sets").empty_table()
            known.setdefault(group, {})[shard] = write_shard(dataset.store, group, shard, table, [], wanted)
            result.written[group] += 1


def _stages(active: Mapping[str, Labeler]) -> list[dict[str, Labeler]]:
    """Labelers that share a process, in order: those of one kind with the same parameters, as latents of many sources.

    A stage stands where its last group does, unless something in between reads one of its groups.
    """
    stages: list[dict[str, Labeler]] = []
    for group, labeler in active.items():
        kind = (type(labeler), labeler.parameters)
        alike = [i for i, stage in enumerate(stages) if all((type(o), o.parameters) == kind for o in stage.values())]
        joined = {group: labeler}
        if alike:
            between = {
                read.partition(".")[0] for stage in stages[alike[-1] + 1 :] for o in stage.values() for read in o.reads
            }
            if not between & stages[alike[-1]].keys():
                joined = stages.pop(alike[-1]) | joined
        stages.append(joined)
    return stages


def _reads_pictures(stage: Mapping[str, Labeler]) -> bool:
    return any(PICTURES in labeler.reads for labeler in stage.values())


class _Read:
    """Stage 1: the columns that labelers read from stored shards, and the pictures decoded, once."""

    def __init__(self, dataset: Dataset, active: Mapping[str, Labeler]) -> None:
        self.dataset = dataset
        self.reads = {group: labeler.reads for group, labeler in active.items()}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        groups = row["groups"].split(",")
        wanted: dict[str, set[str]] = {"images": {"id"}}
        for column in {column for group in groups for column in self.reads[group]}:
            group, _, name = column.partition(".")
            if group not in groups:  # otherwise it is made in this pass
                wanted.setdefault(group, set()).add(name)
        decode = wanted["images"] and "image" in wanted["images"]
        columns: dict[str, pa.Array] = {}
        for group, names in sorted(wanted.items()):
            table = self.dataset.read(group, row["shard"], sorted(names), [row["row_group"]])
            for name in table.column_names:
                columns[name if group == "images" and name == "id" else f"{group}.{name}"] = table[name]
        pictures = columns.pop(PICTURES).to_pylist() if decode else None
        return {
            **row,
            "columns": _to_bytes(pa.table(columns)),
            "pictures": _pack(pictures) if pictures is not None else b"",
            "rows": len(columns["id"]),
        }


class _Label:
    """The actor of one stage: its labelers' columns are added to the row, as bytes."""

    def __init__(self, stage: Mapping[str, Labeler], sets: bool, drop_pictures: bool) -> None:
        self.stage = stage
        self.sets = sets
        self.drop_pictures = drop_pictures
        for labeler in stage.values():
            labeler.load()

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        wanted = row["groups"].split(",")
        done = dict(row)
        pictures = _unpack(row["pictures"]) if row["pictures"] and _reads_pictures(self.stage) else None
        for group, labeler in self.stage.items():
            labeled, seconds = b"", 0.0
            if group in wanted:
                started = time.monotonic()
                labeled = _to_bytes(label_table(labeler, self._rows(done, labeler, pictures), self.sets))
                seconds = time.monotonic() - started
            done |= {f"{group}:table": labeled, f"{group}:seconds": seconds}
        return done | ({"pictures": b""} if self.drop_pictures else {})

    def _rows(self, row: dict[str, Any], labeler: Labeler, pictures: list[Any] | None) -> list[dict[str, Any]]:
        stored = _from_bytes(row["columns"])
        values = {name: stored[name].to_pylist() for name in stored.column_names if name in ("id", *labeler.reads)}
        for column in labeler.reads:
            group, _, name = column.partition(".")
            if row.get(f"{group}:table"):
                values[column] = _from_bytes(row[f"{group}:table"])[name].to_pylist()
        if PICTURES in labeler.reads:
            values[PICTURES] = pictures
        return [dict(zip(values, together, strict=True)) for together in zip(*values.values(), strict=True)]


class _Gather:
    """Last stage: a row group's small columns go to the writer that its shard belongs to."""

    def __init__(self, writers: Sequence[Any], groups: Sequence[str]) -> None:
        self.writers = writers
        self.groups = groups

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        import ray

        writer = self.writers[int(row["shard"]) % len(self.writers)]
        tables = {group: row[f"{group}:table"] for group in self.groups if row[f"{group}:table"]}
        ray.get(writer.add.remote(row["shard"], row["row_group"], tables))
        return {
            "rows": row["rows"],
            "groups": ",".join(tables),
            **{f"{g}:seconds": row[f"{g}:seconds"] for g in self.groups},
        }


class _ShardWriter:
    """Collects the row groups of shards as they come and writes each shard when its last one is there."""

    def __init__(
        self,
        dataset: Dataset,
        declarations: Mapping[str, Mapping[str, Any]],
        footers: Mapping[str, Mapping[str, Footer]],
    ) -> None:
        self.dataset = dataset
        self.declarations = declarations
        self.footers = {group: dict(shards) for group, shards in footers.items()}
        self.parts: dict[str, dict[int, Mapping[str, bytes]]] = {}
        self.count: Counter[str] = Counter()

    def add(self, shard: str, row_group: int, tables: Mapping[str, bytes]) -> None:
        parts = self.parts.setdefault(shard, {})
        parts[row_group] = tables
        row_groups = self.footers["images"][shard].row_groups
        if len(parts) < len(row_groups):
            return
        del self.parts[shard]
        for group in self.declarations:  # in the order of dependence: a recipe names the content of what was read
            if group not in tables:
                continue
            table = pa.concat_tables([_from_bytes(parts[index][group]) for index in range(len(row_groups))])
            wanted = expected_recipe(self.declarations[group], shard, self.footers)
            assert wanted is not None, f"{group}/{shard} was labeled before what it reads"
            self.footers.setdefault(group, {})[shard] = write_shard(
                self.dataset.store, group, shard, table, row_groups, wanted
            )
            self.count[group] += 1

    def written(self) -> tuple[Counter[str], bool]:
        """Shards by group, and whether this is another process than the one that began, with none of its parts."""
        import ray

        return self.count, ray.get_runtime_context().was_current_actor_reconstructed


def _pack(encoded: Sequence[Any]) -> bytes:
    """Decoded pictures as one run of bytes: [views, then height and width of each] and pixels; sets nest once."""
    from model.pictures import decode_picture

    parts: list[bytes] = []
    for row in encoded:
        views = row if isinstance(row, list) else [row]
        pictures = [decode_picture(view) for view in views]
        header = [len(pictures) if isinstance(row, list) else 0]
        header += [side for picture in pictures for side in picture.shape[:2]]
        parts += [np.array(header, np.int32).tobytes(), *(picture.tobytes() for picture in pictures)]
    return b"".join(parts)


def _unpack(packed: bytes) -> list[Any]:
    data = np.frombuffer(packed, np.uint8)
    rows: list[Any] = []
    start = 0

    def integers(count: int) -> list[int]:
        nonlocal start
        start += 4 * count
        return [int(value) for value in np.frombuffer(data[start - 4 * count : start].tobytes(), np.int32)]

    while start < len(data):
        views = integers(1)[0]
        sizes = integers(2 * max(views, 1))
        pictures = []
        for height, width in zip(sizes[::2], sizes[1::2], strict=True):
            pictures.append(data[start : start + height * width * 3].reshape(height, width, 3))
            start += height * width * 3
        rows.append(pictures if views else pictures[0])
    return rows


def _to_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def _from_bytes(data: bytes) -> pa.Table:
    return pa.ipc.open_stream(data).read_all()
