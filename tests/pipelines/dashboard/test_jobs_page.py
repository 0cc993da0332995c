"""The page of jobs tells how each stands, and an empty dashboard what to do first."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from pathlib import Path

import pytest
from recorded_jobs import GONE, LOCAL, recorded

from pipelines.dashboard.jobs_page import render_jobs_page
from pipelines.dashboard.proxy import Proxy
from pipelines.dashboard.tracked_assets import track
from pipelines.jobs.attempt import Attempt, AttemptState, this_sender
from pipelines.jobs.resolved import ResolvedJob
from pipelines.jobs.status import JobStatus


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def test_page_shows_progress_rate_time_left_and_the_last_error(job: ResolvedJob) -> None:
    now = time.time()
    progress = {"what": "label", "done": 150, "total": 250, "unit": "shards", "began": now - 50.0, "before": 100}
    recorded(job, 1, GONE, AttemptState(1, "running", "elsewhere", 7, now - 60, now, progress=progress))
    assert "label: 150 of 250 shards, 1 shards/s, 2 min left" in render_jobs_page(None, False)
    reason = "[pair.cc:538] Connection closed by <peer>"
    recorded(job, 2, LOCAL, AttemptState(2, "failed", socket.gethostname(), 7, 0.0, 0.0, reason, progress=progress))
    page = render_jobs_page(None, True)
    assert '<span class="failed">failed</span>' in page
    assert "[pair.cc:538] Connection closed by &lt;peer&gt;" in page, page


def test_jobs_under_way_come_first_and_link_to_what_they_work_on(
    job: ResolvedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = job.address.rpartition("/jobs/")[0]
    attempts = [
        Attempt(f"label-0000000{number}", 1, f"{dataset}/jobs/label-0000000{number}", "local", {}, 0.0, this_sender())
        for number in range(3)
    ]
    phases = ["succeeded", "running", "succeeded"]
    listed = [(attempt, JobStatus(phase)) for attempt, phase in zip(attempts, phases, strict=True)]
    monkeypatch.setattr("pipelines.dashboard.jobs_page.look_at_jobs", lambda folders: listed)
    page = render_jobs_page(None, False)
    assert re.findall(r"<code>label-0000000(\d)", page) == ["1", "0", "2"] and "<p>2 succeeded, 1 running</p>" in page
    assert f"<td>{dataset}</td>" in page
    [asset] = track([("dataset", dataset)])
    assert f'<a href="/assets/{asset.name}">{dataset}</a>' in render_jobs_page(None, False)


def test_empty_dashboard_says_what_to_do_first(tmp_path: Path) -> None:
    from aiohttp.test_utils import TestClient, TestServer

    async def start() -> tuple[int, str]:
        async with TestClient(TestServer(Proxy({}).application())) as client:
            answer = await client.get("/", allow_redirects=False)
            return answer.status, answer.headers.get("Location", "") + await answer.text()

    status, page = asyncio.run(start())
    assert status == 200
    assert re.findall(r"<code>onediffusion (\w+)", page)[:3] == ["ingest", "label", "submit"]
    track([("dataset", str(tmp_path / "pictures"))])
    status, page = asyncio.run(start())
    assert status == 302 and page.startswith("/assets")
