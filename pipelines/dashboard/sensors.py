"""Sensors: one that follows what happens elsewhere, and one for each dataset that notices new pictures."""

# Without `from __future__ import annotations`, since Dagster reads the annotations of its steps.
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import dagster as dg

from labeling.dataset import IMAGES, digest_json
from model.inputs import InputError, WorkFailed, one_line
from pipelines.dashboard.check_outcomes import report_outcomes
from pipelines.dashboard.dagster_jobs import ingest_pictures
from pipelines.dashboard.follower import Follower
from pipelines.dashboard.snapshots import Snapshot, read_snapshot
from pipelines.dashboard.sources import NewFiles, leased_group, source_outcome, sources_digest, unlabeled_shards
from pipelines.dashboard.tracked_assets import TrackedAsset, find_tracked, tracked_assets

FOLLOW_SECONDS, PICTURE_SECONDS = 10, 30
TICK_SECONDS = 3.0  # that following takes at a time, and a group more; pages of the code server wait meanwhile
AT_ONCE = 5  # picture sensors that begin together: at its start a lab's fifty would hold up the first pages
REMOTE_SECONDS = 300.0  # between listings of sources that are not on this machine
LISTING_PAUSE = 20.0  # between two listings, as a multiple of the time that one takes
# After a run that failed, the next one waits RETRY_SECONDS, after each further failure twice as long.
RETRY_SECONDS, MAX_DOUBLINGS, MAX_RUNS = 300.0, 6, 100
# Tags of the runs that are requested: the dataset, what it was to add and to label, and how the sources were listed.
DATASET_TAG, WORK_TAG, LISTING_TAG = "onediffusion/new pictures", "onediffusion/work", "onediffusion/listing"
_followers: dict[str, Follower] = {}
_loaded = time.time()


