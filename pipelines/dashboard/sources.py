"""What a dataset lacks: pictures that are new in its sources, and labels of its shards."""

from __future__ import annotations

from dataclasses import dataclass

from labeling.dataset import IMAGES, Dataset, digest_column, digest_json, is_leased
from labeling.sources.source import Source
from labeling.sources.survey import survey_dataset
from model.inputs import InputError, WorkFailed, one_line
from pipelines.dashboard.check_outcomes import CheckOutcome
from pipelines.dashboard.snapshots import Snapshot
from pipelines.ingest_job.addresses import new_ranges, open_addresses

SHOWN_NAMES = 20


@dataclass(frozen=True)
class NewFiles:
    """Pictures of a source that are not in the dataset yet: how many, and some of their names.

    identity: digest of all their names.
    """

    source: str
    count: int
    names: list[str]
    identity: str


def sources_digest(snapshot: Snapshot) -> str:
    """Digest of the names and sizes of the files in a dataset's sources. No file is opened.

    Other files in the same folders, such as those of the dataset itself, do not count. Raises InputError, OSError.
    """
    listings = [(uri, Source(uri).files()[0]) for uri in snapshot.sources]
    return digest_json([[uri, digest_column(files["name"]), digest_column(files["size"])] for uri, files in listings])


def new_files(snapshot: Snapshot) -> list[NewFiles]:
    """The new pictures of each source that has some. Raises InputError, or OSError, where one cannot be listed."""
    new: list[NewFiles] = []
    for uri in snapshot.sources:
        source = Source(uri)
        dataset = Dataset(snapshot.tracked.address)
        try:
            if addresses := open_addresses(source, dataset):
                if rows := new_ranges(source.address, addresses, dataset):
                    new.append(NewFiles(uri, sum(rows.values()), list(rows)[:SHOWN_NAMES], digest_json(rows)))
                continue
            survey = survey_dataset(source.address, snapshot.tracked.address)
            listing = source.listing(known=survey.seen.packed_tags)
        except InputError as error:
            if "no files there" in str(error):  # a source that was emptied has nothing new
                continue
            raise
        findings = survey.findings(listing)
        if findings.count:
            names = [*findings.new["name"].to_pylist(), *(trouble.name for trouble in findings.troubles)]
            new.append(NewFiles(uri, len(names), names[:SHOWN_NAMES], digest_json(names)))
    return new


def unlabeled_shards(snapshot: Snapshot) -> dict[str, list[str]]:
    """Declared group of labels → names of the shards that it lacks. Costs one listing for each group."""
    dataset = Dataset.open(snapshot.tracked.address)
    shards = {}
    for group in snapshot.labels:
        labeled = dataset.shard_entries(group)
        missing = [shard.name for shard in dataset.shards if shard.name not in labeled]
        if missing:
            shards[group] = missing
    return shards


def leased_group(snapshot: Snapshot) -> str:
    """A group of a dataset that a job works on now, "" if there is none. Another job on it would be refused."""
    store = Dataset(snapshot.tracked.address).store
    for group in snapshot.groups:
        if is_leased(store, group):
            return group
    return ""


def source_outcome(snapshot: Snapshot) -> tuple[CheckOutcome, list[NewFiles]]:
    """Outcome of the check `sources`, and the new pictures (none where a source cannot be listed)."""
    key = (snapshot.tracked.name, IMAGES)
    try:
        new = new_files(snapshot)
    except (InputError, WorkFailed, OSError) as error:
        return CheckOutcome(key, "sources", False, f"a source cannot be listed: {one_line(error)}"), []
    count = sum(files.count for files in new)
    description = "; ".join(f"{files.count} new in {files.source}" for files in new)
    if count:
        description += ": run the job ingest_pictures to add and label them"
    else:
        description = "all pictures are in the dataset"
    return CheckOutcome(key, "sources", not count, description, {"new pictures": count}), new
