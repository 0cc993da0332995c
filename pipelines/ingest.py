"""The ingest job: raw images → the images group and rejected/. List, compare, write what is new, take over changes."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from labeling.dataset import GROUP_FILE, IMAGES, REJECTED, Dataset, LocalStore, ShardInfo, Store, lease, shard_file
from labeling.dataset.index import INDEX
from labeling.sources.changes import forget_rejected
from labeling.sources.cutting import SHARD_BYTES, SHARD_ROWS
from labeling.sources.facts import Naming
from labeling.sources.ingest import VERSION, Ingestion, Limits, ShardResult
from labeling.sources.items import Contents
from labeling.sources.listing import PackedFile, look_inside
from labeling.sources.seen import ITEMS
from labeling.sources.source import Source
from labeling.sources.survey import Findings, Survey, read_description, survey_dataset
from model.constants import MAX_PIXELS, MIN_SIDE
from model.inputs import InputError
from pipelines.ingest_job.addresses import ListIngest, ListOptions, open_addresses
from pipelines.ingest_job.changing import Changed, drop_moved, drop_others, take_over_changes
from pipelines.ingest_job.new_shards import NewShards
from pipelines.ingest_job.workers import Workers

_HERE_FILES, _HERE_BYTES = 500, 64 << 20  # below these, all is done before Ray would have started
_HERE_ARCHIVES, _HERE_ARCHIVE_BYTES = 64, 1 << 30  # likewise, for looking what archives hold
_THREADS = 8
_SHOWN = 12  # names of columns in a remark


@dataclass(frozen=True)
class IngestResult:
    """Images added by this run, files rejected by it, and how many images the dataset has now.

    changed, gone: pictures that differ from what was ingested, or are no longer at the source; replaced, removed: rows
    that this run has replaced, or marked as removed. remarks: lines for the user.
    """

    added: int
    rejected: int
    images: int
    changed: int = 0
    gone: int = 0
    replaced: int = 0
    removed: int = 0
    remarks: list[str] = field(default_factory=list, compare=False)

    def summary(self, dataset: str) -> list[str]:
        """Lines that say what was done."""
        line = f"{self.added} pictures added, {self.rejected} files rejected; {self.images} pictures in {dataset}"
        done = {"replaced": self.replaced, "marked as removed": self.removed}
        parts = [f"{count} {what}" for what, count in done.items() if count]
        return [line, *([", ".join(parts)] if parts else []), *self.remarks]


def ingest(
    source_uri: str,
    dataset_uri: str,
    shard_rows: int = SHARD_ROWS,
    shard_bytes: int = SHARD_BYTES,
    max_pixels: int = MAX_PIXELS,
    min_side: int = MIN_SIDE,
    text: str = "",
    image: str = "",
    update: bool = False,
    prune: bool = False,
    listed: ListOptions = ListOptions(),  # noqa: B008 it is frozen
) -> IngestResult:
    """Add the images of a source that the dataset does not have yet: in this process where they are few, else on Ray.

    Shards are cut from the sorted listing; of equal files the first one stays, the others go to rejected/ with what
    they equal. An interrupted run continues with the shards it had not written. text, image: columns of the source
    with the caption and the picture, where they have other names than usual. update: take over what has changed at the
    source; prune: mark rows whose pictures are gone there. listed: how a list of addresses is fetched.
    Raises InputError for an empty source, a target that cannot be written, a dataset of sets, or a source with no image
    at all.
    """
    source = Source(source_uri, Naming(text, image))
    target = Dataset(dataset_uri)
    limits = Limits(max_pixels, min_side)
    if addresses := open_addresses(source, target, listed, _inside(source.store, target.store)):
        if update or prune:
            raise InputError(f"{source_uri}: rows of a list of addresses cannot be updated or pruned once ingested")
        work = ListIngest(source.address, addresses, target, limits, _declaration(limits), shard_rows, listed)
        done = work.run()
        return IngestResult(done.added, done.rejected, done.images, remarks=done.remarks)
    survey = survey_dataset(source.address, dataset_uri)
    with Workers() as workers:
        look = partial(_look_inside, workers)
        listing = source.listing(look, survey.seen.packed_tags, _inside(source.store, target.store))
        findings = survey.findings(listing)
        if not findings:
            return IngestResult(0, 0, _rows(survey.shards), remarks=listing.remarks)
        with target.store.without_empty_folders([REJECTED, ITEMS]), lease(target.store, [IMAGES]):
            if read_description(dataset_uri) != survey.description:  # another ingest has ended since
                survey = survey_dataset(source.address, dataset_uri)
                findings = survey.findings(listing)
            on_cluster = _is_large(findings)
            threads = 1 if on_cluster else min(_THREADS, os.cpu_count() or 1)
            ingestion = Ingestion(source, target, limits, _declaration(limits), threads)
            results: list[ShardResult] = []
            if findings.count:
                target.declare(IMAGES, ingestion.declaration)
                results = NewShards(ingestion, survey, findings, shard_rows, shard_bytes).write(workers, on_cluster)
            shards = [ShardInfo(result.shard, result.rows, survey.source_number) for result in results]
            if not _rows(shards) and not survey.shards:
                raise _nothing_to_keep(source_uri, target, shards, findings.count)
            names = [shard.name for shard in shards]
            changed = take_over_changes(ingestion, survey, findings, names, workers, on_cluster, update)
            _describe(target, survey, findings, shards, changed, prune)
    added = _rows(shards)
    return IngestResult(
        added,
        findings.count - added,
        _rows(survey.shards) + added,
        changed.changed,
        len(findings.gone),
        changed.replaced,
        len(findings.gone) if prune else 0,
        [*listing.remarks, *_remarks(results, source, changed, findings, update, prune)],
    )


def _is_large(findings: Findings) -> bool:
    """Whether there is so much to read that Ray does it."""
    tables = (findings.new, findings.comparison.candidates)
    size = sum(pc.sum(items["size"]).as_py() or 0 for items in tables)
    return sum(items.num_rows for items in tables) > _HERE_FILES or size > _HERE_BYTES


def _describe(
    target: Dataset, survey: Survey, findings: Findings, shards: Sequence[ShardInfo], changed: Changed, prune: bool
) -> None:
    """Record what the dataset consists of by now, and remove what new and changed rows have replaced."""
    drop_others(findings, target, changed)
    drop_moved(findings, target, [shard.name for shard in shards])
    removed = _marks(survey, findings, prune)
    if shards or removed != survey.removed:
        target.describe("pictures", [*survey.shards, *shards], survey.sources, removed)
    again = pa.concat_arrays([findings.again, changed.twins])
    if len(again):
        own = [shard for shard in survey.shards if shard.source == survey.source_number]
        forget_rejected(Dataset(target.uri), own, again)
    Dataset(target.uri).footers(IMAGES, save=True)  # for the labels that come next


def _declaration(limits: Limits) -> dict[str, Any]:
    return {
        "labeler": "ingest",
        "version": VERSION,
        "parameters": asdict(limits),
        "weights": "",
        "reads": [],
    }


def _rows(shards: Sequence[ShardInfo]) -> int:
    return sum(shard.rows for shard in shards)


def _look_inside(workers: Workers, store: Store, files: Sequence[PackedFile]) -> Iterator[Contents]:
    """What archives and tables hold, in their order: on Ray where they are many."""
    size = sum(file.entry.size for file in files)
    if len(files) <= _HERE_ARCHIVES and (size <= _HERE_ARCHIVE_BYTES or len(files) == 1):
        return look_inside(store, files)
    calls = ((number, store, file) for number, file in enumerate(files))
    contents = dict(workers.map(_numbered_contents, calls, on_cluster=True))
    return (contents[number] for number in range(len(files)))


def _numbered_contents(number: int, store: Store, file: PackedFile) -> tuple[int, Contents]:
    return number, file.contents(store)


def _inside(source: Store, target: Store) -> str:
    """The folder of the dataset in its source, "" where it lies elsewhere: its shards are no pictures to ingest."""
    if isinstance(source, LocalStore) and isinstance(target, LocalStore):
        inner, outer = Path(os.path.realpath(target.uri)), Path(os.path.realpath(source.uri))
        return inner.relative_to(outer).as_posix() if inner.is_relative_to(outer) and inner != outer else ""
    return target.uri.removeprefix(f"{source.uri}/") if target.uri.startswith(f"{source.uri}/") else ""


def _marks(survey: Survey, findings: Findings, prune: bool) -> dict[str, list[int]]:
    """Shard → rows that are marked as removed from now on."""
    removed = {shard: set(rows) for shard, rows in survey.removed.items()}
    for shard, rows in findings.back.items():
        removed[shard] -= set(rows)
    for shard, row in findings.gone.values() if prune else ():
        removed.setdefault(shard, set()).add(row)
    return {shard: sorted(rows) for shard, rows in removed.items() if rows}


def _nothing_to_keep(source_uri: str, target: Dataset, shards: Sequence[ShardInfo], files: int) -> InputError:
    """Remove what a source without any image has left, and say why there is none."""
    reasons = Counter(row["reason"] for row in target.read(REJECTED, shards[0].name).to_pylist())
    for shard in shards:
        for group in (IMAGES, REJECTED, ITEMS):
            target.store.delete(shard_file(group, shard.name))
    for part in target.store.files(IMAGES, INDEX):
        target.store.delete(f"{IMAGES}/{part}")
    target.store.delete(f"{IMAGES}/{GROUP_FILE}")
    return InputError(f"{source_uri}: none of {files} files is a picture ({reasons.most_common(1)[0][0]})")


def _remarks(
    results: Iterable[ShardResult], source: Source, changed: Changed, findings: Findings, update: bool, prune: bool
) -> Iterator[str]:
    """What a user should know: columns that no column of images has, and what has changed at the source."""
    kept = sorted({name for result in results for name in result.kept})
    if kept:
        shown = ", ".join(kept[:_SHOWN]) + (f" and {len(kept) - _SHOWN} more" if len(kept) > _SHOWN else "")
        yield f"kept in images.metadata: {shown} (--text COLUMN makes one of them the caption)"
    counts: Mapping[str, tuple[int, str, bool]] = {
        "changed": (changed.changed, "--update", update),
        "gone": (len(findings.gone), "--prune", prune),
    }
    parts = [f"{count} {what}" for what, (count, _, is_requested) in counts.items() if count and not is_requested]
    options = [option for count, option, is_requested in counts.values() if count and not is_requested]
    if parts:
        advice = {"--update": "--update takes them over", "--prune": "--prune marks their rows as removed"}
        yield f"at the source, {' and '.join(parts)}: {', '.join(advice[option] for option in options)}"
    if update and changed.changed > changed.replaced:
        yield f"{changed.changed - changed.replaced} changed pictures could not be taken over; rejected/ says why"
    if changed.twins:
        yield f"{len(changed.twins)} files equaled what was replaced: ingest once more to take them"
    back = sum(len(rows) for rows in findings.back.values())
    if back:
        yield f"{back} {'picture is' if back == 1 else 'pictures are'} back at the source; the mark is taken off"
