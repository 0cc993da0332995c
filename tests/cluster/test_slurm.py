"""A real Slurm of two nodes: jobs are found, stopped, put back to the queue; what they leave behind, and what not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from slurm_jobs import CHECKOUT, StandIn, all_gone, go_on, stand_in, target, until
from slurm_site import SlurmSite, slurm_site

from cluster.slurm.backend import SlurmBackend
from cluster.work import AlreadySubmitted, ResourceRequest, TargetState, Work
from model.inputs import InputError
from pipelines.jobs.control import stop_job
from pipelines.jobs.resolved import resolve_job
from pipelines.jobs.specification import LabelJob
from pipelines.jobs.status import job_status, list_jobs
from pipelines.jobs.submit import submit_job, work_of

pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def limited(site: SlurmSite, tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """A job that comes to its time limit while other tests run; it goes on when it is put back."""
    job = stand_in(tmp_path_factory.mktemp("limited"), "limited-1", "twice", hours=3 / 60, options=["--nodelist=node2"])
    job.backend.submit(job.work)
    return job


def test_two_slurm_sites_run_beside_each_other(limited: StandIn) -> None:
    with slurm_site() as another:
        assert another.run("srun", "--nodes=2", "printenv", "SLURMD_NODENAME").split() in (
            ["node1", "node2"],
            ["node2", "node1"],
        )
        daemons = another.processes()
        assert {"munged", "slurmctld", "slurmd"} <= {process.name() for process in daemons}
    assert not psutil.wait_procs(daemons, timeout=60)[1]
    assert not another.folder.exists()


def test_sbatch_accepts_scripts(site: SlurmSite, tmp_path: Path) -> None:
    values = {"gpus_per_node": 2, "gpu_type": "small", "memory_gb_per_node": 4, "hours": 0.5, "partition": "urgent"}
    backend = SlurmBackend(target(tmp_path, **values))
    for workers in (ResourceRequest(1, 1, 1.0), ResourceRequest(1, 3, 1.0, 1.0), ResourceRequest(2, 2, 2.0)):
        work = Work("label-1", "label", ("execute",), str(tmp_path), workers)
        script = tmp_path / "script.sh"
        script.write_text(backend.plan(work)["sbatch script"])
        site.run("sbatch", "--test-only", str(script))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"partition": "mian"}, "(partition 'mian'); `sinfo -s` lists those of this site: main, urgent, closed"),
        ({"hours": 2}, "(hours 2.0); `sinfo"),
        ({"constraint": "fast"}, "(constraint 'fast'); `sinfo"),
        ({"reservation": "tuesday"}, "(reservation 'tuesday'); `scontrol"),
        ({"cpus_per_node": 64}, "(cpus_per_node 64); `sinfo"),
        ({"memory_gb_per_node": 900}, "(memory_gb_per_node 900.0); `sinfo"),
        ({"gpus_per_node": 1, "gpu_type": "large"}, "gpu_type 'large'); `sinfo"),
        ({"options": ["--no-such-option"]}, "(options"),
        ({"folder": "/proc/nowhere"}, "/proc/nowhere: cannot keep scripts there"),
    ],
)
def test_refusal_by_site_is_one_line(site: SlurmSite, tmp_path: Path, values: dict[str, Any], words: str) -> None:
    made = target(tmp_path, **values)
    workers = ResourceRequest(1, 1, float(made.cpus_per_node), float(made.gpus_per_node))
    with pytest.raises(InputError) as raised:
        SlurmBackend(made).submit(Work("refused-1", "label", ("execute",), str(tmp_path), workers))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert SlurmBackend(made).state("refused-1").phase in ("absent", "ended")


def test_missing_controller_is_one_line(site: SlurmSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path(site.environment["SLURM_CONF"]).read_text()
    wrong = tmp_path / "slurm.conf"
    wrong.write_text("\n".join("SlurmctldPort=1" if "SlurmctldPort" in line else line for line in text.splitlines()))
    monkeypatch.setenv("SLURM_CONF", str(wrong))
    with pytest.raises(InputError, match=r"controller does not answer \(.*\); try `scontrol ping`") as raised:
        SlurmBackend(target(tmp_path)).state("any-1")
    assert "\n" not in str(raised.value)


def test_pending_job_tells_reason_and_is_canceled(site: SlurmSite, tmp_path: Path) -> None:
    job = stand_in(tmp_path, "closed-1", partition="closed")
    job.backend.submit(job.work)
    until(lambda: "(Part" in job.backend.state("closed-1").reason, lambda: [job.backend.state("closed-1")])
    assert "the partition is closed" in job.backend.state("closed-1").reason
    with pytest.raises(InputError, match="closed-1: is at this site already"):
        job.backend.submit(job.work)
    assert not job.backend.scale("closed-1", Work("closed-1", "label", (), "", ResourceRequest(4, 4, 1.0)))
    job.backend.stop("closed-1")
    assert job.backend.state("closed-1").phase == "ended"
    assert "canceled" in job.backend.state("closed-1").reason
    job.backend.stop("closed-1")
    job.backend.submit(job.work)  # the name is free again
    job.backend.stop("closed-1")
    assert list(job.backend.logs("closed-1")) == []
    assert stand_in(tmp_path, "never-1").backend.state("never-1").phase == "absent"


def test_job_of_another_user_is_seen_and_not_ended(
    site: SlurmSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = stand_in(tmp_path, "theirs-1", partition="closed")
    job.backend.submit(job.work)
    with monkeypatch.context() as another:
        another.setattr("cluster.slurm.backend.os.getuid", lambda: 54321)
        assert job.backend.state("theirs-1").phase == "pending"
        with pytest.raises(InputError, match="theirs-1: is at this site already"):
            job.backend.submit(job.work)
        with pytest.raises(InputError, match="theirs-1: another user's job"):
            job.backend.stop("theirs-1")
    assert job.backend.state("theirs-1").phase == "pending"
    job.backend.stop("theirs-1")
    assert job.backend.state("theirs-1").phase == "ended"


def test_concurrent_submit_keeps_one_job(site: SlurmSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # From two machines: no lock is common to them. Both look, see nothing, and send.
    job = stand_in(tmp_path, "closed-2", partition="closed")
    both, write = threading.Barrier(2, timeout=60), SlurmBackend._write
    monkeypatch.setattr("cluster.slurm.backend.one_at_a_time", lambda name: nullcontext())

    def write_together(self: SlurmBackend, name: str, text: str) -> Path:
        path = write(self, name, text)
        both.wait()
        return path

    monkeypatch.setattr(SlurmBackend, "_write", write_together)
    outcomes: list[str] = []

    def send() -> None:
        try:
            job.backend.submit(job.work)
            outcomes.append("sent")
        except InputError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=send) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes)[0].startswith("closed-2: is at this site already")
    assert sorted(outcomes)[1] == "sent"
    assert [found.is_alive for found in job.backend._jobs("closed-2")] == [True, False]
    job.backend.stop("closed-2")


def test_silent_site_may_have_taken_job(site: SlurmSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = resolve_job(LabelJob(kind="label", dataset=str(tmp_path / "none"), groups=["edges"]))
    place = tmp_path / "site.yaml"
    place.write_text(yaml.safe_dump(target(tmp_path, partition="closed").model_dump(exclude_none=True)))
    real, path = shutil.which("sbatch"), os.environ["PATH"]
    silence = 'echo "sbatch: error: Batch job submission failed: Socket timed out on send/recv operation" >&2; exit 1\n'

    def sbatch(first: str) -> None:
        """The site's own, which says nothing of what it did before."""
        (tmp_path / "bin").mkdir(exist_ok=True)
        (tmp_path / "bin" / "sbatch").write_text(f"#!/bin/bash\n{first}\n{silence}")
        (tmp_path / "bin" / "sbatch").chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{path}")

    sbatch("true")
    with pytest.raises(InputError, match=r"did not answer \(.*Socket timed out.*never doubles it"):
        submit_job(job, str(place))
    [(noted, state)] = list_jobs()
    assert (noted.number, state.phase) == (1, "lost")
    sbatch(f'{real} "$@" > {tmp_path}/said')
    sent = submit_job(job, str(place))
    assert (sent.number, job_status(sent).phase) == (1, "pending")
    assert len(SlurmBackend(target(tmp_path))._jobs(sent.name)) == 1
    monkeypatch.setenv("PATH", path)
    with pytest.raises(AlreadySubmitted):
        SlurmBackend(target(tmp_path)).submit(work_of(job, sent))
    assert stop_job(sent.job_id).phase == "stopped"


