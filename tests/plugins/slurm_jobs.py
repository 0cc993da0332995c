"""What tests of Slurm share: the site as a fixture, and a stand-in for a job that reports its environment."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from slurm_site import SlurmSite, need_slurm, slurm_site

from cluster.slurm.backend import SlurmBackend
from cluster.target import SlurmTarget
from cluster.work import Work

CHECKOUT = Path(__file__).parents[2]
SECONDS = 240.0
# Stands in for a job: it uses the Ray that it is given, and answers signals as real jobs do, or not at all.
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
report = {
    "nodes": sum(node["Alive"] for node in ray.nodes()),
    "cpus": ray.cluster_resources()["CPU"],
    "address": os.environ["RAY_ADDRESS"],
    "token": os.environ["RAY_AUTH_TOKEN"],
    "secret": os.environ.get("AWS_SECRET_ACCESS_KEY"),
    "works": checkpoint(),
}
(folder / f".report-{restarts}").write_text(json.dumps(report))
os.replace(folder / f".report-{restarts}", folder / f"report-{restarts}.json")
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
    """The site, reachable from this process. It ends what is started after it; the session's Ray is started before."""
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
    """A stand-in for a job: its folder, backend and work."""

    folder: Path
    backend: SlurmBackend
    work: Work

    @property
    def name(self) -> str:
        return self.work.name

    def explain(self) -> list[str]:
        return [*self.backend.logs(self.name), str(self.backend.state(self.name))]

    def written(self, file: str) -> dict[str, Any]:
        """Wait for a JSON file of the stand-in's; its content."""
        path = self.folder / file
        until(lambda: path.exists() or self.backend.state(self.name).phase == "ended", self.explain)
        assert path.exists(), self.explain()
        return dict(json.loads(path.read_text()))

    def report(self, restart: int = 0) -> dict[str, Any]:
        """What it reported when it had begun."""
        return self.written(f"report-{restart}.json")

    def checkpoint(self) -> dict[str, Any]:
        """What it wrote when it was interrupted."""
        return self.written("checkpoint-0.json")

    def ended(self) -> str:
        """Wait for its end; the reason."""
        until(lambda: self.backend.state(self.name).phase == "ended", self.explain)
        return self.backend.state(self.name).reason

    def number(self) -> str:
        """The number of its Slurm job."""
        return str(self.backend._jobs(self.work.name)[0].id)


def target(own: Path, **values: Any) -> SlurmTarget:
    defaults = {
        "cpus_per_node": 2,
        "object_store_gb": 0.1,
        "checkpoint_seconds": 60,
        "folder": str(own / "slurm"),
    }
    return SlurmTarget(type="slurm", **{**defaults, **values})


def stand_in(folder: Path, name: str, manner: str = "careful", **values: Any) -> StandIn:
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
    assert not psutil.wait_procs(processes, timeout=180)[1]
    assert not list(scratch.iterdir())


def raylets(processes: list[psutil.Process]) -> set[str]:
    """Names of the nodes that Ray runs on."""
    nodes = set()
    for process in processes:
        with suppress(psutil.Error):
            if process.name() == "raylet":
                nodes.add(process.environ()["SLURMD_NODENAME"])
    return nodes


def go_on(site: SlurmSite, number: str) -> None:
    """Start a requeued job at once, instead of after the two minutes that Slurm waits."""

    def is_requeued() -> bool:
        description = site.run("scontrol", "--oneliner", "show", "job", number)
        return "Reason=BeginTime" in description or "Restarts=0" not in description

    until(is_requeued, lambda: [site.run("squeue")])
    site.run("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)
