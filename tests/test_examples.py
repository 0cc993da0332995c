"""The examples, run as their pages say, with few pictures and few steps."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from ray_head import RayHead, ray_head
from tiny_models import save_pipeline
from warm_processes import Warm, warm_processes

from labeling.dataset import Dataset

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
pytestmark = [pytest.mark.slow, pytest.mark.long]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the packages as pip installs them."""
    folder = tmp_path_factory.mktemp("installed")
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--target", str(folder / "packages")]
    names = ("brightness_labeler", "palette_condition")
    sources = [str(shutil.copytree(EXAMPLES / name, folder / name)) for name in names]  # building leaves files behind
    subprocess.run([sys.executable, "-m", "pip", "install", *options, *sources], check=True)
    return folder / "packages"


@pytest.fixture(scope="module")
def paths(installed: Path) -> str:
    """PYTHONPATH with the packages and the checkout."""
    return os.pathsep.join([str(installed), str(ROOT), os.environ["PYTHONPATH"]])


@pytest.fixture(scope="module")
def warm(paths: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    """What commands and workers of Ray are forked from."""
    data = str(tmp_path_factory.mktemp("data"))
    with warm_processes({**os.environ, "PYTHONPATH": paths, "XDG_DATA_HOME": data}) as processes:
        yield processes


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, paths: str, warm: Warm) -> Iterator[RayHead]:
    """A Ray with the packages installed, so that not every command starts its own."""
    folder = tmp_path_factory.mktemp("ray")
    own = {"XDG_DATA_HOME": str(folder), "PYTHONPATH": paths}
    with ray_head(folder, own, worker_start=warm.worker_start) as head:
        yield head


@pytest.fixture(scope="module")
def environment(cluster: RayHead, paths: str, warm: Warm) -> dict[str, str]:
    """Variables of someone who has installed the packages and uses that Ray."""
    return {
        **os.environ,
        "RAY_ADDRESS": cluster.gcs,
        "RAY_AUTH_TOKEN_PATH": str(cluster.token_file),
        "PATH": os.pathsep.join([str(warm.commands), str(Path(sys.executable).parent), os.environ["PATH"]]),
        "PYTHONPATH": paths,
    }


def run(command: list[str], environment: dict[str, str]) -> str:
    """What a command prints; it succeeds."""
    result = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


def take_pictures(photographs: Path, folder: Path) -> Path:
    """Copy three photographs into a new folder."""
    folder.mkdir()
    for name in ("astronaut.png", "chelsea.png", "coffee.png"):
        shutil.copy(photographs / name, folder / name)
    return folder


def test_packaged_labeler_is_found_by_its_name(environment: dict[str, str], photographs: Path, tmp_path: Path) -> None:
    pictures, dataset = take_pictures(photographs, tmp_path / "pictures"), str(tmp_path / "dataset")
    run(["onediffusion", "ingest", str(pictures), dataset], environment)
    output = run(["onediffusion", "label", dataset, "brightness"], environment)
    assert "brightness: 1 shards labeled, 0 fresh" in output
    rows = list(Dataset.open(dataset).rows("brightness"))
    assert len(rows) == 3
    assert all(0 < row["brightness"] < 1 and row["error"] is None for row in rows)
    output = run(["onediffusion", "label", dataset, "brightness", "--set", "brightness.center=1"], environment)
    assert "brightness: 1 shards labeled" in output
    assert all(row["brightness"] == row["center"] for row in Dataset.open(dataset).rows("brightness"))


def test_label_of_a_package_becomes_a_task_that_can_be_trained_and_sampled(
    environment: dict[str, str], photographs: Path, tmp_path: Path
) -> None:
    pictures, dataset = take_pictures(photographs, tmp_path / "pictures"), str(tmp_path / "dataset")
    tasks, groups = (
        "text.tasks=[text2image, palette]",
        ("caption", "palette", "latents-96", "latents-96-palette", "text"),
    )
    run(["onediffusion", "ingest", str(pictures), dataset], environment)
    run(["onediffusion", "label", dataset, *groups, "--set", tasks], environment)
    prompts = [entry["prompt"] for row in Dataset.open(dataset).rows("text-palette") for entry in row["entries"]]
    assert sum(prompt.startswith("[[palette2image]] ") for prompt in prompts) == 3
    configuration, trained = str(EXAMPLES / "own_pictures" / "tiny.yaml"), str(tmp_path / "run")
    settings = [f"mixture.pictures.dataset={dataset}", "mixture.pictures.tasks={palette: 1}", "steps=2", "batch=2"]
    changed = [word for setting in settings for word in ("--set", setting)]
    run(["onediffusion", "train", configuration, "--run", trained, *changed], environment)
    squares, again = str(tmp_path / "squares.png"), str(tmp_path / "again.png")
    sample = ["onediffusion", "sample", trained, "palette", "--steps", "2"]
    run([*sample, "--image", str(pictures / "coffee.png"), "--out", squares], environment)
    run([*sample, "--condition", squares, "--prompt", "a cup", "--out", again], environment)
    assert Path(again).stat().st_size > 0


def test_own_pictures_become_a_run_that_can_be_sampled(
    environment: dict[str, str], photographs: Path, tmp_path: Path
) -> None:
    pictures, out = take_pictures(photographs, tmp_path / "pictures"), tmp_path / "own"
    few = ["--set", "steps=4", "--set", "batch=4", "--set", "checkpoints.every=4"]
    run(["bash", str(EXAMPLES / "own_pictures" / "run.sh"), str(pictures), str(out), *few], environment)
    for name in ("edges.png", "drawn.png", "run/report.html", "run/checkpoints/step-000004/state.json"):
        assert (out / name).exists(), name


def test_notebook_samples_in_both_directions(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pipeline(tmp_path / "model")
    monkeypatch.setenv("MODEL", str(tmp_path / "model"))
    monkeypatch.setenv("PICTURE", str(photographs / "chelsea.png"))
    monkeypatch.setenv("STEPS", "2")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ["PYTHONPATH"]]))
    notebook = nbformat.read(EXAMPLES / "sampling.ipynb", 4)
    done = NotebookClient(
        notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": ROOT}}
    ).execute()
    cells = [cell for cell in done.cells if cell.cell_type == "code"]
    assert all(cell.outputs for cell in cells)
    pictures = [output for cell in cells for output in cell.outputs if "image/png" in output.get("data", {})]
    assert len(pictures) == 4
