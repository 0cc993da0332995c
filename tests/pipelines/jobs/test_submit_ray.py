"""Jobs on a Ray cluster that runs already: a real one, of one node, with a token and S3 credentials of its own."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_head import RayHead, ray_head, ray_node

from cluster.checkout import checkout_files, pack_checkout
from labeling.dataset import Dataset, open_store
from model.inputs import InputError
from pipelines.ingest import ingest
from pipelines.jobs.control import stop_job
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.log import log_lines
from pipelines.jobs.resolved import resolve_job
from pipelines.jobs.specification import parse_specification
from pipelines.jobs.status import backend_of, job_status, list_jobs
from pipelines.jobs.submit import plan_job, submit_job, work_of

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory, s3_server: dict[str, str]) -> Iterator[RayHead]:
    with ray_head(tmp_path_factory.mktemp("head"), s3_server, takes_jobs=True) as running:
        yield running


@pytest.fixture
def target(head: RayHead, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: str) -> str:
    """A target file of that cluster, for someone whose own data folder and token are others."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return write(tmp_path / "target.yaml", address=head.address, token_file=str(head.token_file))


CHECKOUT = Path(__file__).parents[3]
PLUGINS = str(CHECKOUT / "tests" / "plugins")


def write(path: Path, **values: Any) -> str:
    path.write_text(yaml.safe_dump({"type": "ray", **values}))
    return str(path)


def label_job(pictures: Path, dataset: str) -> Any:
    values = {"kind": "label", "source": str(pictures), "dataset": dataset, "groups": ["edges", "boxes"]}
    return resolve_job(parse_specification(values, "job"))


def test_ray_job_gives_same_shards_as_local_job(pictures: Path, target: str, s3: str) -> None:
    datasets = {"local": f"{s3}/by-local", target: f"{s3}/by-ray"}
    attempts = {name: submit_job(label_job(pictures, dataset), name) for name, dataset in datasets.items()}
    for name, attempt in attempts.items():
        lines = list(log_lines(attempt, follow=True))
        assert job_status(attempt).phase == "succeeded", (name, lines)
    stores = [open_store(dataset) for dataset in datasets.values()]
    for group in ("images", "edges", "boxes"):
        shards = [store.read(f"{group}/000000.parquet") for store in stores]
        assert shards[0] == shards[1], group


