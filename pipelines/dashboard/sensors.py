"""Sensors: one that follows what happens elsewhere, and for each dataset one that notices new pictures."""

# No postponed annotations: Dagster reads those of its steps.
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import dagster as dg

from labeling.dataset import digest_json
from model.inputs import InputError, one_line
from pipelines.dashboard.checks import report_verdicts
from pipelines.dashboard.follower import Follower
from pipelines.dashboard.jobs import ingest_pictures
from pipelines.dashboard.snapshots import Snapshot, look
from pipelines.dashboard.sources import News, listing, source_verdict, unlabeled, worked_on_now
from pipelines.dashboard.tracked_assets import Place, find_place

FOLLOW_SECONDS, PICTURE_SECONDS = 10, 30
FAR_SECONDS = 300.0  # between listings of sources that are not on this machine
LISTING_SHARE = 20.0  # of the time that a listing takes, between two of them
RETRY_SECONDS, MOST_DOUBLINGS, MOST_RUNS = 300.0, 6, 100  # after a run that failed; each time it does, twice as long
# Tags of the runs that are asked for: the dataset, what it was to add and to label, and how the sources were listed.
PLACE, WORK, LISTING = "onediffusion/new pictures", "onediffusion/work", "onediffusion/listing"
_followers: dict[str, Follower] = {}


@dg.sensor(
    minimum_interval_seconds=FOLLOW_SECONDS,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Tells Dagster of shards and checkpoints that were made elsewhere, and runs the checks on them.",
)
def follow(context: dg.SensorEvaluationContext) -> dg.SkipReason:
    """Never launches anything."""
    # Kept between ticks, for what it remembers; one process serves one instance.
    follower = _followers.setdefault(context.instance.root_directory, Follower(context.instance))
    follower.reporter.instance = follower.instance = context.instance
    return dg.SkipReason("; ".join(follower.follow()) or "nothing new")


@dataclass(frozen=True)
class Seen:
    """What a picture sensor remembers: when to look again, the sources' listing, and what it has dealt with.

    due, again: Unix times; before `due` nothing is listed, and after `again` (0: never) what was dealt with is looked
    at once more. dealt: digest of all that decided what to do.
    """

    due: float = 0.0
    listing: str = ""
    dealt: str = ""
    again: float = 0.0


def picture_sensor(snapshot: Snapshot) -> dg.SensorDefinition:
    """Notices pictures that are new in a dataset's sources, and asks for them to be built, or builds them."""
    name = snapshot.place.name

    @dg.sensor(
        name=f"new_pictures_{name}",
        job=ingest_pictures,
        minimum_interval_seconds=PICTURE_SECONDS,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description=f"Notices new pictures in {', '.join(snapshot.sources)}.",
    )
    def notice(context: dg.SensorEvaluationContext) -> dg.SensorResult | dg.SkipReason:
        seen = _parse(context.cursor)
        try:
            place = find_place(name)
            if place.new_pictures == "ignore":
                return dg.SkipReason("new pictures are ignored here")
            return _notice(context.instance, place, seen)
        except (InputError, OSError) as error:  # what does not answer is not asked again at once
            return _skip(one_line(error), replace(seen, due=time.time() + FAR_SECONDS))

    return notice


def _parse(cursor: str | None) -> Seen:
    try:
        return Seen(**json.loads(cursor or "{}"))
    except (ValueError, TypeError):  # of another version
        return Seen()


