"""The command line: quick to answer, and one line with exit code 2 for what a user got wrong."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from commands import ROOT, onediffusion


def test_help_names_every_command_and_imports_nothing_heavy() -> None:
    result = onediffusion("--help")
    assert result.returncode == 0
    for command in ("ingest", "label", "status", "views", "sets", "train", "sample", "report", "demo"):
        assert re.search(rf"\b{command}\b", result.stdout)
    code = "import sys, pipelines.cli.app; print([m for m in ('torch', 'ray', 'numpy', 'pyarrow') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert loaded.stdout.strip() == "[]"


def refused(result: subprocess.CompletedProcess[str], *words: str) -> None:
    lines = result.stderr.strip().splitlines()
    assert result.returncode == 2, result.stderr
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("onediffusion: ")
    for word in words:
        assert word in lines[0]


def test_wrong_arguments_are_one_line(tmp_path: Path) -> None:
    refused(onediffusion("lable", str(tmp_path)), "lable", "label")
    refused(onediffusion("label"), "DATASET")
    refused(onediffusion("status", str(tmp_path / "nowhere")), "nowhere", "ingest")
    refused(onediffusion("report", str(tmp_path / "nowhere")), "nowhere")
    refused(onediffusion("train", "debgu"), "debgu", "debug")
    refused(onediffusion("train", "debug", "--set", "optimiser.ema=0.9"), "optimiser", "optimizer")
    refused(onediffusion("train", "debug", "--set", "optimizer.learning_rat=0.9"), "learning_rat", "learning_rate")
    refused(onediffusion("sample", str(tmp_path), "dept", "--image", "x.png"), "dept", "depth")
    refused(onediffusion("sample", str(tmp_path), "depth"), "--condition", "--image")
    refused(onediffusion("sample", str(tmp_path), "views", "--image", "a.png", "--camera", "1,2"), "azimuth")
    assert not list(tmp_path.iterdir())


def test_wrong_resources_are_one_line(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text("kind: label\ndataset: d\ngroups: [depth]\n")
    for command in (("label", str(tmp_path), "depth"), ("submit", str(job))):
        refused(onediffusion(*command, "--resources", "dpth.gpus=1"), "unknown labeler 'dpth'", "did you mean 'depth'?")
        refused(onediffusion(*command, "--resources", "depth.gpuz=1"), "no key 'depth.gpuz'", "did you mean 'gpus'?")
        refused(onediffusion(*command, "--resources", "depth.gpus"), "LABELER.FIELD=VALUE, as in --resources depth.")
    refused(onediffusion("submit", "train", "--only-errors"), "--only-errors belongs to jobs that label", "kind train")
    assert [path.name for path in tmp_path.iterdir()] == ["job.yaml"]


def test_dry_run_says_what_and_why_and_changes_nothing(tmp_path: Path) -> None:
    dataset = str(shutil.copytree(ROOT / "tests/compatibility/dataset", tmp_path / "dataset"))

    def files() -> dict[str, tuple[int, bytes]]:
        return {str(p): (p.stat().st_mtime_ns, p.read_bytes()) for p in Path(dataset).rglob("*") if p.is_file()}

    Path(dataset, "pose", "000001.parquet").unlink()
    before = files()
    nothing = "127.0.0.1:1"  # no Ray is there, so that whoever asks for one fails
    result = onediffusion(
        *("label", dataset, "edges", "pose", "--set", "edges.low=50", "--dry-run"), RAY_ADDRESS=nothing
    )
    assert result.stdout.splitlines() == [
        "edges: 2 shards to label, 4 rows, 0 shards fresh",
        "  parameter low 40 → 50: shards 0–1",
        "pose: 1 shards to label, 2 rows, 1 shards fresh",
        "  missing: shard 1",
    ], result.stderr
    asked = ("label", dataset, "pose", "depth", "--dry-run", "--json")
    plan = json.loads(onediffusion(*asked, RAY_ADDRESS=nothing).stdout)
    assert plan["pose"] == {"shards": 1, "rows": 2, "waiting": 0, "fresh": 1, "why": {"missing": [1]}}
    again = json.loads(onediffusion(*asked, "--only-errors", RAY_ADDRESS=nothing).stdout)
    assert again["depth"] == {"shards": 2, "rows": 3, "waiting": 0, "fresh": 0, "why": {"rows in error": [0, 1]}}
    changed = "edges: its parameters or version have changed; label it without --only-errors first"
    for options in ((), ("--dry-run",)):
        asked = ("label", dataset, "edges", "--set", "edges.low=60", "--only-errors", *options)
        refused(onediffusion(*asked, RAY_ADDRESS=nothing), changed)
    new = ("label", dataset, "simple_labelers:Loose", "--only-errors")
    refused(onediffusion(*new, RAY_ADDRESS=nothing), "loose: it is not labeled yet; label it without")
    refused(onediffusion("label", dataset, "edges", "--json"), "--json belongs to --dry-run")
    assert files() == before


def test_missing_source_and_unwritable_dataset_are_one_line(tmp_path: Path, photographs: Path) -> None:
    refused(onediffusion("ingest", str(tmp_path / "nowhere"), str(tmp_path / "dataset")), "nowhere")
    (tmp_path / "file").write_text("")
    refused(onediffusion("ingest", f"{photographs}/c*.png", str(tmp_path / "file" / "dataset")), "cannot write")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_wrong_s3_credentials_are_one_line(s3_server: dict[str, str], photographs: Path) -> None:
    wrong = {**s3_server, "AWS_SECRET_ACCESS_KEY": "wrong"}
    refused(onediffusion("status", "s3://lab/refused", **wrong), "credentials", "s3://lab/refused")
    refused(onediffusion("ingest", f"{photographs}/c*.png", "s3://lab/refused", **wrong), "credentials")
    assert "wrong" not in onediffusion("status", "s3://lab/refused", **wrong).stderr


@pytest.mark.usefixtures("ray_cluster")
def test_status_prints_table_and_json(tmp_path: Path, pictures: Path) -> None:
    from pipelines.ingest import ingest
    from pipelines.label import label

    dataset = str(tmp_path / "dataset")
    ingest(str(pictures), dataset)
    label(dataset, ["edges"], {"edges": {"low": 40}})
    result = json.loads(onediffusion("status", dataset, "--json").stdout)
    counts = {"fresh": 1, "stale": 0, "missing": 0, "rows": 6, "errors": 0}
    assert result["edges"] == {**counts, "in_error": 0, "unavailable": 0, "reasons": {}}
    declared = json.loads(Path(dataset, "edges", "group.json").read_text())
    assert declared["parameters"]["low"] == 40
    declared["version"] += 1  # as a newer program would declare it
    Path(dataset, "edges", "group.json").write_text(json.dumps(declared))
    assert json.loads(onediffusion("status", dataset, "--json").stdout)["edges"]["stale"] == 1
    table = onediffusion("status", dataset).stdout
    assert re.search(r"edges\W+0\W+1\W+0\W+6\W+0", table)


def test_status_tells_unavailable_rows_from_rows_in_error(tmp_path: Path) -> None:
    dataset = str(shutil.copytree(ROOT / "tests/compatibility/dataset", tmp_path / "dataset"))
    states = json.loads(onediffusion("status", dataset, "--json").stdout)
    for group in ("depth", "latents-64-depth"):  # three pictures have no disparity, and no depth model is named
        assert states[group]["errors"] == states[group]["unavailable"] == 3
        assert states[group]["in_error"] == 0 and not states[group]["reasons"]
    said = onediffusion("status", dataset, COLUMNS="200").stdout
    assert re.search(r"latents-64-depth\W+2\W+0\W+0\W+4\W+0\W+3\W", said), said
    assert said.count("rows cannot have") == 1
    assert f"onediffusion label {dataset} depth latents-64-depth --set depth.model=NAME" in said


def test_address_without_a_ray_is_one_line(tmp_path: Path) -> None:
    dataset = shutil.copytree(ROOT / "tests/compatibility/dataset", tmp_path / "dataset")
    (dataset / "edges" / "000000.parquet").unlink()
    result = onediffusion("label", dataset, "edges", RAY_ADDRESS="127.0.0.1:1")
    refused(result, "RAY_ADDRESS=127.0.0.1:1: no Ray answers there")


def test_wrong_worker_counts_are_one_line(tmp_path: Path) -> None:
    for workers, words in (("4:1", "write the smaller number first, as 1:4"), ("0", "write a number, or LEAST:MOST")):
        refused(onediffusion("scale", "label-1", "--workers", workers), f"--workers {workers}: {words}")


@pytest.mark.slow
def test_training_beyond_machine_is_one_line(tmp_path: Path) -> None:
    own = {"RAY_ADDRESS": "", "XDG_DATA_HOME": str(tmp_path)}
    arguments = ("--run", str(tmp_path / "run"), "--set", "workers.count=1", "--set", "workers.cpus=4000")
    result = onediffusion("train", "debug", *arguments, **own)
    refused(result, "a worker asks for 4000 CPUs", "ask for less (workers.count, workers.cpus")
    assert not (tmp_path / "run" / "config.yaml").exists()
