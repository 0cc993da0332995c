"""Real jobs on two nodes of a real Slurm: the shards of one machine; a training that is interrupted and finishes."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from slurm_jobs import all_gone, go_on, raylets, target, until
from slurm_site import SlurmSite

from cluster.slurm.backend import SlurmBackend
from labeling.dataset import Dataset, open_store
from pipelines.ingest import ingest
from pipelines.jobs.log import log_lines
from pipelines.jobs.resolved import resolve_job
from pipelines.jobs.specification import parse_specification
from pipelines.jobs.status import job_status, list_jobs
from pipelines.jobs.submit import plan_job, submit_job
from pipelines.label import label
from training.checkpoint import whole_checkpoints
from training.metrics_logger import read_metrics

pytestmark = [pytest.mark.slow, pytest.mark.long]


def shards(dataset: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((dataset / "edges").glob("[0-9]*.parquet"))}


def site_file(tmp_path: Path, scratch: Path) -> str:
    """The target as a user writes it."""
    place = tmp_path / "site.yaml"
    place.write_text(yaml.safe_dump(target(tmp_path, scratch=str(scratch)).model_dump(exclude_none=True)))
    return str(place)


def test_label_job_on_two_nodes_gives_same_shards(
    site: SlurmSite, tmp_path: Path, scratch: Path, pictures: Path, ray_cluster: None
) -> None:
    ingest(str(pictures), str(tmp_path / "here"), shard_rows=3)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    label(str(tmp_path / "here"), ["edges"])
    there = str(tmp_path / "there")
    values = {"kind": "label", "dataset": there, "groups": ["edges"], "workers": {"count": 2, "cpus": 2}}
    submission = submit_job(resolve_job(parse_specification(values, "job")), site_file(tmp_path, scratch))
    backend = SlurmBackend(target(tmp_path))

    def explain() -> list[str]:
        return [str(job_status(submission)), *log_lines(submission), *backend.logs(submission.name)]

    until(lambda: (tmp_path / "there" / "edges").exists(), explain)
    running = site.processes(submission.name)
    assert raylets(running) == {"node1", "node2"}
    until(lambda: not job_status(submission).alive, explain)
    assert job_status(submission).phase == "succeeded", explain()
    assert any("edges: 3 shards labeled" in line for line in log_lines(submission)), explain()
    assert any("on 2 node(s)" in line for line in backend.logs(submission.name))
    assert shards(tmp_path / "there") == shards(tmp_path / "here")
    assert len(shards(tmp_path / "here")) == len(Dataset.open(there).shards) > 1
    until(lambda: backend.state(submission.name).phase == "ended", explain)
    all_gone(running, scratch)


def test_training_on_two_nodes_is_interrupted_and_finishes(
    site: SlurmSite, tmp_path: Path, scratch: Path, shared_config: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    steps, every = 240, 20  # so many that there is time to interrupt it
    config = {**shared_config, "steps": steps, "checkpoints": {"every": every, "keep": 20, "first": False}}
    workers = {"count": 2, "cpus": 1.25}  # one on a node, with room for what reads for it
    values = {"kind": "train", "config": "debug", "overrides": config, "run": str(run), "workers": workers}
    job = resolve_job(parse_specification(values, "job"))
    place = site_file(tmp_path, scratch)
    assert "--nodes=2" in plan_job(job, place)["sbatch script"]
    submission = submit_job(job, place)
    assert list_jobs()[0][0].job_id == submission.job_id

    def explain() -> list[str]:
        return [str(job_status(submission)), *log_lines(submission), *backend.logs(submission.name)]

    backend = SlurmBackend(target(tmp_path))
    until(lambda: whole_checkpoints(open_store(run)), explain)
    running = site.processes(submission.name)
    assert raylets(running) == {"node1", "node2"}
    number = str(backend._jobs(submission.name)[0].id)
    site.run("scancel", "--batch", "--signal=USR1", number)  # as ahead of the time limit
    until(lambda: backend.state(submission.name).phase == "pending", explain)
    all_gone(running, scratch)
    saved = whole_checkpoints(open_store(run))
    assert every <= saved[-1] < steps, explain()
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*.safetensors")}
    state = job_status(submission)
    assert (state.phase, "it was put back" in state.reason) == ("pending", True)
    go_on(site, number)
    until(lambda: not job_status(submission).alive, explain)
    assert job_status(submission).phase == "succeeded", explain()
    assert job_status(submission).result["step"] == steps
    assert whole_checkpoints(open_store(run)) == sorted({*saved, *range(every, steps + 1, every)})
    assert {path: path.read_bytes() for path in before} == before, "it went on from there, and wrote none of them again"
    assert [record["step"] for record in read_metrics(open_store(run))] == list(range(1, steps + 1))
    assert any(f"continuing from step {saved[-1]}" in line for line in log_lines(submission))
    assert "Restarts=1" in site.run("scontrol", "show", "job", number)


def test_doctor_on_two_nodes(
    site: SlurmSite, tmp_path: Path, scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli.app import app

    place = site_file(tmp_path, scratch)
    app(["doctor", str(tmp_path / "place"), "--target", place, "--workers", "2", "--cpus", "2"], standalone_mode=False)
    table = " ".join(capsys.readouterr().out.split())
    for words in ("2 of 2 nodes are up", "no accounting", "between nodes", "over 2 (gloo)", "each reaches each"):
        assert all(word in table for word in words.split()), table
    until(lambda: not site.run("squeue", "-h", "-o", "%i"), lambda: [site.run("squeue")])
    closed = Path(place).read_text() + "partition: closed\n"
    Path(place).write_text(closed)
    assert app(["doctor", "--target", place, "--workers", "2"], standalone_mode=False) == 1
    told = capsys.readouterr().out
    assert "✗" in told and "DOWN" in told, "nothing was sent to a partition that is down"
