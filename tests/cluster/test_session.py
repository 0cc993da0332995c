"""The Ray that jobs run on, as they meet it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

from ray_head import ray_head, ray_node

from pipelines.execute import COME_BACK
from pipelines.job import ReportJob
from pipelines.job_folder import JobFolder

ANSWERS = """
import os, signal, time
from cluster.session import ray_session

told = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda number, frame: told.append(signal.Signals(number).name))
with ray_session(memory=100 << 20):
    for number in (signal.SIGTERM, signal.SIGUSR1):
        os.kill(os.getpid(), number)
    time.sleep(0.5)
print(*told)
"""


# Stands in for a job's work: it fails as whatever uses something that was on a node that is gone.
USES_A_NODE = """
import sys, time
import pipelines.execute as execute
from cluster.session import ray_session
from pipelines.job_folder import JobFolder

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

execute._run = run
raise SystemExit(execute.execute(sys.argv[1], 1))
"""


def test_a_job_that_fails_because_a_node_is_lost_is_interrupted(tmp_path: Path) -> None:
    folder, begun = JobFolder(str(tmp_path / "job")), tmp_path / "begun"
    folder.put_job(ReportJob(kind="report", of=str(tmp_path)))
    with ray_head(tmp_path, {}) as head, ray_node(head, 1) as raylet:
        environment = head.environment | {"RAY_ADDRESS": head.gcs, "PYTHONPATH": str(Path(__file__).parents[2])}
        command = [sys.executable, "-c", USES_A_NODE, folder.address, str(begun)]
        job = subprocess.Popen(command, env=environment)
        deadline = time.monotonic() + 60
        while not begun.exists():
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        raylet.kill()
        assert job.wait(timeout=60) == COME_BACK
    state = folder.state()
    assert state is not None and state.phase == "interrupted"
    assert re.fullmatch(r"the cluster lost [0-9.]+; submitted again, it goes on", state.reason)


def test_a_job_answers_signals_while_it_uses_ray(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": str(Path(__file__).parents[2]), "XDG_DATA_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", ANSWERS], env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["SIGTERM", "SIGUSR1"], done.stderr
