"""A Slurm with accounting, on nodes that share no disk: a job array labels on both, everything lies on S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from slurm_jobs import all_gone, raylets, stand_in, target, until
from slurm_site import SlurmSite, forget_jobs, need_slurm, slurm_site

from cluster.slurm.backend import SlurmBackend
from labeling.dataset import Dataset, open_store
from pipelines.ingest import ingest
from pipelines.jobs.control import stop_job
from pipelines.jobs.log import log_lines
from pipelines.jobs.resolved import resolve_job
from pipelines.jobs.specification import parse_specification
from pipelines.jobs.status import job_status, list_jobs
from pipelines.jobs.submit import submit_job
from pipelines.label import label

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[SlurmSite]:
    need_slurm()
    with slurm_site(accounting=True) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield running


def test_job_array_labels_on_s3_on_both_nodes(
    site: SlurmSite, s3: str, tmp_path: Path, scratch: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pipelines.cli.app import app

    here, there = str(tmp_path / "here"), f"{s3}/array"
    ingest(str(pictures), here, shard_rows=2)
    for name in open_store(here).walk():
        open_store(there).put(name, open_store(here).read(name))
    label(here, ["edges"])
    wanted = target(tmp_path, shared_disk=False, scratch=str(scratch), exclusive=True)
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump(wanted.model_dump(exclude_none=True)))
    asked = {"kind": "label", "dataset": there, "groups": ["edges"], "workers": {"tasks": 2, "cpus": 2}}
    sent = submit_job(resolve_job(parse_specification(asked, "job")), str(file))
    backend = SlurmBackend(wanted)

    def explain() -> list[str]:
        return [str(job_status(sent)), *log_lines(sent), *(path.read_text() for path in scratch.glob("*.out"))]

    assert sent.tasks == 2
    assert len(backend._jobs(sent.name)) == 2
    until(lambda: raylets(site.processes(sent.name)) == {"node1", "node2"}, explain)
    running = site.processes(sent.name)
    until(lambda: not job_status(sent).alive, explain)
    assert job_status(sent).phase == "succeeded", explain()
    stores = [open_store(f"{place}/edges") for place in (here, there)]
    shards = [name for name in stores[0].files() if name[0].isdigit()]
    assert len(shards) == len(Dataset.open(there).shards) > 2
    assert [stores[0].read(name) for name in shards] == [stores[1].read(name) for name in shards]
    assert sum(job_status(sent).result["written"].values()) == len(shards)
    assert list_jobs(there)[0][1].phase == "succeeded"
    app(["logs", sent.job_id, "--task", "1"], standalone_mode=False)
    assert "shards labeled" in capsys.readouterr().out
    lines = list(log_lines(sent))
    assert {line.split()[0] for line in lines} == {"[0]", "[1]"}
    until(lambda: backend.state(sent.name).phase == "ended", explain)
    kept = backend._accounting(sent.name)
    assert {line.split("|")[1] for line in kept} == {"COMPLETED"} and len(kept) == 2, kept
    assert {line.split("|")[3] for line in kept} == {"node1", "node2"}
    for path in scratch.glob("*.out"):
        path.unlink()
    all_gone(running, scratch)


def test_accounting_remembers_what_the_queue_has_forgotten(
    site: SlurmSite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A job that fails before it begins: its folder says nothing, the queue forgets it, and accounting still tells."""
    from pipelines.cli.app import app

    values = target(tmp_path, working_dir="/nowhere").model_dump(exclude_none=True)
    file = tmp_path / "site.yaml"
    file.write_text(yaml.safe_dump(values))
    asked = {"kind": "label", "dataset": str(tmp_path / "none"), "groups": ["edges"]}
    sent = submit_job(resolve_job(parse_specification(asked, "job")), str(file))
    waits = stand_in(tmp_path, "closed-1", partition="closed")
    waits.backend.submit(waits.work)
    backend = SlurmBackend(target(tmp_path))
    until(lambda: backend.state(sent.name).phase == "ended", lambda: [backend.state(sent.name)])
    before = job_status(sent)
    assert before.phase == "lost" and "exit code 2" in before.reason
    waits.backend.stop("closed-1")
    until(lambda: all("|FAILED|" in line for line in backend._accounting(sent.name)), lambda: [site.run("sacct", "-X")])
    until(lambda: "CANCELLED" in str(backend._accounting("closed-1")), lambda: [site.run("sacct", "-X")])
    forget_jobs(site)
    assert not backend._jobs(sent.name)
    assert job_status(sent) == before
    assert backend.state("closed-1").reason == "it was canceled"
    assert backend.state("never-1").phase == "absent"
    app(["logs", sent.job_id], standalone_mode=False)
    assert "has no folder /nowhere" in capsys.readouterr().out
    assert stop_job(sent.job_id).phase == "stopped"
    site.run("sacctmgr", "--immediate", "add", "account", "lab")
    user = site.run("id", "-un")
    site.run("sacctmgr", "--immediate", "add", "user", user, "account=lab")
    # Its limits are made up by a procedure, which a database without tables of its own cannot keep.
    findings = backend.examine(waits.work)
    assert "lab" in {one.where for one in findings if one.check == "limits of the account"}, findings
    assert not all(one.ok for one in SlurmBackend(target(tmp_path, account="la")).examine(waits.work))
