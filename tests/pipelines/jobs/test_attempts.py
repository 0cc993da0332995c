"""Attempts whose record and target disagree: which one is stopped or scaled, and which number the next one gets."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from recorded_jobs import GONE, LOCAL, recorded

from cluster.local import LocalBackend, work_processes
from cluster.target import LocalTarget
from cluster.work import WORK_VARIABLE, AlreadySubmitted
from labeling.dataset import lease, open_store
from model.inputs import InputError
from pipelines.jobs.attempt import Attempt, AttemptState, Control
from pipelines.jobs.control import scale_job, stop_job
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.known_jobs import remember_job
from pipelines.jobs.log import log_lines, stored_lines
from pipelines.jobs.resolved import ResolvedJob
from pipelines.jobs.specification import WorkersSpec
from pipelines.jobs.status import find_attempt, job_status, list_jobs
from pipelines.jobs.submit import plan_job, submit_job


@pytest.fixture(autouse=True)
def own_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))


def ended(attempt: Attempt) -> str:
    deadline = time.monotonic() + 240
    while job_status(attempt).alive or work_processes(attempt.name):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return job_status(attempt).phase


def test_job_of_unreachable_target_stops_at_once_and_is_sent_elsewhere(job: ResolvedJob) -> None:
    old = time.time() - 1000
    attempt = recorded(job, 1, GONE, AttemptState(1, "running", "elsewhere", 7, old, old))
    assert job_status(attempt).phase == "unknown"
    lines: list[str] = []
    with pytest.raises(InputError, match=f"may still run on target.yaml.*stop {attempt.job_id}` gives it up"):
        submit_job(job, "local", lines.append)
    assert job_status(attempt).phase == "unknown" and find_attempt(attempt.job_id) == attempt
    began = time.monotonic()
    assert stop_job(attempt.job_id, lines.append).phase == "stopped"
    assert time.monotonic() - began < 30
    assert "neither its target nor the job answers" in lines[-1]
    assert JobFolder(attempt.address).control() == Control(1, stop=True)
    again = submit_job(job, "local")
    assert again.number == 2
    assert ended(again) == "failed"


def test_responding_job_of_unreachable_target_counts_as_running(
    job: ResolvedJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    attempt = recorded(job, 1, GONE, AttemptState(1, "running", "elsewhere", 7, now, now))
    monkeypatch.setattr("pipelines.jobs.control.STOP_SECONDS", 1.0)
    with pytest.raises(InputError, match="no Ray cluster answers"):
        stop_job(attempt.job_id)
    assert JobFolder(attempt.address).control().stop
    assert job_status(attempt).phase == "running"


@pytest.mark.parametrize(
    ("progress", "told"),
    [
        ({"began": -50.0, "before": 100}, "train: 150 of 250 steps, 1 steps/s, 2 min left"),
        ({"began": -3000.0, "before": 100}, "train: 150 of 250 steps, 1 steps/min, 1.7 h left"),
        ({"began": -50.0, "before": 150}, "train: 150 of 250 steps"),
        ({}, "train: 150 of 250 steps"),
    ],
)
def test_status_tells_rate_and_time_left(job: ResolvedJob, progress: dict[str, Any], told: str) -> None:
    """What was done before this attempt counts for neither; earlier versions wrote no such keys."""
    now = time.time()
    if "began" in progress:
        progress = {**progress, "began": now + progress["began"]}
    whole = {"what": "train", "done": 150, "total": 250, "unit": "steps", **progress}
    state = AttemptState(1, "running", "elsewhere", 1, now - 3600, now, progress=whole)
    assert job_status(recorded(job, 1, GONE, state)).progress == told


def test_attempt_number_is_reused_only_if_it_never_began(job: ResolvedJob, tmp_path: Path) -> None:
    assert submit_job(job, "local").number == 1
    assert ended(find_attempt(job.id)) == "failed"
    later = JobFolder(find_attempt(job.id).address)
    # As when sending attempt 3 was refused after attempt 2 had begun, and the record of attempt 1 was restored.
    recorded(job, 1, LOCAL, AttemptState(2, "failed", "here", 7, 0.0, 0.0))
    assert submit_job(job, "local").number == 3
    assert ended(find_attempt(job.id)) == "failed"
    recorded(job, 4, LOCAL)
    assert later.state().attempt == 3
    assert submit_job(job, "local").number == 4
    assert ended(find_attempt(job.id)) == "failed"
    recorded(job, 5, GONE)  # it may wait there
    stop_job(job.id)
    assert submit_job(job, "local").number == 6


def test_job_of_another_machine_is_judged_by_heartbeat(job: ResolvedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """A local target sees only this user's processes on this machine; no other job is ended or sent again."""
    now = time.time()
    attempt = recorded(job, 1, LOCAL, AttemptState(1, "running", "elsewhere", 7, now, now), "jo@elsewhere")
    assert job_status(attempt).phase == "running"
    assert submit_job(job, "local") == attempt
    monkeypatch.setattr("pipelines.jobs.control.STOP_SECONDS", 1.0)
    with pytest.raises(InputError, match="jo@elsewhere sent it, and it cannot be ended by force from here"):
        stop_job(attempt.job_id)
    assert JobFolder(attempt.address).control() == Control(1, stop=True)
    assert job_status(attempt).phase == "running"
    JobFolder(attempt.address).put_state(AttemptState(1, "running", "elsewhere", 7, now, now - 1000))
    assert job_status(attempt).phase == "lost"


