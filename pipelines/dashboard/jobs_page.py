"""The page of jobs: all that work on the dashboard's datasets and runs, also those sent from the command line."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from html import escape
from typing import Any
from urllib.parse import quote

from model.inputs import one_line
from pipelines.dashboard.dagster_internals import JOB_FORM
from pipelines.dashboard.snapshots import snapshots
from pipelines.dashboard.tracked_assets import find_tracked
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.folder import jobs_of
from pipelines.jobs.known_jobs import remembered_jobs
from pipelines.jobs.resolved import stored_job
from pipelines.jobs.status import LISTING_THREADS, JobStatus, look_at_jobs

JOBS_PATH = "submissions"  # the first part of the address; `/jobs` is a page of Dagster's own
LOCATION = "onediffusion"  # Dagster's name for our code server
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="15">
<title>{title} · OneDiffusion dashboard</title><meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:80rem;margin:2rem auto;padding:0 1rem;color:#1b1d22}}
p{{color:#5c626d}}table{{border-collapse:collapse;width:100%}}th,td{{text-align:left;padding:.4rem .9rem .4rem 0;
border-bottom:1px solid #e2e3df;vertical-align:top;overflow-wrap:anywhere}}th{{font-weight:600}}li{{margin:.6rem 0}}
td:nth-child(1),td:nth-child(4),td:nth-child(5),td:nth-child(7){{white-space:nowrap}}td:nth-child(6){{min-width:16rem}}td:nth-child(2){{min-width:14rem}}
td:nth-child(3){{min-width:7rem}}
code{{font-size:.9em;white-space:nowrap;background:#f3f4f1;padding:.1em .3em;border-radius:3px}}a{{color:#2457c5}}
.running{{font-weight:600}}.failed,.lost{{color:#b3372b}}</style><h1>{title}</h1>{content}</html>"""
_JOBS = """{table}{trouble}<p>{hint}On the command line: <code>onediffusion stop ID</code>,
<code>onediffusion scale ID --workers N</code>, <code>onediffusion logs -f ID</code>. What was stopped goes on when it
is sent again.</p><p><a href="/">Dashboard</a>{all}</p>"""

FIRST_STEPS = _PAGE.format(
    title="Nothing is here yet",
    content=f"""<ol><li>Make a dataset: <code>onediffusion ingest PICTURES DATASET</code>, then
<code>onediffusion label DATASET boxes caption</code>; or send both as a job with <code>onediffusion submit</code>.</li>
<li>Show the dataset here: <code>onediffusion dashboard DATASET</code> in another terminal; this page follows in some
seconds. Runs are shown the same way, and what a submitted job works on comes by itself.</li>
<li>Then open its assets, and materialize what is missing or stale.</li></ol>
<p><a href="/{JOBS_PATH}">All jobs</a> that were sent from this machine</p>""",
)

_LAUNCHPAD_HINT = "_▾ beside Materialize, Open launchpad: where it runs, and with how many workers_"


def with_jobs_link(name: str, assets: Sequence[Any]) -> list[Any]:
    """Assets of a dataset or run whose descriptions link to its page of jobs."""
    import dagster as dg

    link = f"[Jobs on {name}](/{JOBS_PATH}/{name}) · [all jobs](/{JOBS_PATH}) · {_LAUNCHPAD_HINT}"

    def with_link(spec: dg.AssetSpec) -> dg.AssetSpec:
        # The link comes before the curves, since a page cuts long descriptions.
        first, *rest = (spec.description or "").split("\n\n")
        return spec.replace_attributes(description="\n\n".join(filter(None, [first, link, *rest])))

    return list(dg.map_asset_specs(with_link, assets))


