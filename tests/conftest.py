"""What tests share: a Ray on this machine, a real S3 server, photographs."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):  # as in processes of Ray
    os.environ.setdefault(variable, "1")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # so that the end of short runs is noticed soon
# Ray lowers the priority of its workers, and the demo's training would wait for all the other tests.
os.environ.setdefault("RAY_worker_niceness", "0")
# Tests and the processes that they start import from plugins/, as simple_labelers. tests/ itself must not be on the
# path, since its folders have the names of our packages.
PLUGINS = str(Path(__file__).parent / "plugins")
sys.path.insert(0, PLUGINS)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [PLUGINS, os.environ.get("PYTHONPATH")]))
# Fixtures: small datasets and configurations of a run, a Slurm, a dataset on the dashboard, a job.
pytest_plugins = ["tiny_training", "tiny_stages", "slurm_jobs", "dashboard_assets", "recorded_jobs"]

# Fixtures that start servers; `make test-fast` leaves out the tests that use them.
SLOW_FIXTURES = {"ray_cluster", "s3_server", "site"}


@pytest.hookimpl(tryfirst=True)  # before tests are left out by their marks
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what starts servers, leave out what test_torchao runs, and begin with the files that take minutes."""
    if find_spec("torchao") is None:
        items[:] = [item for item in items if item.get_closest_marker("torchao") is None]
    for item in items:
        if SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker("slow")
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """Ray reads its environment when it is imported, so a test file must not import it by itself."""
    if "ray" in sys.modules:
        raise pytest.UsageError("a test file imports Ray at its top: import it within the tests, after `ray_prepared`")


@pytest.fixture(autouse=True)
def own_signals() -> Iterator[None]:
    """Undo what a test does to the signals of this process.

    Dagster gives SIGTERM the handler of SIGINT for good, and that is ignored where the tests run in the background:
    whatever is started later could not be ended by SIGTERM.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        if handler is not None and signal.getsignal(number) is not handler:
            signal.signal(number, handler)


@pytest.fixture(scope="session")
def ray_prepared(tmp_path_factory: pytest.TempPathFactory) -> None:
    """The environment that Ray is to be imported in."""
    os.environ["XDG_DATA_HOME"] = str(tmp_path_factory.mktemp("data"))
    from cluster.ray_environment import prepare_ray

    prepare_ray()


@pytest.fixture(scope="session")
def ray_cluster(ray_prepared: None) -> Iterator[None]:
    """A Ray of this test session; the jobs under test connect to it. Its workers are forked (warm_processes)."""
    from commands import warm

    import cluster.ray_internals
    from cluster.session import ray_session

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cluster.ray_internals, "WORKER_START", str(warm().worker_start))
        with ray_session(memory=600 << 20):
            yield


@pytest.fixture
def shared_ray(ray_cluster: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes that a test starts use the session's Ray, which saves the start of their own."""
    import ray  # it reads its environment when it is imported

    monkeypatch.setenv("RAY_ADDRESS", ray.get_runtime_context().gcs_address)


@pytest.fixture(scope="session")
def photographs() -> Path:
    """Folder of the photographs that scikit-image ships."""
    import skimage

    return Path(skimage.__file__).parent / "data"


@pytest.fixture
def pictures(tmp_path: Path, photographs: Path) -> Path:
    """A small source folder: six photographs, one of them twice, and two files that are no whole picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png", "camera.png"):
        shutil.copy(photographs / name, folder / name)
    shutil.copy(photographs / "coffee.png", folder / "z-coffee-again.png")
    (folder / "cut.jpg").write_bytes((photographs / "rocket.jpg").read_bytes()[:60_000])
    (folder / "notes.txt").write_text("not a picture")
    return folder


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A real S3 server with a bucket `lab`; yields the environment that reaches it."""
    import s3_server as server

    with server.s3_server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@pytest.fixture
def s3(s3_server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """Address of the test bucket, with the environment set to reach it."""
    for name, value in s3_server.items():
        monkeypatch.setenv(name, value)
    return "s3://lab"