def test_job_that_another_sender_is_sending_keeps_its_number(job: ResolvedJob) -> None:
    attempt = recorded(job, 1, LOCAL, sender="jo@elsewhere")
    assert job_status(attempt).reason == "jo@elsewhere is sending it"
    assert submit_job(job, "local") == attempt
    recorded(job, 1, LOCAL, sender="jo@elsewhere", sent=time.time() - 1000)
    again = submit_job(job, "local")
    assert again.number == 2, "theirs may begin yet, and then ends by itself"
    assert ended(again) == "failed"


def test_refusal_keeps_record_of_another_sender(job: ResolvedJob, tmp_path: Path) -> None:
    """A cluster refuses a job that another machine has recorded meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def refuse() -> None:
            server.accept()[0].close()
            connection, _ = server.accept()
            recorded(job, 1, LOCAL, sender="jo@elsewhere")
            connection.close()

        thread = threading.Thread(target=refuse)
        thread.start()
        token = tmp_path / "token"
        token.write_text("0" * 64)
        port = server.getsockname()[1]
        target = tmp_path / "ray.yaml"
        target.write_text(f"{{type: ray, address: 'http://127.0.0.1:{port}', token_file: '{token}'}}")
        with pytest.raises(InputError, match="no Ray cluster answers there"):
            submit_job(job, str(target))
        thread.join()
    assert find_attempt(job.id).sender == "jo@elsewhere"


def test_refused_first_submit_leaves_nothing(job: ResolvedJob, tmp_path: Path) -> None:
    target = tmp_path / "ray.yaml"
    target.write_text("{type: ray, address: 'http://127.0.0.1:9'}")
    with pytest.raises(InputError, match="no Ray cluster answers there"):
        submit_job(job, str(target))
    assert not Path(job.specification.output).exists()
    assert list_jobs() == []


def test_dry_run_states_next_attempt(job: ResolvedJob) -> None:
    def dry_run() -> str:
        return plan_job(job, "local")["command"]

    assert "--attempt 1" in dry_run()
    assert ended(submit_job(job, "local")) == "failed"
    assert "--attempt 2" in dry_run()
    shutil.rmtree(job.specification.output)  # this machine remembers the job, but its dataset is gone
    assert "--attempt 1" in dry_run()


@pytest.mark.parametrize("other", [1, 2])
def test_attempt_waits_for_running_one(job: ResolvedJob, tmp_path: Path, other: int) -> None:
    """An earlier one, or one that another sender gave the same number."""
    earlier = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    now = time.time()
    attempt = recorded(job, 2, LOCAL, AttemptState(other, "running", socket.gethostname(), earlier.pid, now, now))
    command = [sys.executable, "-u", "-m", "pipelines", "execute", attempt.address, "--attempt", "2"]
    later = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert later.stdout
        assert later.stdout.readline().startswith(f"attempt 2 waits for attempt {other} on ")
        assert JobFolder(attempt.address).state().process == earlier.pid
    finally:
        earlier.communicate(b"\n")
        output = later.communicate(timeout=240)[0]
    assert "no dataset there" in output
    state = JobFolder(attempt.address).state()
    assert (state.attempt, state.process) == (2, later.pid)


def test_concurrent_record_of_another_sender_stays(job: ResolvedJob, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two senders, the one whose record stays sends the job; neither removes what the other has begun."""
    put, theirs = JobFolder.put_attempt, AttemptState(1, "running", "elsewhere", 7, time.time(), time.time())

    def other(folder: JobFolder, attempt: Attempt) -> None:
        put(folder, attempt)
        put(folder, replace(attempt, sender="jo@elsewhere"))

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(JobFolder, "put_attempt", other)
        with pytest.raises(InputError, match="another sender was sending it at the same moment"):
            submit_job(job, "local")
    folder = job.folder
    assert folder.attempt().sender == "jo@elsewhere"
    folder.remove()

    def begins(backend: LocalBackend, work: Any) -> None:
        folder.put_state(theirs)
        raise InputError("quota exceeded")

    monkeypatch.setattr(LocalBackend, "submit", begins)
    with pytest.raises(InputError, match="quota exceeded"):
        submit_job(job, "local")
    assert folder.state() == theirs and folder.specification() == job.specification