def test_submit_killed_before_answer_is_found_by_name(
    site: SlurmSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = stand_in(tmp_path, "closed-3", partition="closed")
    slow = tmp_path / "bin" / "sbatch"
    slow.parent.mkdir()
    slow.write_text(f'#!/bin/bash\n{shutil.which("sbatch")} "$@"\nsleep 60\n')
    slow.chmod(0o755)
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps([job.backend.target.model_dump(), str(job.folder)]))
    code = (
        "import json, sys; from cluster.slurm.backend import *\n"
        "values, folder = json.load(open(sys.argv[1]))\n"
        "SlurmBackend(SlurmTarget(**values)).submit(Work('closed-3', 'label', ('execute',), folder))"
    )
    path = f"{slow.parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(CHECKOUT)}
    sender = subprocess.Popen([sys.executable, "-c", code, str(settings)], env=environment, start_new_session=True)
    until(lambda: job.backend.state("closed-3").phase == "pending", lambda: [sender.poll()])
    os.killpg(sender.pid, signal.SIGKILL)
    sender.wait()
    assert job.backend.state("closed-3").phase == "pending"
    with pytest.raises(InputError, match="is at this site already"):
        job.backend.submit(job.work)
    job.backend.stop("closed-3")
    assert job.backend.state("closed-3").phase == "ended"


