"""A dashboard as a user starts it, and requests of a script to it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

START_SECONDS = 120.0
LAUNCH = """mutation($p: ExecutionParams!) { launchRun(executionParams: $p) { __typename
  ... on LaunchRunSuccess { run { runId } } ... on PythonError { message } } }"""
STOP_NOTHING: dict[str, Any] = {
    "selector": {
        "repositoryLocationName": "onediffusion",
        "repositoryName": "__repository__",
        "pipelineName": "stop_job",
    },
    "mode": "default",
    "runConfigData": json.dumps({"ops": {"stop_submission": {"config": {"job": "label-00000000"}}}}),
}
ASSETS = "{ assetNodes { assetKey { path } } }"


@dataclass
class Dashboard:
    """A running dashboard: its process, its data folder, and the lines that it printed."""

    process: subprocess.Popen[str]
    data: Path
    lines: list[str] = field(default_factory=list)

    @property
    def address(self) -> str:
        return next((line.split()[-1] for line in list(self.lines) if line.startswith("dashboard: http")), "")

    def request(
        self, path: str, headers: Mapping[str, str] | None = None, body: bytes | None = None, method: str | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body; a redirect is not followed."""
        request = urllib.request.Request(self.address + path, body, dict(headers or {}), method=method)
        try:
            with _OPENER.open(request, timeout=60) as answer:
                return answer.status, dict(answer.headers), answer.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def ask(self, query: str, headers: Mapping[str, str] | None = None, **variables: Any) -> dict[str, Any]:
        """Data of a GraphQL query or mutation."""
        body = json.dumps({"query": query, "variables": variables}).encode()
        status, _, content = self.request("/graphql", {"Content-Type": "application/json", **(headers or {})}, body)
        assert status == 200, (status, content[:500])
        answer = json.loads(content)
        assert "errors" not in answer, answer["errors"]
        return answer["data"]

    def log(self) -> str:
        """The logs of its processes."""
        return "".join(path.read_text() for path in sorted(self.data.glob("onediffusion/dashboard/logs/*.txt")))

    def until(self, condition: Callable[[], Any], seconds: float = 120.0) -> Any:
        """Wait until `condition` returns something true; that."""
        deadline = time.monotonic() + seconds
        while not (result := condition()):
            assert self.process.poll() is None, self.lines
            assert time.monotonic() < deadline, (self.lines, self.log()[-3000:])
            time.sleep(0.3)
        return result


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *parts: Any, **named: Any) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirects)


@contextmanager
def served(data: Path, *arguments: str) -> Iterator[Dashboard]:
    """Start a dashboard on a free port with a data folder, and end it as Ctrl-C does."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "dashboard", *arguments, "--port", "0"],
        env={**os.environ, "XDG_DATA_HOME": str(data), "PYTHONUNBUFFERED": "1"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    dashboard = Dashboard(process, data)

    def read() -> None:
        assert process.stdout
        for line in process.stdout:
            dashboard.lines.append(line.rstrip())

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    try:
        dashboard.until(lambda: dashboard.address, START_SECONDS)
        for database in (data / "onediffusion" / "dashboard").rglob("*.db"):
            with contextlib.closing(sqlite3.connect(database)) as opened:
                versions = opened.execute("SELECT version_num FROM alembic_version").fetchall()
            assert len(versions) == 1, f"{database}: made by several processes at once"
        yield dashboard
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        thread.join(10)


def descendants(running: Dashboard) -> list[psutil.Process]:
    """All processes that it started, and theirs."""
    return psutil.Process(running.process.pid).children(recursive=True)


def command(process: psutil.Process) -> list[str]:
    """The command line of a process, [] when it has just ended."""
    with suppress(psutil.NoSuchProcess):
        return process.cmdline()
    return []


def tokens_in(path: Path) -> dict[str, str]:
    """Role → token of a token file."""
    lines = [line.split() for line in path.read_text().splitlines() if not line.startswith("#")]
    return dict(lines)
