"""Two sensors: one follows what happens elsewhere, one notices new pictures in the sources of all datasets."""

# Without `from __future__ import annotations`, since Dagster reads the annotations of its steps.
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import dagster as dg

from labeling.dataset import IMAGES, digest_json
from model.inputs import one_line
from pipelines.dashboard.background import at_low_priority
from pipelines.dashboard.check_outcomes import report_outcomes
from pipelines.dashboard.dagster_jobs import ingest_pictures
from pipelines.dashboard.follower import Follower
from pipelines.dashboard.snapshots import Snapshot, read_snapshot, snapshots
from pipelines.dashboard.sources import NewFiles, leased_group, source_outcome, sources_digest, unlabeled_shards
from pipelines.dashboard.tracked_assets import TrackedAsset

FOLLOW_SECONDS, PICTURE_SECONDS = 10, 30
TICK_SECONDS = 3.0  # that a tick takes, and the group or dataset that it is at
REMOTE_SECONDS = 300.0  # between listings of sources that are not on this machine
LISTING_PAUSE = 20.0  # between two listings, as a multiple of the time that one takes
# After a run that failed, the next one waits RETRY_SECONDS, after each further failure twice as long.
RETRY_SECONDS, MAX_DOUBLINGS, MAX_RUNS = 300.0, 6, 100
# Tags of the runs that are requested: the dataset, what it was to add and to label, and how the sources were listed.
DATASET_TAG, WORK_TAG, LISTING_TAG = "onediffusion/new pictures", "onediffusion/work", "onediffusion/listing"
_followers: dict[str, Follower] = {}


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
    return dg.SkipReason("; ".join(at_low_priority(lambda: follower.follow(TICK_SECONDS))) or "nothing new")


@dataclass(frozen=True)
class PictureCursor:
    """What the picture sensor remembers of a dataset, stored as JSON: its field names stay.

    looked: when it was looked at last; due: when to list the sources again; listing: their digest; dealt: digest of all
    that decided what was done last; again: when to decide once more although nothing has changed (0: never). looked,
    due, again: Unix times.
    """

    looked: float = 0.0
    due: float = 0.0
    listing: str = ""
    dealt: str = ""
    again: float = 0.0


@dataclass(frozen=True)
class _Outcome:
    """What became of a look at a dataset's sources: in a line, what to remember, and the run that is requested."""

    reason: str
    cursor: PictureCursor
    request: dg.RunRequest | None = None


# One for all datasets: Dagster's daemon spends CPU and writes on every sensor, and a lab has fifty datasets.
@dg.sensor(
    job=ingest_pictures,
    minimum_interval_seconds=PICTURE_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Notices new pictures in the sources of datasets, and reports them, or requests a run that adds them.",
)
def new_pictures(context: dg.SensorEvaluationContext) -> dg.SensorResult:
    """Look at the sources of as many datasets as fit into the tick, first at those not looked at for longest."""
    before = _parse(context.cursor)
    outcomes = at_low_priority(lambda: _look(context.instance, before))
    cursors = before | {name: outcome.cursor for name, outcome in outcomes.items()}
    kept = {snapshot.tracked.name for snapshot in snapshots()}
    cursor = json.dumps({name: asdict(one) for name, one in cursors.items() if name in kept})
    requests = [outcome.request for outcome in outcomes.values() if outcome.request]
    if requests:
        return dg.SensorResult(run_requests=requests, cursor=cursor)
    lines = [f"{name}: {outcome.reason}" for name, outcome in outcomes.items()]
    return dg.SensorResult(skip_reason="; ".join(lines) or "no sources to look at now", cursor=cursor)


def _parse(cursor: str | None) -> dict[str, PictureCursor]:
    try:
        return {name: PictureCursor(**values) for name, values in json.loads(cursor or "{}").items()}
    except (ValueError, TypeError, AttributeError):  # written by another version
        return {}


def _look(instance: dg.DagsterInstance, cursors: Mapping[str, PictureCursor]) -> dict[str, _Outcome]:
    """Name → outcome, of the datasets that were looked at."""
    datasets = [one.tracked for one in snapshots() if one.has_sources and one.tracked.new_pictures != "ignore"]
    known = {tracked.name: cursors.get(tracked.name, PictureCursor()) for tracked in datasets}
    outcomes: dict[str, _Outcome] = {}
    deadline = time.monotonic() + TICK_SECONDS
    for tracked in sorted(datasets, key=lambda one: known[one.name].looked):
        cursor = known[tracked.name]
        if time.time() < cursor.due:
            continue
        try:
            outcome = _notice(instance, tracked, cursor)
        except Exception as error:  # the others are looked at all the same, and this one not again at once
            outcome = _Outcome(one_line(error), replace(cursor, due=time.time() + REMOTE_SECONDS))
        outcomes[tracked.name] = replace(outcome, cursor=replace(outcome.cursor, looked=time.time()))
        if time.monotonic() > deadline:
            break
    return outcomes