@dg.sensor(
    minimum_interval_seconds=FOLLOW_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells Dagster of shards and checkpoints that were made elsewhere, and runs the checks on them.",
)
def follow(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Report changes; no run is ever requested."""
    # The follower lives longer than a tick, since it remembers what Dagster knows; its instance changes with each tick.
    follower = _followers.setdefault(context.instance.root_directory, Follower(context.instance))
    follower.reporter.instance = follower.instance = context.instance
    return dg.SkipReason("; ".join(follower.follow(TICK_SECONDS)) or "nothing new")


@dataclass(frozen=True)
class PictureCursor:
    """What a picture sensor remembers, stored as JSON: its field names stay.

    due: when to list the sources again; listing: their digest; dealt: digest of all that decided what was done last;
    again: when to decide once more although nothing has changed (0: never). due, again: Unix times.
    """

    due: float = 0.0
    listing: str = ""
    dealt: str = ""
    again: float = 0.0


def picture_sensor(snapshot: Snapshot) -> dg.SensorDefinition:
    """Notices pictures that are new in a dataset's sources, and reports them, or requests a run that adds them."""
    name = snapshot.tracked.name

    @dg.sensor(
        name=f"new_pictures_{name}",
        job=ingest_pictures,
        minimum_interval_seconds=PICTURE_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Notices new pictures in {', '.join(snapshot.sources)}.",
    )
    def notice(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        cursor = _parse(context.cursor)
        try:
            tracked = find_tracked(name)
            if tracked.new_pictures == "ignore":
                return dg.SkipReason("new pictures are ignored here")
            if (wait := _turn(tracked) - time.time()) > 0:
                return dg.SkipReason(f"the sources of other datasets come first, for {wait:.0f} s")
            return _notice(context.instance, tracked, cursor)
        except (InputError, WorkFailed, OSError) as error:  # a source that does not answer is not listed again at once
            return _skip(one_line(error), replace(cursor, due=time.time() + REMOTE_SECONDS))

    return notice


def _turn(tracked: TrackedAsset) -> float:
    """When the sources of a dataset are first listed, as Unix time: the first few at once, the others after them."""
    names = [asset.name for asset in tracked_assets() if asset.kind == "dataset"]
    return _loaded + names.index(tracked.name) // AT_ONCE * PICTURE_SECONDS if tracked.name in names else _loaded


def _parse(cursor: str | None) -> PictureCursor:
    try:
        return PictureCursor(**json.loads(cursor or "{}"))
    except (ValueError, TypeError):  # written by another version
        return PictureCursor()


def _notice(
    instance: dg.DagsterInstance, tracked: TrackedAsset, cursor: PictureCursor
) -> dg.SensorResult | dg.SkipReason:
    if time.time() < cursor.due:
        return dg.SkipReason(f"the sources are listed again in {cursor.due - time.time():.0f} s")
    runs = instance.get_run_records(dg.RunsFilter(tags={DATASET_TAG: tracked.name}), limit=MAX_RUNS)
    if runs and not runs[0].dagster_run.is_finished:
        return dg.SkipReason(f"run {runs[0].dagster_run.run_id[:8]} is adding pictures")
    began = time.time()
    snapshot = read_snapshot(tracked)
    listing = sources_digest(snapshot)
    remote = any(uri.startswith("s3://") for uri in snapshot.sources)
    pause = REMOTE_SECONDS if remote else LISTING_PAUSE * (time.time() - began)
    is_stable = listing == cursor.listing
    cursor = replace(cursor, listing=listing, due=time.time() + pause if pause > PICTURE_SECONDS else 0.0)
    if not is_stable:  # a file that is still being copied would be rejected
        return _skip("the sources have changed; what is new there is looked at once they rest", cursor)
    declared = {group: snapshot.code_version(group) for group in snapshot.labels}
    last = [runs[0].dagster_run.run_id, runs[0].dagster_run.status.value] if runs else []
    digest = digest_json([listing, snapshot.shards, declared, tracked.new_pictures, last])
    if digest == cursor.dealt and not 0.0 < cursor.again < time.time():
        return _skip("the sources are as they were", cursor)
    cursor = replace(cursor, dealt=digest, again=0.0)
    outcome, new = source_outcome(snapshot)
    report_outcomes(instance, [outcome], repeat_seconds=0.0)
    if not outcome.passed and not new:
        return _skip(outcome.description, replace(cursor, again=time.time() + RETRY_SECONDS))
    if tracked.new_pictures == "build":
        return _build(snapshot, new, runs, outcome.description, cursor)
    if new:
        names = ", ".join(name for files in new for name in files.names)
        instance.report_runless_asset_event(
            dg.AssetObservation(
                dg.AssetKey([tracked.name, IMAGES]),
                metadata={"new pictures": outcome.description, "names": names[:900]},
            )
        )
    return _skip(outcome.description, cursor)


def _build(
    snapshot: Snapshot, new: Sequence[NewFiles], runs: Sequence[dg.RunRecord], description: str, cursor: PictureCursor
) -> dg.SensorResult:
    """Request a run where there is work and no other run or job does it; after one that failed, again some time later.

    Shards without labels are work as well, whatever became of the run that was to make them.
    """
    unlabeled = unlabeled_shards(snapshot)
    if not new and not unlabeled:
        return _skip(description, cursor)
    group = leased_group(snapshot)
    if group:
        return _skip(f"a job is working on {group}", replace(cursor, again=time.time() + RETRY_SECONDS))
    work = digest_json([[[files.source, files.identity] for files in new], sorted(unlabeled.items())])
    statuses = [run.dagster_run.status for run in runs if run.dagster_run.tags.get(WORK_TAG) == work]
    last = runs[0].dagster_run if runs else None
    if last and last.status == dg.DagsterRunStatus.CANCELED and last.tags.get(LISTING_TAG) == cursor.listing:
        return _skip("its run was terminated; ingest_pictures can be launched again", cursor)
    if dg.DagsterRunStatus.SUCCESS in statuses[:1]:
        return _skip("a run of these has succeeded, and they are still not there; its log may say why", cursor)
    if last and last.status == dg.DagsterRunStatus.FAILURE:
        failures = sum(status == dg.DagsterRunStatus.FAILURE for status in statuses)
        wait = RETRY_SECONDS * 2 ** min(max(failures - 1, 0), MAX_DOUBLINGS)
        again = (runs[0].end_time or runs[0].create_timestamp.timestamp()) + wait
        if time.time() < again:
            return _skip(
                f"its run failed; it is asked for again in {(again - time.time()) / 60:.0f} min",
                replace(cursor, again=again),
            )
    request = dg.RunRequest(
        # The key names the work, so that it is never requested twice, even where this tick is lost.
        run_key=f"{work} {last.run_id if last else ''}",
        run_config={"ops": {"add_pictures": {"config": {"dataset": snapshot.tracked.name}}}},
        tags={DATASET_TAG: snapshot.tracked.name, WORK_TAG: work, LISTING_TAG: cursor.listing},
    )
    return dg.SensorResult(run_requests=[request], cursor=json.dumps(asdict(cursor)))


def _skip(reason: str, cursor: PictureCursor) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=reason, cursor=json.dumps(asdict(cursor)))
