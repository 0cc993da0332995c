"""What the dashboard does where a dataset, run or target does not answer, and with forms that were opened long ago."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from recorded_jobs import GONE, recorded

from model.inputs import InputError
from pipelines.dashboard.background import SharedResults
from pipelines.dashboard.dataset_assets import changed_parameters, parameter_fields
from pipelines.dashboard.launch import _lines
from pipelines.dashboard.server import _kind
from pipelines.dashboard.snapshots import Snapshot
from pipelines.dashboard.tracked_assets import TrackedAsset
from pipelines.jobs.attempt import AttemptState
from pipelines.jobs.resolved import ResolvedJob


def test_late_shared_result_delays_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.dashboard.background.ANSWER_SECONDS", 0.5)
    monkeypatch.setattr("pipelines.dashboard.background.FRESH_SECONDS", 0.0)
    answers, calls = threading.Event(), []

    def silent() -> bytes:
        calls.append(1)
        answers.wait(30)
        return b"at last"

    def unknown() -> bytes:
        raise InputError("no such run")

    async def visit() -> None:
        results = SharedResults()
        waiting = asyncio.gather(*(results.get("far", silent) for _ in range(50)), return_exceptions=True)
        assert await results.get("near", lambda: b"drawn") == b"drawn"
        assert all(isinstance(result, TimeoutError) for result in await waiting)
        assert len(calls) == 1, "all callers wait for the same result"
        with pytest.raises(InputError, match="no such run"):
            await results.get("none", unknown)
        answers.set()
        assert await results.get("far", silent) == b"at last"
        answers.clear()
        assert await results.get("far", silent) == b"at last", "the last result serves"

    asyncio.run(visit())
    answers.set()


def test_unresponsive_address_has_unknown_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr("pipelines.dashboard.server.kind_at", lambda address: answers.wait(30) and "run")
    monkeypatch.setattr("pipelines.dashboard.server.ANSWER_SECONDS", 0.2)
    assert _kind("s3://silent/run") == "unknown"
    answers.set()


def test_job_whose_target_is_gone_is_not_followed_forever(
    job: ResolvedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name, seconds in (("PATIENCE", 1.0), ("PROGRESS", 0.2), ("POLL", 0.1)):
        monkeypatch.setattr(f"pipelines.dashboard.launch.{name}_SECONDS", seconds)
    old = time.time() - 1000
    attempt = recorded(job, 1, GONE, AttemptState(1, "running", "elsewhere", 7, old, old))
    messages: list[str] = []
    began = time.monotonic()
    lines: Iterator[str] = _lines(attempt, 0, lambda: None)
    with pytest.raises(InputError, match=f"{attempt.job_id}: .*no Ray cluster answers there.*is followed no longer"):
        messages.extend(lines)
    assert time.monotonic() - began < 60
    assert [line for line in messages if line.startswith("it is not known how the job stands: ")] == messages != []


def test_form_opened_before_a_change_does_not_undo_it(tmp_path: Path) -> None:
    declared: dict[str, Any] = {"reads": ["images.image"], "parameters": {"low": 60.0, "model": None}}
    tracked = TrackedAsset("faces", "dataset", str(tmp_path))
    snapshot = Snapshot(
        tracked, groups={"images": {}, "edges": declared, "boxes": {**declared, "parameters": {"threshold": 0.5}}}
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
