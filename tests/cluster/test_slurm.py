"""Jobs on a real Slurm of two nodes: found, stopped, put back to the queue; what they leave behind, and what not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from slurm_site import SlurmSite, need_slurm, slurm_site

from cluster.slurm import SlurmBackend
from cluster.target import SlurmTarget
from cluster.work import NativeState, Work, Workers
from labeling.shards import Dataset
from labeling.storage import open_store
from model.errors import InputError
from pipelines.ingest import ingest
from pipelines.job import parse_job, resolve
from pipelines.label import label
from pipelines.submit import job_state, list_jobs, log_lines, plan_job, submit_job
from training.checkpoint import whole_checkpoints
from training.records import read_metrics

CHECKOUT = Path(__file__).parents[2]
SECONDS = 240.0
# Stands in for a job: it uses the Ray it is given, and answers signals as real ones do, or not at all.
STAND_IN = """
import json, os, signal, sys, time
from pathlib import Path

import ray

from cluster.session import ray_session

folder, manner = Path(sys.argv[2]), sys.argv[3]
signals = []
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, frame: signals.append(signal.Signals(number).name))
session = ray_session()
session.__enter__()
@ray.remote(num_cpus=0.1)
def double(number):
    return 2 * number
def checkpoint():
    return ray.get(double.remote(21)) == 42
restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
told = {
    "nodes": sum(node["Alive"] for node in ray.nodes()),
    "cpus": ray.cluster_resources()["CPU"],
    "address": os.environ["RAY_ADDRESS"],
    "token": os.environ["RAY_AUTH_TOKEN"],
    "secret": os.environ.get("AWS_SECRET_ACCESS_KEY"),
    "works": checkpoint(),
}
(folder / f".told-{restarts}").write_text(json.dumps(told))
os.replace(folder / f".told-{restarts}", folder / f"told-{restarts}.json")
if manner == "twice" and restarts != "0":
    sys.exit(0)
while manner == "deaf" or not signals:
    time.sleep(0.1)
(folder / ".checkpoint").write_text(json.dumps({"signals": signals, "works": checkpoint()}))
os.replace(folder / ".checkpoint", folder / f"checkpoint-{restarts}.json")
sys.exit(75)
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, ray_cluster: None) -> Iterator[SlurmSite]:
    """The site, reachable from this process. What starts while it runs is ended with it; not Ray, therefore."""
    need_slurm()
    with slurm_site() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        patch.setenv("XDG_DATA_HOME", str(tmp_path_factory.mktemp("data")))
        patch.delenv("RAY_ADDRESS", raising=False)
        yield running


@pytest.fixture
def scratch() -> Iterator[Path]:
    """A node's own disk: a short path, since Ray makes sockets there."""
    folder = Path(tempfile.mkdtemp(prefix="scratch-"))
    yield folder
    shutil.rmtree(folder)


@dataclass
class StandIn:
    """A job that is no job: its folder, backend and work."""

    folder: Path
    backend: SlurmBackend
    work: Work

    @property
    def name(self) -> str:
        return self.work.name

    def explain(self) -> list[str]:
        return [*self.backend.logs(self.name), str(self.backend.state(self.name))]

    def left(self, file: str) -> dict[str, Any]:
        """What it wrote, once it has."""
        path = self.folder / file
        until(lambda: path.exists() or self.backend.state(self.name).phase == "ended", self.explain)
        assert path.exists(), self.explain()
        return dict(json.loads(path.read_text()))

    def told(self, restart: int = 0) -> dict[str, Any]:
        """What it said after it had begun."""
        return self.left(f"told-{restart}.json")

    def checkpoint(self) -> dict[str, Any]:
        """What it wrote when it was interrupted."""
        return self.left("checkpoint-0.json")

    def ended(self) -> str:
        """Wait for its end; the reason."""
        until(lambda: self.backend.state(self.name).phase == "ended", self.explain)
        return self.backend.state(self.name).reason

    def number(self) -> str:
        """Slurm's."""
        return str(self.backend._jobs(self.work.name)[0].id)


def target(own: Path, **values: Any) -> SlurmTarget:
    given = {
        "cpus_per_node": 2,
        "object_store_gb": 0.1,
        "checkpoint_seconds": 60,
        "folder": str(own / "slurm"),
        **values,
    }
    return SlurmTarget(type="slurm", **given)


