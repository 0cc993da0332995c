"""What the dashboard does where a place or a target does not answer, and with forms that were opened long ago."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from recorded_jobs import GONE, recorded

from model.inputs import InputError
from pipelines.dashboard.datasets import changed_parameters, parameter_fields
from pipelines.dashboard.launch import _lines
from pipelines.dashboard.proxy import Proxy
from pipelines.dashboard.server import _kind
from pipelines.dashboard.snapshots import Snapshot
from pipelines.dashboard.tracked_assets import Place
from pipelines.jobs.attempt import AttemptState
from pipelines.jobs.resolved import ResolvedJob


def test_a_place_that_does_not_answer_takes_no_others_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.dashboard.proxy.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("pipelines.dashboard.proxy.CURVE_SECONDS", 0.0)
    answers, asked = threading.Event(), []

    def silent() -> bytes:
        asked.append(1)
        answers.wait(30)
        return b"at last"

    def unknown() -> bytes:
        raise InputError("no such place")

    async def visit() -> None:
        proxy = Proxy({})
        many = [proxy._recent("far", silent) for _ in range(50)]
        refused = asyncio.gather(*many, return_exceptions=True)
        assert await proxy._recent("near", lambda: b"drawn") == b"drawn"
        assert all(isinstance(one, web.HTTPGatewayTimeout) for one in await refused)
        assert len(asked) == 1, "all who ask wait for the same"
        with pytest.raises(web.HTTPNotFound):
            await proxy._recent("none", unknown)
        answers.set()
        while (found := await proxy._recent("far", silent)) != b"at last":
            pass
        assert found == b"at last"
        answers.clear()
        assert await proxy._recent("far", silent) == b"at last", "its last stays"

    asyncio.run(visit())
    answers.set()


def test_a_place_that_does_not_answer_is_shown_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr("pipelines.dashboard.server.place_kind", lambda address: answers.wait(30) and "run")
    monkeypatch.setattr("pipelines.dashboard.server.LOOK_SECONDS", 0.2)
    assert _kind("s3://silent/run") == "unknown"
    answers.set()


def test_a_job_whose_target_is_gone_is_not_followed_for_ever(
    job: ResolvedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name, seconds in (("PATIENCE", 2.0), ("LOOK", 0.2), ("POLL", 0.1)):
        monkeypatch.setattr(f"pipelines.dashboard.launch.{name}_SECONDS", seconds)
    old = time.time() - 1000
    submission = recorded(job, 1, GONE, AttemptState(1, "running", "elsewhere", 7, old, old))
    said: list[str] = []
    began = time.monotonic()
    lines: Iterator[str] = _lines(submission, 0, lambda: None)
    with pytest.raises(InputError, match=f"{submission.job_id}: .*no Ray cluster answers there.*is followed no longer"):
        said.extend(lines)
    assert time.monotonic() - began < 60
    assert [line for line in said if line.startswith("it is not known how the job stands: ")] == said != []


def test_a_form_that_was_opened_before_a_change_does_not_undo_it(tmp_path: Path) -> None:
    declared: dict[str, Any] = {"reads": ["images.image"], "parameters": {"low": 60.0, "model": None}}
    place = Place("faces", "dataset", str(tmp_path))
    snapshot = Snapshot(
        place, groups={"images": {}, "edges": declared, "boxes": {**declared, "parameters": {"threshold": 0.5}}}
    )
    form = parameter_fields(snapshot)["edges"].config_type
    assert not any(field.default_provided for field in form.fields.values())  # type: ignore[attr-defined]
    assert form.fields["low"].description == "Now: 60.0."  # type: ignore[attr-defined]
    now = replace(snapshot, groups={**snapshot.groups, "edges": {**declared, "parameters": {"low": 20.0}}})
    assert changed_parameters(now, ["edges"], {"edges": {}, "boxes": {}}) == {}
    assert changed_parameters(now, ["edges"], {"edges": {"low": 30.0}}) == {"edges": {"low": 30.0}}
    assert changed_parameters(now, ["edges"], {"edges": {"low": 20.0}}) == {}
    with pytest.raises(InputError, match="boxes: its parameters were changed, but it is not among what is made"):
        changed_parameters(now, ["edges"], {"boxes": {"threshold": 0.1}})
