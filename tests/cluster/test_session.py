"""The Ray that jobs run on, as they meet it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from ray_head import ray_head, ray_node

from cluster.ray_environment import prepare_ray
from pipelines.jobs.folder import JobFolder
from pipelines.jobs.run import TRY_AGAIN
from pipelines.jobs.specification import ReportJob

pytestmark = pytest.mark.slow

ANSWERS = """
import os, signal, time
import psutil
from cluster.session import ray_session

class Same:
    def __call__(self, batch):
        return batch

told = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: told.append(signal.Signals(number).name))
with ray_session(memory=100 << 20):
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    time.sleep(0.5)
    import ray
    import ray._private.state
    import ray.data
    assert ray.data.range(4).map_batches(Same, concurrency=1, batch_size=None).count() == 4
    started = ray._private.worker._global_node.all_processes
    print(*sorted(started), len(ray._private.state.state.actor_table(None)))
    below = psutil.Process(started["raylet"][0].process.pid).children(recursive=True)
    agent = next(process for process in below if "DashboardAgent" in process.cmdline()[0])
    print("agent", *(one.laddr.port for one in agent.net_connections() if one.status == psutil.CONN_LISTEN))
    worker = ray.get(ray.remote(lambda: os.getpid()).remote())
    os.kill(worker, signal.SIGSTOP)  # stands in for one that hangs while it exits
print(worker)
print(*told)
"""


STARTS_RAY = """
import sys
import pipelines.jobs.run as execute
from cluster.session import ray_session

def run(job, own):
    with ray_session(memory=100 << 20):
        return {}

execute.run_job = run
raise SystemExit(execute.execute(sys.argv[1], 1))
"""


WAITS_IN_RAY = """
import sys, time
import pipelines.jobs.run as execute
from cluster.session import ray_session
from pathlib import Path

def work(row):
    time.sleep(1000)
    return row

def run(job, own):
    with ray_session(memory=100 << 20):
        import ray
        pid = ray._private.worker._global_node.all_processes["raylet"][0].process.pid
        temporary = Path(sys.argv[2] + ".tmp")
        temporary.write_text(str(pid))
        temporary.rename(sys.argv[2])
        for row in ray.data.range(2, override_num_blocks=1).map(work).iter_rows():
            pass

execute.run_job = run
raise SystemExit(execute.execute(sys.argv[1], 1))
"""


# Stands in for a job's work: it fails as whatever uses something that was on a node that is gone.
USES_A_NODE = """
import sys, time
import pipelines.jobs.run as execute
from cluster.session import ray_session
from pipelines.jobs.folder import JobFolder

class Kept:
    def ask(self):
        return 1

def run(job, own):
    with ray_session():
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as On
        while not (nodes := [node for node in ray.nodes() if "node:__internal_head__" not in node["Resources"]]):
            time.sleep(0.2)
        actor = ray.remote(Kept).options(num_cpus=0, scheduling_strategy=On(nodes[0]["NodeID"], soft=False)).remote()
        ray.get(actor.ask.remote())
        open(sys.argv[2], "w").close()
        while True:
            ray.get(actor.ask.remote())

execute.run_job = run
raise SystemExit(execute.execute(sys.argv[1], 1))
"""


@pytest.mark.parametrize("users", [False, True])
def test_cluster_gets_token_that_ray_itself_would_use(
    users: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_ADDRESS"):
        monkeypatch.setenv(name, "")  # set, so that all that prepare_ray sets is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    own, kept = tmp_path / "data" / "onediffusion" / "ray-token", tmp_path / ".ray" / "auth_token"
    if users:
        kept.parent.mkdir()
        kept.write_text("f" * 64)
    prepare_ray()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(own), "for a Ray of this project's own"
    assert len(own.read_text()) == 64
    assert own.stat().st_mode & 0o777 == 0o600
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:6379")
    prepare_ray()
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(kept if users else own)


def test_interrupt_during_ray_start_asks_for_restart(tmp_path: Path) -> None:
    """Ray takes SIGTERM for itself in that time."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_DATA_HOME": str(tmp_path / "data")}
    folder = JobFolder(str(tmp_path / "job"))
    folder.put_specification(ReportJob(kind="report", of=str(tmp_path)))
    job = subprocess.Popen([sys.executable, "-c", STARTS_RAY, folder.address], env=environment)
    deadline = time.monotonic() + 240
    while "gcs_server" not in [process.name() for process in psutil.Process(job.pid).children()]:
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    job.terminate()
    assert job.wait(timeout=240) == TRY_AGAIN
    state = folder.state()
    assert state is not None and state.phase == "interrupted"


def test_lost_node_interrupts_job(tmp_path: Path) -> None:
    folder, begun = JobFolder(str(tmp_path / "job")), tmp_path / "begun"
    folder.put_specification(ReportJob(kind="report", of=str(tmp_path)))
    with ray_head(tmp_path, {}, takes_jobs=True) as head, ray_node(head, 1) as raylet:
        environment = head.environment | {"RAY_ADDRESS": head.gcs, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", USES_A_NODE, folder.address, str(begun)]
        job = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 240
        while not begun.exists():
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        raylet.kill()
        assert job.wait(timeout=240) == TRY_AGAIN
    state = folder.state()
    assert state is not None and state.phase == "interrupted"
    assert re.fullmatch(r"the cluster lost [0-9.]+; started again, it goes on", state.reason)


def test_job_whose_ray_dies_says_so_and_asks_for_restart(tmp_path: Path) -> None:
    """Ray's C++ code would end the process some seconds later, without a word."""
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_DATA_HOME": str(tmp_path / "data")}
    folder = JobFolder(str(tmp_path / "job"))
    folder.put_specification(ReportJob(kind="report", of=str(tmp_path)))
    command = [sys.executable, "-c", WAITS_IN_RAY, folder.address, str(tmp_path / "raylet")]
    job = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (tmp_path / "raylet").exists():
        assert job.poll() is None and time.monotonic() < deadline
        time.sleep(0.1)
    time.sleep(1)
    psutil.Process(int((tmp_path / "raylet").read_text())).kill()
    said, _ = job.communicate(timeout=240)
    assert job.returncode == TRY_AGAIN
    state = folder.state()
    assert state is not None and state.phase == "interrupted"
    assert state.reason.startswith("Ray on this machine has ended (its raylet died")
    assert said == f"onediffusion: {state.reason}\n"


def test_own_ray_has_what_a_command_needs_and_leaves_it_its_signals(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ANSWERS], env=environment, capture_output=True, text=True, timeout=120)
    processes, agent, worker, signals = done.stdout.splitlines()
    assert signals.split() == ["SIGTERM", "SIGUSR1"], done.stderr
    *names, actors = processes.split()
    assert set(names) - {"reaper"} == {"gcs_server", "raylet"}, "without helpers; some kernels need a reaper"
    assert actors == "1", "that of the work, none of Ray Data's own"
    usual = "52365"  # for which the agent of a second Ray would wait
    assert agent.startswith("agent") and usual not in agent
    assert not psutil.pid_exists(int(worker)), "no worker outlives its Ray"