def test_dry_run_is_request_without_secrets(
    pictures: Path, target: str, head: RayHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-mine")
    request, files = plan_job(label_job(pictures, "data"), target).values()
    assert json.loads(request)["entrypoint"].startswith("python -m pipelines execute ")
    assert "AWS_ENDPOINT_URL" in json.loads(request)["runtime_env"]["env_vars"]
    assert "pipelines/jobs/run.py" in files.split()
    assert not any(name.startswith((".venv", "runs/", ".git/")) for name in files.split())
    for text in (request, files):
        assert "a-secret-of-mine" not in text
        assert head.token_file.read_text() not in text


def test_upload_holds_no_data_and_no_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkout = tmp_path / "checkout"
    tracked = subprocess.run(["git", "ls-files"], cwd=CHECKOUT, check=True, capture_output=True, text=True).stdout
    for name in tracked.splitlines():
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(CHECKOUT / name, checkout / name)
    for name in ("s3.env", ".env", "data/pictures/images/000000.parquet", "runs/demo/report.html", "mine.py"):
        (checkout / name).parent.mkdir(parents=True, exist_ok=True)
        (checkout / name).write_text("")
    without_git = checkout_files(checkout)
    assert {name.split("/")[0] for name in without_git} == {"model", "labeling", "training", "cluster", "pipelines"}
    subprocess.run(["git", "init", "-q"], cwd=checkout, check=True)
    assert set(checkout_files(checkout)) == {*tracked.splitlines(), "mine.py"}
    assert set(without_git) < set(tracked.splitlines())
    monkeypatch.setattr("cluster.checkout.MAX_BYTES", 1 << 20)
    with pytest.raises(InputError, match=r"MB would be uploaded.* \(the largest file is training/pretrained/"):
        pack_checkout(checkout, tmp_path / "archive.zip")


def test_submit_killed_while_sending_sends_once(pictures: Path, target: str, s3: str) -> None:
    """Killed before the cluster has the job: it is listed, and sent under the same name. Killed later: it is joined."""
    job = label_job(pictures, f"{s3}/killed-sender")
    script = (
        "import os, sys, yaml\n"
        "from ray.job_submission import JobSubmissionClient\n"
        "from pipelines.jobs.resolved import resolve_job\n"
        "from pipelines.jobs.specification import parse_specification\n"
        "from pipelines.jobs.submit import submit_job\n"
        "sent = JobSubmissionClient.submit_job\n"
        "def submit(self, **request):\n"
        "    if sys.argv[1] == 'after':\n"
        "        sent(self, **request)\n"
        "    os._exit(9)\n"
        "JobSubmissionClient.submit_job = submit\n"
        "submit_job(resolve_job(parse_specification(yaml.safe_load(sys.stdin), 'job')), sys.argv[2])\n"
    )
    for moment, phases in (("before", ["lost"]), ("after", ["pending", "running"])):
        values = yaml.safe_dump(job.specification.model_dump(mode="json")).encode()
        command = [sys.executable, "-c", script, moment, target]
        assert subprocess.run(command, input=values, cwd=CHECKOUT, timeout=240).returncode == 9
        [(noted, state)] = list_jobs()
        assert (noted.number, state.phase in phases) == (1, True), state
    assert submit_job(job, target) == noted
    assert stop_job(noted.job_id).phase == "stopped"


def test_stop_ends_ray_job(pictures: Path, target: str, s3: str) -> None:
    attempt = submit_job(label_job(pictures, f"{s3}/stopped"), target)
    backend, work = backend_of(attempt), work_of(label_job(pictures, f"{s3}/stopped"), attempt)
    with pytest.raises(InputError, match=re.escape(f"{attempt.name}: runs on")):
        backend.submit(work)
    deadline = time.monotonic() + 240
    while job_status(attempt).phase != "running":
        assert time.monotonic() < deadline, list(log_lines(attempt))
        time.sleep(0.5)
    assert stop_job(attempt.job_id).phase == "stopped"
    assert backend.state(attempt.name).phase == "ended"


def test_attempt_known_to_cluster_gets_next_number(pictures: Path, target: str, s3: str) -> None:
    """Ray keeps the names of ended jobs. This one ends at once, since its sender had not yet written its folder."""
    job = label_job(pictures, f"{s3}/numbers")
    attempt = submit_job(job, target)
    backend, folder = backend_of(attempt), JobFolder(attempt.address)
    stop_job(attempt.job_id)
    for name in ("state.json", "control.json"):
        folder.store.delete(name)
    assert job_status(attempt).phase == "lost"
    assert backend.state(attempt.name).phase == "ended"
    again = submit_job(job, target)
    assert again.number == 2
    state = stop_job(again.job_id)
    assert state.phase == "stopped", state
    folder.store.delete("state.json")  # as a write of the ended process would, had it come too late
    assert job_status(again).phase == "stopped"


def test_label_job_continues_after_losing_node(pictures: Path, head: RayHead, target: str, tmp_path: Path) -> None:
    values = {"address": head.address, "token_file": str(head.token_file), "environment": {"PYTHONPATH": PLUGINS}}
    path = write(tmp_path / "with-labelers.yaml", **values)
    lost = str(tmp_path / "lost")
    group = "simple_labelers:Patient"
    job = resolve_job(parse_specification({"kind": "label", "dataset": lost, "groups": [group]}, "job"))
    ingest(str(pictures), lost, shard_rows=2)
    with ray_node(head, 1, runs_jobs=True) as raylet:
        attempt = submit_job(job, path)
        deadline = time.monotonic() + 120
        while len(open_store(lost).files("patient")) < 2:  # its declaration, and a shard
            assert time.monotonic() < deadline and job_status(attempt).alive, list(log_lines(attempt))
            time.sleep(0.2)
        raylet.kill()
        lines = list(log_lines(attempt, follow=True))
    assert job_status(attempt).phase == "succeeded", "\n".join(lines)
    assert sum(row["value"] is not None for row in Dataset.open(lost).rows("patient")) == 6


def test_user_error_is_one_line_and_leaves_nothing(
    pictures: Path, target: str, head: RayHead, tmp_path: Path, s3: str
) -> None:
    (tmp_path / "wrong-token").write_text("0" * 64)
    wrong = {
        "refuses this token": {"address": head.address, "token_file": str(tmp_path / "wrong-token")},
        "cannot read the cluster's token": {"address": head.address, "token_file": str(tmp_path / "no-file")},
        "no Ray cluster answers there": {"address": "http://127.0.0.1:9"},
        "write `address` as": {"address": "127.0.0.1"},
        "no checkout of this project": {"working_dir": str(tmp_path), "token_file": str(head.token_file)},
    }
    for words, values in wrong.items():
        path = write(tmp_path / "wrong.yaml", **{"address": head.address, **values})
        with pytest.raises(InputError, match=re.escape(words)) as error:
            submit_job(label_job(pictures, f"{s3}/mistaken"), path)
        assert "\n" not in str(error.value)
        assert not open_store(f"{s3}/mistaken").walk()
    assert list_jobs() == []


def test_dashboard_streams_log_of_job_on_s3(
    pictures: Path, target: str, s3: str, capfd: pytest.CaptureFixture[str]
) -> None:
    import dagster as dg

    from pipelines.dashboard.dagster_jobs import ingest_pictures

    form = {"dataset": f"{s3}/streamed", "source": str(pictures), "target_file": target}
    with dg.DagsterInstance.ephemeral() as instance:
        run = ingest_pictures.execute_in_process(
            {"ops": {"add_pictures": {"config": form}}}, instance=instance, raise_on_error=False
        )
    assert run.success
    assert "ingest: 6 pictures added, 3 files rejected" in capfd.readouterr().out
    assert open_store(f"{s3}/streamed").exists("dataset.json")