def test_jobs_on_one_node_have_separate_rays_and_stop_leaves_nothing(
    site: SlurmSite, tmp_path: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hunter2-hunter2")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")  # another Ray, of the machine that submits
    monkeypatch.setenv("SBATCH_JOB_NAME", "another")  # not what the target says
    here = {"options": ["--nodelist=node1"], "scratch": str(scratch)}
    careful = stand_in(tmp_path, "careful-1", **here)
    deaf = stand_in(tmp_path, "deaf-1", "deaf", **{**here, "checkpoint_seconds": 3})
    for job in (careful, deaf):
        job.backend.submit(job.work)
    reports = [careful.report(), deaf.report()]
    assert [(one["nodes"], one["cpus"], one["works"]) for one in reports] == [(1, 1.0, True)] * 2
    assert reports[0]["address"] != reports[1]["address"]
    assert reports[0]["token"] != reports[1]["token"]
    assert reports[0]["secret"] == "hunter2-hunter2", "credentials come with the environment"
    assert len(list(scratch.iterdir())) == 2
    running = [site.processes("careful-1"), site.processes("deaf-1")]
    # Who looks at the node, at the queue or into the files sees no secret.
    seen = "\n".join(
        [
            *(" ".join(process.cmdline()) for processes in running for process in processes),
            *(site.run("scontrol", "show", "job", job.number()) for job in (careful, deaf)),
            *(path.read_text() for job in (careful, deaf) for path in (job.folder / "slurm").iterdir()),
        ]
    )
    assert "ray.scripts.scripts" in seen
    for secret in ("hunter2", reports[0]["token"], reports[1]["token"]):
        assert secret not in seen
    assert careful.backend.scale("careful-1", careful.work)
    careful.backend.stop("careful-1")
    assert careful.checkpoint() == {"signals": ["SIGTERM"], "works": True}
    assert careful.backend.state("careful-1").phase == "ended", "it is not put back"
    assert deaf.backend.state("deaf-1").phase == "running", "another's Ray is left alone"
    assert all(process.is_running() for process in running[1])
    assert not psutil.wait_procs(running[0], timeout=60)[1]
    deaf.backend.stop("deaf-1")
    assert deaf.backend.state("deaf-1") == TargetState("ended", "it was canceled")
    all_gone(running[1], scratch)


def test_preempted_job_writes_checkpoint_and_requeues(site: SlurmSite, tmp_path: Path, scratch: Path) -> None:
    site.run("scontrol", "update", "PartitionName=main", "GraceTime=60")
    job = stand_in(tmp_path, "preempted-1", scratch=str(scratch), options=["--nodelist=node1"])
    job.backend.submit(job.work)
    assert job.report()["works"]
    running = site.processes("preempted-1")
    script = tmp_path / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    place = ("--partition=urgent", "--nodelist=node1", "--exclusive", f"--output={tmp_path}/urgent.out")
    urgent = site.run("sbatch", "--parsable", *place, str(script))
    assert job.checkpoint() == {"signals": ["SIGTERM"], "works": True}
    until(lambda: "it was put back" in job.backend.state("preempted-1").reason, job.explain)  # once Slurm looks at it
    assert job.backend.state("preempted-1").phase == "pending"
    until(lambda: site.run("squeue", "-h", "-t", "all", "-j", urgent, "-o", "%T") == "COMPLETED", list)
    job.backend.stop("preempted-1")
    assert job.backend.state("preempted-1").phase == "ended"
    all_gone(running, scratch)
    site.run("scontrol", "update", "PartitionName=main", "GraceTime=0")


def test_job_at_time_limit_requeues_and_continues(site: SlurmSite, limited: StandIn) -> None:
    assert limited.report()["works"]
    assert limited.checkpoint() == {"signals": ["SIGUSR1"], "works": True}
    go_on(site, limited.number())
    assert limited.ended() == ""
    # A slow machine may need the time of more than one restart to start Ray.
    last = max(int(path.stem.removeprefix("report-")) for path in limited.folder.glob("report-*.json"))
    assert last > 0 and limited.report(last)["token"] != limited.report()["token"]
    lines = list(limited.backend.logs("limited-1"))
    assert [f"restarted {count} times" in "".join(lines) for count in (0, last)] == [True, True], "one file holds both"
    assert any("back to the queue" in line for line in lines)
