"""Commands that show datasets and runs: the report, the demo's, and the dashboard. Heavy imports stay inside."""

from __future__ import annotations

from typing import Annotated

import typer

from model.inputs import require
from model.inputs.extras import EXTRAS


def report(
    target: Annotated[str, typer.Argument(metavar="DATASET|RUN", help="A folder or s3:// address.")],
    where: Annotated[
        str | None, typer.Option(metavar="SQL", help='Show these rows, as in "quality.sharpness < 0.2".')
    ] = None,
    beside: Annotated[str | None, typer.Option("--with", metavar="RUN", help="Compare a run with this one.")] = None,
    replay_step: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Show the samples that a run's step N was computed from.")
    ] = None,
) -> None:
    """One self-contained HTML page about a dataset or a run."""
    from pipelines.reports.request import requested_page

    print(requested_page(target, where, beside, replay_step))


def demo(
    pictures: Annotated[str | None, typer.Option(help="Your own pictures: folder, glob or s3://.")] = None,
    out: Annotated[str, typer.Option(help="Where everything goes: a folder or s3:// address.")] = "runs/demo",
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps, if not the preset's.")] = None,
) -> None:
    """The whole journey on real pictures, ending with a page of pictures."""
    require(*EXTRAS["labelers"])
    from pipelines.demo import demo as run

    run(out, pictures, steps)


def dashboard(
    addresses: Annotated[
        list[str] | None, typer.Argument(metavar="DATASET|RUN …", help="To add to those shown.")
    ] = None,
    port: Annotated[int, typer.Option(min=0, max=65535, help="To listen on; a free one where it is taken.")] = 3000,
    host: Annotated[str, typer.Option(help="To listen on; beyond this machine only with --token-file.")] = "127.0.0.1",
    token_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="Tokens of those who may come in; made where there is none.")
    ] = None,
    new_pictures: Annotated[
        str | None, typer.Option(metavar="ask|build|ignore", help="What to do about new pictures in the sources.")
    ] = None,
    owner: Annotated[str, typer.Option(help="Of the datasets and runs: an e-mail address, or team:NAME.")] = "",
    forget: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A dataset or run to take off.")] = None,
) -> None:
    """Datasets, runs and jobs in the browser (Dagster), on loopback: see them, launch, scale, stop."""
    require(*EXTRAS["dashboard"])
    from pipelines.dashboard.server import dashboard as serve

    serve(addresses or [], host, port, token_file, owner, new_pictures, forget or [])
