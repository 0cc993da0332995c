"""The page of jobs: all that were sent to work on what the dashboard shows, also those of the command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from html import escape
from typing import Any
from urllib.parse import quote

from model.inputs import one_line
from pipelines.dashboard.snapshots import snapshots
from pipelines.dashboard.tracked_assets import find_place
from pipelines.jobs.attempt import Attempt
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.status import JobStatus, list_jobs

SUBMISSIONS = "submissions"  # the first part of the address; `/jobs` is a page of Dagster's own
_FORM = "/locations/onediffusion/jobs/{job}/playground/setup?config={config}"
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><meta http-equiv="refresh" content="15">
<title>{title} · OneDiffusion dashboard</title><meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1b1d22}}
p{{color:#5c626d}}table{{border-collapse:collapse;width:100%}}th,td{{text-align:left;padding:.4rem .9rem .4rem 0;
border-bottom:1px solid #e2e3df;vertical-align:top}}th{{font-weight:600}}code{{font-size:.9em}}a{{color:#2457c5}}
.running{{font-weight:600}}.failed,.lost{{color:#b3372b}}</style><h1>{title}</h1>{table}{trouble}
<p>{steering}On the command line: <code>onediffusion stop ID</code>, <code>onediffusion scale ID --workers N</code>,
<code>onediffusion logs -f ID</code>. What was stopped goes on when it is sent again.</p>
<p><a href="/">Dashboard</a>{all}</p></html>"""


_WHERE = "_▾ beside Materialize, Open launchpad: where it runs, and with how many workers_"


def with_link(name: str, assets: Sequence[Any]) -> list[Any]:
    """Assets of a place, with the address of its page in what they say of themselves."""
    import dagster as dg

    link = f"[Jobs on {name}](/{SUBMISSIONS}/{name}) · [all jobs](/{SUBMISSIONS}) · {_WHERE}"

    def described(spec: dg.AssetSpec) -> dg.AssetSpec:
        first, *rest = (spec.description or "").split("\n\n")  # curves come last: a page shows only so much at once
        return spec.replace_attributes(description="\n\n".join(filter(None, [first, link, *rest])))

    return list(dg.map_asset_specs(described, assets))


def submissions_page(name: str | None, operates: bool) -> str:
    """Of one place of the dashboard, or of all together with what was sent from here; operates: with ways to steer.

    Raises InputError for a place that is not there.
    """
    chosen = [one for one in snapshots() if name is None or one.place.name == name]
    if name is not None:
        find_place(name)
    trouble = [f"{one.place.address}: {one.trouble}" for one in chosen if one.trouble]
    found: dict[str, tuple[Attempt, JobStatus]] = {}
    for place in [*([] if name else [None]), *(one.place.address for one in chosen if not one.trouble)]:
        try:
            found |= {submission.address: (submission, state) for submission, state in list_jobs(place)}
        except Exception as error:  # the others are shown all the same
            trouble.append(f"{place}: {one_line(error)}")
    jobs = sorted(found.values(), key=lambda item: -item[0].sent)
    return _PAGE.format(
        title=f"Jobs of {escape(name)}" if name else "Jobs",
        table=_table(jobs, operates) if jobs else "<p>None yet.</p>",
        trouble="".join(f"<p>{escape(line)}</p>" for line in trouble),
        steering="Stopping and scaling open a form that is filled in already. " if operates else "",
        all=f' · <a href="/{SUBMISSIONS}">all jobs</a>' if name else "",
    )


def _table(jobs: Sequence[tuple[Attempt, JobStatus]], operates: bool) -> str:
    heads = ("id", "works on", "target", "sent", "state", "", "")
    rows = [_row(submission, state, operates) for submission, state in jobs]
    return f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{''.join(rows)}</table>"


def _row(submission: Attempt, state: JobStatus, operates: bool) -> str:
    sent = datetime.fromtimestamp(submission.sent).strftime("%Y-%m-%d %H:%M") if submission.sent else ""
    links = []
    if operates and state.alive and submission.number:
        links.append(_form("stop", "stop_job", "stop_submission", {"job": submission.job_id}))
        if submission.job_id.startswith("train-"):
            run = submission.address.rpartition("/jobs/")[0]
            links.append(_form("scale", "scale_training", "scale_run", {"run": run, "workers": _workers(submission)}))
    if page := ray_page(submission):
        links.append(f'<a href="{escape(page)}">Ray</a>')
    cells = [
        f"<code>{escape(submission.job_id)}</code>",
        escape(submission.address.rpartition("/jobs/")[0]),
        escape(submission.target_name),
        sent,
        f'<span class="{escape(state.phase)}">{escape(state.phase)}</span>',
        escape(state.reason or state.progress),
        " ".join(links),
    ]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _workers(submission: Attempt) -> dict[str, int]:
    """How many it has, as a form takes them."""
    with suppress(Exception):  # it is but what the form begins with
        spec = JobFolder(submission.address).specification().workers
        if spec:
            least, most = (spec.count, spec.count) if isinstance(spec.count, int) else spec.count
            return {"least": least, "most": most}
    return {"least": 1, "most": 1}


def ray_page(submission: Attempt) -> str | None:
    """The job's page on Ray's own dashboard, where its target has one."""
    address = str(submission.target.get("address", ""))
    if submission.target.get("type") != "ray" or not address.startswith(("http://", "https://")):
        return None
    return f"{address}/#/jobs/{submission.name}"


def _form(text: str, job: str, step: str, values: dict[str, Any]) -> str:
    config = json.dumps({"ops": {step: {"config": values}}}, indent=1)  # JSON is YAML
    return f'<a href="{escape(_FORM.format(job=job, config=quote(config)))}">{text}</a>'
