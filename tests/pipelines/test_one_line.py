"""A user's error that shows in Ray's processes only is one line from every command, without Ray's own words on it."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from commands import ROOT, onediffusion, said_on

from model.inputs.yaml_files import to_yaml
from pipelines.ingest import _HERE_FILES
from pipelines.jobs.resolved import resolve_job
from pipelines.jobs.specification import parse_specification

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("shared_ray")]
OLD = ROOT / "tests/compatibility"  # a dataset, view sets and a run that are there already
UNLOADABLE = "simple_labelers:Unloadable"


def refused(result: subprocess.CompletedProcess[str], words: str) -> None:
    """One line and exit code 2; what the command did before it met the error stays on standard output."""
    lines = said_on(result.stderr)
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("onediffusion: ")
    assert words in lines[0]


@pytest.fixture
def no_rejected(tmp_path: Path) -> Path:
    """A folder for a dataset in which a file lies where rejected pictures are to be written."""
    dataset = tmp_path / "out" / "dataset"
    dataset.mkdir(parents=True)
    (dataset / "rejected").write_text("")
    return dataset


def test_ingest(no_rejected: Path, pictures: Path) -> None:
    for number in range(_HERE_FILES):  # fewer are read without Ray
        (pictures / f"{number}.txt").write_text(f"no picture {number}")
    refused(onediffusion("ingest", pictures, no_rejected), f"{no_rejected}: cannot write there (File exists)")


def test_demo(no_rejected: Path, pictures: Path) -> None:
    result = onediffusion("demo", "--pictures", pictures, "--out", no_rejected.parent)
    refused(result, f"{no_rejected}: cannot write there (File exists)")


def test_label(tmp_path: Path) -> None:
    dataset = shutil.copytree(OLD / "dataset", tmp_path / "dataset")
    refused(onediffusion("label", dataset, UNLOADABLE), "unloadable.model: no such model; name another")


def test_views(no_rejected: Path) -> None:
    refused(onediffusion("views", OLD / "meshes", no_rejected), f"{no_rejected}: cannot write there (File exists)")


def test_train(tmp_path: Path) -> None:
    for name in ("dataset", "views", "run"):
        shutil.copytree(OLD / name, tmp_path / name)
    for path in [*(tmp_path / "run").rglob("*.yaml"), *(tmp_path / "run").rglob("*.json")]:
        path.write_text(path.read_text().replace("/tmp/onediffusion-compat", str(tmp_path)))
    for shard in (tmp_path / "dataset" / "text").glob("*.parquet"):
        shard.unlink()
    refused(onediffusion("train", tmp_path / "run/config.yaml", "--run", tmp_path / "run"), "gone since the run began")


@pytest.mark.parametrize("kind", ["label", "evaluate"])
def test_job(kind: str, tmp_path: Path, own_data: None) -> None:
    """The last line of its log, the reason in its state, and the exit code of what a target runs."""
    dataset = shutil.copytree(OLD / "dataset", tmp_path / "dataset")
    values, words = {
        "label": ({"dataset": str(dataset), "groups": [UNLOADABLE]}, "unloadable.model: no such model; name another"),
        "evaluate": ({"run": str(tmp_path / "run")}, "no checkpoint there; make one with `train`"),
    }[kind]
    job = tmp_path / "job.yaml"
    job.write_text(to_yaml({"kind": kind, **values}))
    resolved = resolve_job(parse_specification({"kind": kind, **values}, "job"))
    sent = onediffusion("submit", job, "--target", "local")
    assert sent.stdout.strip() == resolved.id, sent.stderr
    said = onediffusion("logs", "-f", resolved.id).stdout.strip().splitlines()
    log = [line for line in said if not line.startswith("pending: ")]
    state = resolved.folder.state()
    assert state is not None
    assert (state.phase, log) == ("failed", [f"onediffusion: {state.reason}"])
    assert words in state.reason