def _notice(instance: dg.DagsterInstance, place: Place, seen: Seen) -> dg.SensorResult | dg.SkipReason:
    if time.time() < seen.due:
        return dg.SkipReason(f"the sources are listed again in {seen.due - time.time():.0f} s")
    runs = instance.get_run_records(dg.RunsFilter(tags={PLACE: place.name}), limit=MOST_RUNS)
    if runs and not runs[0].dagster_run.is_finished:
        return dg.SkipReason(f"run {runs[0].dagster_run.run_id[:8]} is adding pictures")
    began = time.time()
    now = look(place)
    files = listing(now)
    far = any(uri.startswith("s3://") for uri in now.sources)
    pause = FAR_SECONDS if far else LISTING_SHARE * (time.time() - began)
    rests = files == seen.listing
    seen = replace(seen, listing=files, due=time.time() + pause if pause > PICTURE_SECONDS else 0.0)
    if not rests:  # a file that is still being copied would be rejected, and looked at once more for nothing
        return _skip("the sources have changed; what is new there is looked at once they rest", seen)
    declared = {group: now.code_version(group) for group in now.labels}
    last = [runs[0].dagster_run.run_id, runs[0].dagster_run.status.value] if runs else []
    dealt = digest_json([files, now.shards, declared, place.new_pictures, last])
    if dealt == seen.dealt and not 0.0 < seen.again < time.time():
        return _skip("the sources are as they were", seen)
    seen = replace(seen, dealt=dealt, again=0.0)
    verdict, found = source_verdict(now)
    report_verdicts(instance, [verdict], seconds=0.0)
    if not verdict.passed and not found:
        return _skip(verdict.said, replace(seen, again=time.time() + RETRY_SECONDS))
    if place.new_pictures == "build":
        return _build(now, found, runs, verdict.said, seen)
    if found:
        names = ", ".join(name for one in found for name in one.names)
        instance.report_runless_asset_event(
            dg.AssetObservation(
                dg.AssetKey([place.name, "images"]), metadata={"new pictures": verdict.said, "names": names[:900]}
            )
        )
    return _skip(verdict.said, seen)


def _build(
    now: Snapshot, found: Sequence[News], runs: Sequence[dg.RunRecord], said: str, seen: Seen
) -> dg.SensorResult:
    """Ask for a run, where there is work and no other run or job is at it; of one that failed, once more after a while.

    Shards without labels are work as well: whatever became of the run that was to make them.
    """
    lacking = unlabeled(now)
    if not found and not lacking:
        return _skip(said, seen)
    held = worked_on_now(now)
    if held:
        return _skip(f"a job is working on {held}", replace(seen, again=time.time() + RETRY_SECONDS))
    work = digest_json([[[one.source, one.identity] for one in found], sorted(lacking.items())])
    same = [run for run in runs if run.dagster_run.tags.get(WORK) == work]
    statuses = [run.dagster_run.status for run in same]
    last = runs[0].dagster_run if runs else None
    if last and last.status == dg.DagsterRunStatus.CANCELED and last.tags.get(LISTING) == seen.listing:
        return _skip("its run was terminated; ingest_pictures can be launched again", seen)
    if dg.DagsterRunStatus.SUCCESS in statuses[:1]:
        return _skip("a run of these has succeeded, and they are still not there; its log may say why", seen)
    if last and last.status == dg.DagsterRunStatus.FAILURE:
        failures = sum(status == dg.DagsterRunStatus.FAILURE for status in statuses)
        wait = RETRY_SECONDS * 2 ** min(max(failures - 1, 0), MOST_DOUBLINGS)
        again = (runs[0].end_time or runs[0].create_timestamp.timestamp()) + wait
        if time.time() < again:
            return _skip(
                f"its run failed; it is asked for again in {(again - time.time()) / 60:.0f} min",
                replace(seen, again=again),
            )
    request = dg.RunRequest(
        # Names of what is to be made keep it from being asked for twice, whatever becomes of this tick.
        run_key=f"{work} {last.run_id if last else ''}",
        run_config={"ops": {"add_pictures": {"config": {"dataset": now.place.name}}}},
        tags={PLACE: now.place.name, WORK: work, LISTING: seen.listing},
    )
    return dg.SensorResult(run_requests=[request], cursor=json.dumps(asdict(seen)))


def _skip(said: str, seen: Seen) -> dg.SensorResult:
    return dg.SensorResult(skip_reason=said, cursor=json.dumps(asdict(seen)))