def stand_in(
    folder: Path, name: str, manner: str = "careful", workers: Workers | None = None, **values: Any
) -> StandIn:
    """A stand-in, not yet sent."""
    own = folder / name
    (own / "pipelines").mkdir(parents=True)
    (own / "pipelines" / "__init__.py").touch()
    (own / "pipelines" / "__main__.py").write_text(STAND_IN)
    environment = {"PYTHONPATH": str(CHECKOUT)}
    backend = SlurmBackend(target(own, working_dir=str(own), environment=environment, **values))
    arguments = ("execute", str(own), manner)
    return StandIn(own, backend, Work(name, "label", arguments, str(own)))


def until(true: Callable[[], Any], explain: Callable[[], Any], seconds: float = SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "\n".join(map(str, explain()))
        time.sleep(0.2)


def all_gone(processes: list[psutil.Process], scratch: Path) -> None:
    """Processes end, Ray's agents some moments after the rest, and the folders of their Rays are removed."""
    assert processes
    assert not psutil.wait_procs(processes, timeout=30)[1]
    assert not list(scratch.iterdir())


def raylets(processes: list[psutil.Process]) -> set[str]:
    """Names of the nodes that Ray runs on."""
    found = set()
    for process in processes:
        with suppress(psutil.Error):
            if process.name() == "raylet":
                found.add(process.environ()["SLURMD_NODENAME"])
    return found


def shards(dataset: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((dataset / "edges").glob("[0-9]*.parquet"))}


def go_on(site: SlurmSite, number: str) -> None:
    """Start a job that was put back without the two minutes that Slurm lets pass."""

    def back() -> bool:
        told = site.run("scontrol", "--oneliner", "show", "job", number)
        return "Reason=BeginTime" in told or "Restarts=0" not in told

    until(back, lambda: [site.run("squeue")])
    site.run("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)


@pytest.fixture(scope="module")
def limited(site: SlurmSite, tmp_path_factory: pytest.TempPathFactory) -> StandIn:
    """A job that comes to its time limit while other tests run; it goes on when it is put back."""
    job = stand_in(tmp_path_factory.mktemp("limited"), "limited-1", "twice", hours=2 / 60, options=["--nodelist=node2"])
    job.backend.submit(job.work)
    return job


def test_the_site_itself_starts_twice(limited: StandIn) -> None:
    with slurm_site() as another:
        assert another.run("srun", "--nodes=2", "printenv", "SLURMD_NODENAME").split() in (
            ["node1", "node2"],
            ["node2", "node1"],
        )
        daemons = another.processes()
        assert {"munged", "slurmctld", "slurmd"} <= {process.name() for process in daemons}
    assert not psutil.wait_procs(daemons, timeout=10)[1]
    assert not another.folder.exists()


def test_scripts_are_as_this_slurm_takes_them(site: SlurmSite, tmp_path: Path) -> None:
    values = {"gpus_per_node": 2, "gpu_type": "small", "memory_gb_per_node": 4, "hours": 0.5, "partition": "urgent"}
    backend = SlurmBackend(target(tmp_path, **values))
    for workers in (Workers(1, 1, 1.0), Workers(1, 3, 1.0, 1.0), Workers(2, 2, 2.0)):
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
def test_what_the_site_refuses_is_one_line(site: SlurmSite, tmp_path: Path, values: dict[str, Any], words: str) -> None:
    made = target(tmp_path, **values)
    workers = Workers(1, 1, float(made.cpus_per_node), float(made.gpus_per_node))
    with pytest.raises(InputError) as raised:
        SlurmBackend(made).submit(Work("refused-1", "label", ("execute",), str(tmp_path), workers))
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert SlurmBackend(made).state("refused-1").phase in ("absent", "ended")


def test_no_controller_is_one_line(site: SlurmSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = Path(site.environment["SLURM_CONF"]).read_text()
    wrong = tmp_path / "slurm.conf"
    wrong.write_text("\n".join("SlurmctldPort=1" if "SlurmctldPort" in line else line for line in text.splitlines()))
    monkeypatch.setenv("SLURM_CONF", str(wrong))
    with pytest.raises(InputError, match=r"controller does not answer \(.*\); try `scontrol ping`") as raised:
        SlurmBackend(target(tmp_path)).state("any-1")
    assert "\n" not in str(raised.value)


def test_a_waiting_job_says_why_and_is_cancelled(site: SlurmSite, tmp_path: Path) -> None:
    job = stand_in(tmp_path, "closed-1", partition="closed")
    job.backend.submit(job.work)
    until(lambda: "(Part" in job.backend.state("closed-1").reason, lambda: [job.backend.state("closed-1")])
    assert "the partition is closed" in job.backend.state("closed-1").reason
    with pytest.raises(InputError, match="closed-1: is at this site already"):
        job.backend.submit(job.work)
    assert not job.backend.scale("closed-1", Work("closed-1", "label", (), "", Workers(4, 4, 1.0)))
    job.backend.stop("closed-1")
    assert job.backend.state("closed-1").phase == "ended"
    assert "cancelled" in job.backend.state("closed-1").reason
    job.backend.stop("closed-1")
    job.backend.submit(job.work)  # the name is free again
    job.backend.stop("closed-1")
    assert list(job.backend.logs("closed-1")) == []
    assert stand_in(tmp_path, "never-1").backend.state("never-1").phase == "absent"


def test_of_two_sent_at_once_one_stays(site: SlurmSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # From two machines: no lock is common to them. Both look, see nothing, and send.
    job = stand_in(tmp_path, "closed-2", partition="closed")
    both, write = threading.Barrier(2, timeout=60), SlurmBackend._write
    monkeypatch.setattr("cluster.slurm.one_at_a_time", lambda name: nullcontext())

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
    assert [found.lives for found in job.backend._jobs("closed-2")] == [True, False]
    job.backend.stop("closed-2")


def test_killed_before_sbatch_has_answered_it_is_found_by_name(
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
        "import json, sys; from cluster.slurm import *\n"
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


def test_two_jobs_of_one_node_do_not_meet_and_stop_leaves_nothing(
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
    told = [careful.told(), deaf.told()]
    assert [(one["nodes"], one["cpus"], one["works"]) for one in told] == [(1, 1.0, True)] * 2
    assert told[0]["address"] != told[1]["address"]
    assert told[0]["token"] != told[1]["token"]
    assert told[0]["secret"] == "hunter2-hunter2", "credentials come with the environment"
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
    for secret in ("hunter2", told[0]["token"], told[1]["token"]):
        assert secret not in seen
    assert careful.backend.scale("careful-1", careful.work)
    careful.backend.stop("careful-1")
    assert careful.checkpoint() == {"signals": ["SIGTERM"], "works": True}
    assert careful.backend.state("careful-1").phase == "ended", "it is not put back"
    assert deaf.backend.state("deaf-1").phase == "running", "another's Ray is left alone"
    assert all(process.is_running() for process in running[1])
    assert not psutil.wait_procs(running[0], timeout=30)[1]
    deaf.backend.stop("deaf-1")
    assert deaf.backend.state("deaf-1") == NativeState("ended", "it was cancelled")
    all_gone(running[1], scratch)


def test_a_label_job_on_two_nodes_gives_the_shards_of_one_machine(
    site: SlurmSite, tmp_path: Path, scratch: Path, pictures: Path, ray_cluster: None
) -> None:
    ingest(str(pictures), str(tmp_path / "here"), shard_rows=3)
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    label(str(tmp_path / "here"), ["edges"])
    backend = SlurmBackend(target(tmp_path, scratch=str(scratch)))
    there = str(tmp_path / "there")
    work = Work("label-1", "label", ("label", there, "edges"), there, Workers(2, 2, 2.0))
    backend.submit(work)
    until(lambda: (tmp_path / "there" / "edges").exists(), lambda: backend.logs("label-1"))
    running = site.processes("label-1")
    assert raylets(running) == {"node1", "node2"}
    until(lambda: backend.state("label-1").phase == "ended", lambda: backend.logs("label-1"))
    lines = list(backend.logs("label-1"))
    assert backend.state("label-1").reason == "", lines
    assert any("on 2 node(s)" in line for line in lines)
    assert shards(tmp_path / "there") == shards(tmp_path / "here")
    assert len(shards(tmp_path / "here")) == len(Dataset.open(there).shards) > 1
    all_gone(running, scratch)


def test_a_preempted_job_writes_a_checkpoint_and_is_put_back(site: SlurmSite, tmp_path: Path, scratch: Path) -> None:
    site.run("scontrol", "update", "PartitionName=main", "GraceTime=60")
    job = stand_in(tmp_path, "preempted-1", scratch=str(scratch), options=["--nodelist=node1"])
    job.backend.submit(job.work)
    assert job.told()["works"]
    running = site.processes("preempted-1")
    script = tmp_path / "urgent.sh"
    script.write_text("#!/bin/bash\nsleep 1\n")
    place = ("--partition=urgent", "--nodelist=node1", "--exclusive", f"--output={tmp_path}/urgent.out")
    urgent = site.run("sbatch", "--parsable", *place, str(script))
    assert job.checkpoint() == {"signals": ["SIGTERM"], "works": True}
    until(lambda: job.backend.state("preempted-1").phase == "pending", job.explain)
    assert "it was put back" in job.backend.state("preempted-1").reason
    until(lambda: site.run("squeue", "-h", "-t", "all", "-j", urgent, "-o", "%T") == "COMPLETED", list)
    job.backend.stop("preempted-1")
    assert job.backend.state("preempted-1").phase == "ended"
    all_gone(running, scratch)
    site.run("scontrol", "update", "PartitionName=main", "GraceTime=0")


def test_two_nodes_train_are_interrupted_and_finish(
    site: SlurmSite, tmp_path: Path, scratch: Path, shared_config: dict[str, Any]
) -> None:
    run = tmp_path / "run"
    config = {**shared_config, "steps": 12, "checkpoints": {"every": 2, "keep": 20, "first": False}}
    workers = {"count": 2, "cpus": 1.25}  # one on a node, with room for what reads for it
    values = {"kind": "train", "config": "debug", "overrides": config, "run": str(run), "workers": workers}
    job = resolve(parse_job(values, "job"))
    place = tmp_path / "site.yaml"
    place.write_text(yaml.safe_dump(target(tmp_path, scratch=str(scratch)).model_dump(exclude_none=True)))
    assert "--nodes=2" in plan_job(job, str(place))["sbatch script"]
    submission = submit_job(job, str(place))
    assert [found.id for found, _ in list_jobs()] == [submission.id]

    def explain() -> list[str]:
        return [str(job_state(submission)), *log_lines(submission), *backend.logs(submission.name)]

    backend = SlurmBackend(target(tmp_path))
    until(lambda: whole_checkpoints(open_store(run)), explain)
    running = site.processes(submission.name)
    assert raylets(running) == {"node1", "node2"}
    number = str(backend._jobs(submission.name)[0].id)
    site.run("scancel", "--batch", "--signal=USR1", number)  # as ahead of the time limit
    until(lambda: backend.state(submission.name).phase == "pending", explain)
    all_gone(running, scratch)
    saved = whole_checkpoints(open_store(run))
    assert 2 <= saved[-1] < 12, explain()
    before = {path: path.read_bytes() for path in (run / "checkpoints").rglob("*.safetensors")}
    state = job_state(submission)
    assert (state.phase, "it was put back" in state.reason) == ("pending", True)
    go_on(site, number)
    until(lambda: not job_state(submission).alive, explain)
    assert job_state(submission).phase == "succeeded", explain()
    assert job_state(submission).result["step"] == 12
    assert whole_checkpoints(open_store(run)) == sorted({*saved, *range(2, 13, 2)})
    assert {path: path.read_bytes() for path in before} == before, "it went on from there, and wrote none of them again"
    assert [record["step"] for record in read_metrics(open_store(run))] == list(range(1, 13))
    assert any(f"continuing from step {saved[-1]}" in line for line in log_lines(submission))
    assert "Restarts=1" in site.run("scontrol", "show", "job", number)


def test_at_its_time_limit_a_job_is_put_back_and_goes_on(site: SlurmSite, limited: StandIn) -> None:
    assert limited.told()["works"]
    assert limited.checkpoint() == {"signals": ["SIGUSR1"], "works": True}
    go_on(site, limited.number())
    assert limited.ended() == ""
    assert limited.told(1)["token"] != limited.told()["token"]
    lines = list(limited.backend.logs("limited-1"))
    assert [f"restarted {count} times" in "".join(lines) for count in (0, 1)] == [True, True], "one file holds both"
    assert any("back to the queue" in line for line in lines)