def _notice(instance: dg.DagsterInstance, tracked: TrackedAsset, cursor: PictureCursor) -> _Outcome:
    runs = instance.get_run_records(dg.RunsFilter(tags={DATASET_TAG: tracked.name}), limit=MAX_RUNS)
    if runs and not runs[0].dagster_run.is_finished:
        return _Outcome(f"run {runs[0].dagster_run.run_id[:8]} is adding pictures", cursor)
    began = time.time()
    snapshot = read_snapshot(tracked)
    listing = sources_digest(snapshot)
    remote = any(uri.startswith("s3://") for uri in snapshot.sources)
    pause = REMOTE_SECONDS if remote else LISTING_PAUSE * (time.time() - began)
    is_stable = listing == cursor.listing
    cursor = replace(cursor, listing=listing, due=time.time() + pause if pause > PICTURE_SECONDS else 0.0)
    if not is_stable:  # a file that is still being copied would be rejected
        return _Outcome("the sources have changed; what is new there is looked at once they rest", cursor)
    declared = {group: snapshot.code_version(group) for group in snapshot.labels}
    last = [runs[0].dagster_run.run_id, runs[0].dagster_run.status.value] if runs else []
    digest = digest_json([listing, snapshot.shards, declared, tracked.new_pictures, last])
    if digest == cursor.dealt and not 0.0 < cursor.again < time.time():
        return _Outcome("the sources are as they were", cursor)
    cursor = replace(cursor, dealt=digest, again=0.0)
    outcome, new = source_outcome(snapshot)
    report_outcomes(instance, [outcome], repeat_seconds=0.0)
    if not outcome.passed and not new:
        return _Outcome(outcome.description, replace(cursor, again=time.time() + RETRY_SECONDS))
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
    return _Outcome(outcome.description, cursor)


def _build(
    snapshot: Snapshot, new: Sequence[NewFiles], runs: Sequence[dg.RunRecord], description: str, cursor: PictureCursor
) -> _Outcome:
    """Request a run where there is work and no other run or job does it; after one that failed, again some time later.

    Shards without labels are work as well, whatever became of the run that was to make them.
    """
    unlabeled = unlabeled_shards(snapshot)
    if not new and not unlabeled:
        return _Outcome(description, cursor)
    group = leased_group(snapshot)
    if group:
        return _Outcome(f"a job is working on {group}", replace(cursor, again=time.time() + RETRY_SECONDS))
    work = digest_json([[[files.source, files.identity] for files in new], sorted(unlabeled.items())])
    statuses = [run.dagster_run.status for run in runs if run.dagster_run.tags.get(WORK_TAG) == work]
    last = runs[0].dagster_run if runs else None
    if last and last.status == dg.DagsterRunStatus.CANCELED and last.tags.get(LISTING_TAG) == cursor.listing:
        return _Outcome("its run was terminated; ingest_pictures can be launched again", cursor)
    if dg.DagsterRunStatus.SUCCESS in statuses[:1]:
        return _Outcome("a run of these has succeeded, and they are still not there; its log may say why", cursor)
    if last and last.status == dg.DagsterRunStatus.FAILURE:
        failures = sum(status == dg.DagsterRunStatus.FAILURE for status in statuses)
        wait = RETRY_SECONDS * 2 ** min(max(failures - 1, 0), MAX_DOUBLINGS)
        again = (runs[0].end_time or runs[0].create_timestamp.timestamp()) + wait
        if time.time() < again:
            return _Outcome(
                f"its run failed; it is asked for again in {(again - time.time()) / 60:.0f} min",
                replace(cursor, again=again),
            )
    request = dg.RunRequest(
        # The key names the work, so that it is never requested twice, even where this tick is lost.
        run_key=f"{snapshot.tracked.name} {work} {last.run_id if last else ''}",
        run_config={"ops": {"add_pictures": {"config": {"dataset": snapshot.tracked.name}}}},
        tags={DATASET_TAG: snapshot.tracked.name, WORK_TAG: work, LISTING_TAG: cursor.listing},
    )
    return _Outcome(description, cursor, request)