def render_jobs_page(name: str | None, operates: bool) -> str:
    """The page of one dataset or run as HTML, or (name: None) of all of them and all jobs sent from this machine.

    operates: whether to link to the forms that stop and scale. Raises InputError for a name that is not there.
    """
    shown = [snapshot for snapshot in snapshots() if name is None or snapshot.tracked.name == name]
    if name is not None:
        find_tracked(name)
    trouble = [f"{snapshot.tracked.address}: {snapshot.trouble}" for snapshot in shown if snapshot.trouble]
    addresses = [snapshot.tracked.address for snapshot in shown if not snapshot.trouble]
    # A job that was sent from here is also in the folder of what it works on: it is looked at once.
    folders: list[str] = [] if name else list(remembered_jobs().values())
    with ThreadPoolExecutor(LISTING_THREADS) as pool:
        for address, listing in [(address, pool.submit(jobs_of, address)) for address in addresses]:
            try:
                folders += listing.result()
            except Exception as error:  # the others are shown all the same
                trouble.append(f"{address}: {one_line(error)}")
    jobs = look_at_jobs(folders)
    places = {snapshot.tracked.address: snapshot.tracked.name for snapshot in snapshots()}
    content = _JOBS.format(
        table=_table(jobs, places, operates) if jobs else "<p>None yet.</p>",
        trouble="".join(f"<p>{escape(line)}</p>" for line in trouble),
        hint="Stopping and scaling open a form that is filled in already. " if operates else "",
        all=f' · <a href="/{JOBS_PATH}">all jobs</a>' if name else "",
    )
    return _PAGE.format(title=f"Jobs of {escape(name)}" if name else "Jobs", content=content)


def _table(jobs: Sequence[tuple[Attempt, JobStatus]], places: Mapping[str, str], operates: bool) -> str:
    """How many there are of each state, and a row for each job: those under way first, a lab has a thousand others.

    places: address → name of the datasets and runs on the dashboard.
    """
    phases = Counter(status.phase for _, status in jobs)
    ordered = sorted(jobs, key=lambda job: not job[1].alive)
    headers = ("id", "works on", "target", "sent", "state", "progress, or what went wrong", "")
    rows = [_row(attempt, status, places, operates) for attempt, status in ordered]
    return (
        f"<p>{', '.join(f'{count:,} {phase}' for phase, count in phases.most_common())}</p>"
        f"<table><tr>{''.join(f'<th>{header}</th>' for header in headers)}</tr>{''.join(rows)}</table>"
    )


def _row(attempt: Attempt, status: JobStatus, places: Mapping[str, str], operates: bool) -> str:
    date = datetime.fromtimestamp(attempt.sent).strftime("%Y-%m-%d %H:%M") if attempt.sent else ""
    address = attempt.address.rpartition("/jobs/")[0]
    place = escape(address)
    if address in places:
        place = f'<a href="/assets/{quote(places[address])}">{place}</a>'
    links = []
    if operates and status.alive and attempt.number:
        links.append(_form("stop", "stop_job", "stop_submission", {"job": attempt.job_id}))
        if attempt.job_id.startswith("train-"):
            links.append(_form("scale", "scale_training", "scale_run", {"run": address, "workers": _workers(attempt)}))
    if page := ray_page(attempt):
        links.append(f'<a href="{escape(page)}">Ray</a>')
    cells = [
        f"<code>{escape(attempt.job_id)}</code>",
        place,
        escape(attempt.target_name),
        date,
        f'<span class="{escape(status.phase)}">{escape(status.phase)}</span>',
        escape(status.reason or status.progress),
        " ".join(links),
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _workers(attempt: Attempt) -> dict[str, int]:
    """The job's number of workers, as the form takes it."""
    with suppress(Exception):  # these are only the first values of a form
        request = stored_job(attempt.address).workers.resources()
        return {"least": request.min_workers, "most": request.max_workers}
    return {"least": 1, "most": 1}


def ray_page(attempt: Attempt) -> str | None:
    """The job's page on Ray's own dashboard, where its target has one."""
    address = str(attempt.target.get("address", ""))
    if attempt.target.get("type") != "ray" or not address.startswith(("http://", "https://")):
        return None
    return f"{address}/#/jobs/{attempt.name}"


def _form(text: str, job: str, step: str, values: dict[str, Any]) -> str:
    config = json.dumps({"ops": {step: {"config": values}}}, indent=1)  # JSON is YAML
    return f'<a href="{escape(JOB_FORM.format(location=LOCATION, job=job, config=quote(config)))}">{text}</a>'
