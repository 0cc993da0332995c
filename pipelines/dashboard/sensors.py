"""Sensors: one that follows what happens elsewhere, and for each dataset one that notices new pictures."""

# No postponed annotations: Dagster reads those of its steps.
import dagster as dg

from model.errors import InputError
from pipelines.dashboard.checks import report_verdicts
from pipelines.dashboard.following import Follower
from pipelines.dashboard.jobs import ingest_pictures
from pipelines.dashboard.places import find_place
from pipelines.dashboard.snapshots import Snapshot, look
from pipelines.dashboard.sources import listing, news, source_verdict

FOLLOW_SECONDS, PICTURE_SECONDS = 10, 30
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
        place = find_place(name)
        if place.new_pictures == "ignore":
            return dg.SkipReason("new pictures are ignored here")
        try:
            now = look(place)
            state = f"{listing(now)} {now.shards} {place.new_pictures}"
            if state == context.cursor:
                return dg.SkipReason("the sources are as they were")
            found = news(now)
        except InputError as error:
            return dg.SkipReason(str(error))
        verdicts = list(source_verdict(now, found))
        report_verdicts(context.instance, verdicts)
        said = verdicts[0].said if verdicts else "it has no sources"
        if not found or place.new_pictures == "ask":
            if found:
                names = ", ".join(name for one in found for name in one.names)
                context.instance.report_runless_asset_event(
                    dg.AssetObservation(
                        dg.AssetKey([name, "images"]), metadata={"new pictures": said, "names": names[:900]}
                    )
                )
            return dg.SensorResult(skip_reason=said, cursor=state)
        # The key keeps the same pictures from being asked for twice, whatever becomes of this tick.
        request = dg.RunRequest(
            run_key=state,
            run_config={"ops": {"add_pictures": {"config": {"dataset": name}}}},
            tags={"onediffusion/new pictures": str(sum(one.count for one in found))},
        )
        return dg.SensorResult(run_requests=[request], cursor=state)

    return notice