def test_next_attempt_takes_over_leased_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ONEDIFFUSION_JOB", "s3://lab/data/jobs/label-1")
    store = open_store(tmp_path)
    script = (
        "import sys\nfrom labeling.dataset import lease, open_store\n"
        "with lease(open_store(sys.argv[1]), ['edges']):\n    print('held', flush=True)\n    input()\n"
    )
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    earlier = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], **pipes)
    assert earlier.stdout and earlier.stdout.readline() == b"held\n"
    with lease(store, ["edges"]):
        earlier.communicate(b"\n", timeout=240)
        monkeypatch.delenv("ONEDIFFUSION_JOB")
        with pytest.raises(InputError, match="is working on it"), lease(store, ["edges"]):
            pass
    assert not store.files("edges", "running")


def test_job_already_at_target_keeps_its_folder(job: ResolvedJob) -> None:
    theirs = subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={**os.environ, WORK_VARIABLE: f"{job.id}-1"}
    )
    try:
        with pytest.raises(AlreadySubmitted, match="runs on this machine already"):
            submit_job(job, "local")
        assert find_attempt(job.id).number == 1
        assert JobFolder(find_attempt(job.id).address).specification() == job.specification
    finally:
        theirs.communicate(b"\n")


def test_listed_error_is_shown_verbatim(job: ResolvedJob, tmp_path: Path) -> None:
    """Brackets are no markup: Rich would fail, or leave them out."""
    reason = "[/pytorch/gloo/pair.cc:538] Connection closed by [peer]"
    attempt = recorded(job, 1, LOCAL, AttemptState(1, "failed", "here", 7, 0.0, 0.0, reason))
    environment = {**os.environ, "COLUMNS": "300"}
    command = [sys.executable, "-m", "pipelines", "jobs"]
    table = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert reason in table.stdout, (table.stdout, table.stderr)
    nothing = subprocess.run([*command, "runs/typo"], capture_output=True, text=True, timeout=240)
    assert (nothing.returncode, nothing.stderr.count("\n")) == (2, 1)
    assert "runs/typo: nothing is there; name a dataset or a run" in nothing.stderr
    (tmp_path / "dataset.json").touch()
    none = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, timeout=240)
    assert (none.returncode, none.stdout) == (0, f"{tmp_path}: no jobs there\n")
    assert find_attempt(attempt.job_id) == attempt


def test_unreachable_address_hides_no_other_job(job: ResolvedJob, s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    attempt = recorded(job, 1, LOCAL, AttemptState(1, "failed", "here", 7, 0.0, 0.0, "no dataset"))
    remember_job("train-far", f"{s3}/far/jobs/train-far")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    statuses = {listed.job_id: status for listed, status in list_jobs()}
    assert statuses[attempt.job_id].phase == "failed"
    assert statuses["train-far"].phase == "unknown"
    assert "train-far: " in statuses["train-far"].reason
    table = subprocess.run([sys.executable, "-m", "pipelines", "jobs"], capture_output=True, text=True, timeout=240)
    assert attempt.job_id in table.stdout, table.stderr


def test_scaled_job_is_sent_to_target_as_recorded(
    job: ResolvedJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A label job goes on as another attempt: where it was sent, whatever its target's file says by now."""
    environment = {"WHERE": "as it was"}
    attempt = recorded(job, 1, LocalTarget(type="local", environment=environment))
    target = LocalTarget(type="local", environment=environment)
    assert LocalBackend(target).state(attempt.name).phase == "absent"
    (tmp_path / "waits").mkdir()
    (tmp_path / "waits" / "pipelines.py").write_text("input()")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "execute"],
        cwd=tmp_path / "waits",
        stdin=subprocess.PIPE,
        env={**os.environ, WORK_VARIABLE: attempt.name},
        start_new_session=True,
    )
    lines: list[str] = []
    follower = threading.Thread(target=lambda: lines.extend(log_lines(attempt, follow=True)))
    follower.start()
    try:
        assert job_status(attempt).phase == "pending"
        # There is no file target.yaml, and no target of that name.
        after = scale_job(attempt.job_id, WorkersSpec(count=2))
        assert (after.number, after.target["environment"]) == (2, environment)
        follower.join(timeout=240)
        assert any("no dataset there" in line for line in lines), "who follows a job goes on with its next attempt"
        assert not psutil.pid_exists(waiting.pid)
        assert ended(after) == "failed"
    finally:
        waiting.kill()
        waiting.communicate()


def test_log_ignores_files_that_are_no_parts(tmp_path: Path) -> None:
    """Parts of a log are counted by their names; other files beside them neither count nor stop the job."""
    store = open_store(tmp_path)
    store.put("log/000002.txt", b"before\n")
    store.put("log/notes.txt", b"mine\n")
    script = "import sys\nfrom labeling.dataset import open_store\nfrom pipelines.jobs.log import captured_log\n"
    script += "with captured_log(open_store(sys.argv[1])):\n    print('said')\n"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True, timeout=240)
    assert store.read("log/000003.txt") == b"said\n"
    assert list(stored_lines(store)) == ["before", "said"]
