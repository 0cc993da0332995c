"""The command that makes datasets of pictures. Heavy imports stay inside."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from labeling.sources.addresses import policy
from model.constants import MAX_PIXELS, MIN_SIDE

_DIRECTIVES = ",".join(policy.DIRECTIVES)


def _of_lists(text: str, *names: str, **options: Any) -> Any:
    """An option that only lists of addresses have."""
    return typer.Option(*names, help=text, rich_help_panel="Lists of addresses", **options)


UrlOption = Annotated[str, _of_lists("The address, where its column is not found.", metavar="COLUMN")]
RetryFailedOption = Annotated[
    bool, _of_lists("Try again what failed by time-outs, overload or lost connections.", "--retry-failed")
]
ConnectionsOption = Annotated[int, _of_lists("At once, in each process.", min=1)]
HostConnectionsOption = Annotated[int, _of_lists("At once to one host, over all processes.", min=1)]
HostRateOption = Annotated[float, _of_lists("Requests a second to one host, over all processes; 0: no limit.", min=0)]
TimeoutOption = Annotated[
    float, _of_lists("Seconds without a connection or a byte; six times as long for a file.", min=0.1)
]
RetriesOption = Annotated[int, _of_lists("Tries after a time-out, HTTP 429 or 5xx.", min=0)]
MaxMbOption = Annotated[float, _of_lists("MiB of a file, at most.", min=0.001)]
ContactOption = Annotated[str, _of_lists("Mail or web address that servers are told.", metavar="TEXT")]
RobotsNameOption = Annotated[
    str, _of_lists("Name that servers are told, and may address in X-Robots-Tag.", metavar="NAME")
]
DirectivesOption = Annotated[str, _of_lists("Of X-Robots-Tag, that refuse a file; '' for none.", metavar="LIST")]
AllowPrivateOption = Annotated[
    list[str] | None,
    _of_lists("A private network to fetch from, as 10.1.0.0/16. May be repeated.", metavar="NETWORK"),
]


def ingest(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder, pattern, tar or Parquet, and what it holds, or a list of addresses; local or s3://.",
        ),
    ],
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="Dataset: a folder or s3:// address.")],
    shard_rows: Annotated[int, typer.Option(min=1, help="Most pictures in one shard.")] = 1024,
    max_pixels: Annotated[int, typer.Option(min=1, help="Pictures with more are refused.")] = MAX_PIXELS,
    min_side: Annotated[int, typer.Option(min=1, help="Pictures with a shorter side are refused.")] = MIN_SIDE,
    text: Annotated[str, typer.Option(metavar="COLUMN", help="The caption, where its column is not found.")] = "",
    image: Annotated[str, typer.Option(metavar="COLUMN", help="The picture, in Parquet, likewise.")] = "",
    update: Annotated[bool, typer.Option("--update", help="Take over changed pictures and captions.")] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Mark rows whose pictures are gone from the source.")] = False,
    url: UrlOption = "",
    retry_failed: RetryFailedOption = False,
    connections: ConnectionsOption = policy.CONNECTIONS,
    host_connections: HostConnectionsOption = policy.HOST_CONNECTIONS,
    host_rate: HostRateOption = 0.0,
    timeout: TimeoutOption = policy.SECONDS,
    retries: RetriesOption = policy.RETRIES,
    max_mb: MaxMbOption = policy.MAX_MIB,
    contact: ContactOption = "",
    robots_name: RobotsNameOption = policy.USER_AGENT,
    directives: DirectivesOption = _DIRECTIVES,
    allow_private: AllowPrivateOption = None,
) -> None:
    """Pictures, or those that a list names → DATASET/images; the others go to DATASET/rejected with the reason."""
    from pipelines.ingest import ingest as run
    from pipelines.ingest_job.addresses import ListOptions

    fetching = policy.FetchPolicy.of(
        connections,
        host_connections,
        host_rate,
        timeout,
        retries,
        max_mb,
        contact,
        robots_name,
        directives,
        allow_private or (),
    )
    result = run(
        source,
        dataset,
        shard_rows=shard_rows,
        max_pixels=max_pixels,
        min_side=min_side,
        text=text,
        image=image,
        update=update,
        prune=prune,
        listed=ListOptions(url, fetching, retry_failed),
    )
    print(*result.summary(dataset), sep="\n")
