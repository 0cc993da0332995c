"""What an earlier layout of the code wrote, used with the code at hand: names of modules in files keep a meaning."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import onediffusion
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from labeling.dataset import open_store
from model import OneDiffusionPipeline
from pipelines.cli.app import app
from training.metrics_logger import read_metrics

ARTIFACTS = Path(__file__).parent
EXPECTED = ARTIFACTS / "expected"
MADE_AT = "/tmp/onediffusion-compat"
PLACES = ("pictures", "meshes", "dataset", "views", "run", "pipeline")
TEXT = (".json", ".yaml")
JOB = "label-67a031a1"
# Dataset → its shards, and its groups that labelers fill.
SHARDS = {"dataset": 2, "views": 1}
LATENTS = {"latents-64", "latents-64-depth"}
GROUPS = {
    "dataset": {"boxes", "brightness", "caption", "depth", "edges", "pose", "segmentation", "text", *LATENTS}
    | {"latents-64-edges", "latents-64-segmentation"},
    "views": {"boxes", "caption", "depth", "pose", "text", *LATENTS},
}
# Its labeler has a new version since: GrabCut took the whole picture for background and lost small objects.
STALE = {"segmentation"}
READERS = {"latents-64-segmentation", "text"}  # of what is stale: made again where it changes
SOURCES = {"dataset": {"images"}, "views": {"images", "cameras"}}

pytestmark = [pytest.mark.slow, pytest.mark.long]  # commands in processes of their own, some with a Ray


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the artifacts, with its own address in place of the one they were made at."""
    for name in PLACES:
        shutil.copytree(ARTIFACTS / name, tmp_path / name)
    for path in (path for path in tmp_path.rglob("*") if path.suffix in TEXT):
        text = path.read_text()
        if MADE_AT in text:
            path.write_text(text.replace(MADE_AT, str(tmp_path)))
    return tmp_path


def run(place: Path, *arguments: str | Path) -> str:
    """What a command printed."""
    found = onediffusion(*arguments, XDG_DATA_HOME=str(place / "data"), COLUMNS="200")
    assert found.returncode == 0, f"{arguments}\n{found.stdout}\n{found.stderr}"
    return found.stdout


def labeled(said: str) -> dict[str, tuple[int, int]]:
    """Group → shards computed and shards found fresh, as `label` tells them."""
    lines = re.findall(r"^(\S+): (\d+) shards \w+, (\d+) fresh", said, re.MULTILINE)
    return {group: (int(computed), int(fresh)) for group, computed, fresh in lines}


def content(folder: Path) -> dict[str, bytes]:
    """The shards below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("[0-9]*.parquet")}


@pytest.mark.parametrize("name", SHARDS)
def test_dataset_of_earlier_layout_is_fresh(place: Path, name: str) -> None:
    status = json.loads(run(place, "status", place / name, "--json"))
    assert set(status) == GROUPS[name] | SOURCES[name]
    for group, state in status.items():
        found = (state["fresh"], state["stale"], state["missing"])
        assert found == (SHARDS[name], 0, 0), group
    errors = {group: state["errors"] for group, state in status.items() if state["errors"]}
    assert errors == ({"depth": 3, "latents-64-depth": 3} if name == "dataset" else {})


@pytest.mark.parametrize("name", SHARDS)
def test_labeling_dataset_of_earlier_layout_computes_nothing(place: Path, name: str) -> None:
    before = content(place / name)
    groups = GROUPS[name] - STALE
    requested = sorted("simple_labelers:Brightness" if group == "brightness" else group for group in groups)
    assert labeled(run(place, "label", place / name, *requested)) == dict.fromkeys(groups, (0, SHARDS[name]))
    assert content(place / name) == before
    if name == "dataset":
        assert json.loads((place / name / "edges" / "group.json").read_text())["parameters"]["low"] == 40
        mine = json.loads((place / name / "brightness" / "group.json").read_text())
        assert mine["class"] == "simple_labelers:Brightness"


def test_parameter_that_came_later_makes_shards_stale_only_when_it_is_set(place: Path) -> None:
    fresh = run(place, "label", place / "dataset", "text", "--dry-run", "--set", "text.dtype=fp32")
    assert "text: nothing to label, 2 shards fresh" in fresh
    stale = run(place, "label", place / "dataset", "text", "--dry-run", "--set", "text.dtype=bf16")
    assert "text: 2 shards to label" in stale and "parameter dtype is now bf16" in stale


def test_sources_of_earlier_layout_hold_nothing_new(place: Path) -> None:
    before = content(place)
    said = run(place, "ingest", place / "pictures", place / "dataset")
    assert re.findall(r"\d+", said)[:3] == ["0", "0", "4"]
    said = run(place, "views", place / "meshes", place / "views", "--count", "4", "--size", "64")
    assert re.findall(r"\d+", said)[:2] == ["0", "2"]
    assert content(place) == before


def test_report_shows_dataset_of_earlier_layout(place: Path) -> None:
    run(place, "report", place / "dataset")
    page = (place / "dataset" / "report.html").read_text()
    for shown in ("Rachel Michetti", "CC0-1.0", "coffee.png", "tabby cat", "truncated JPEG file"):
        assert shown in page


def test_run_of_earlier_layout_resumes(place: Path, shared_ray: None) -> None:
    before = (place / "run" / "metrics.jsonl").read_text().splitlines()
    run(place, "train", place / "run" / "config.yaml", "--run", place / "run")
    lines = (place / "run" / "metrics.jsonl").read_text().splitlines()
    assert lines[:3] == before[:3]  # with the time that they took then: these steps were not done again
    assert {path.name for path in (place / "run" / "checkpoints").iterdir()} == {"step-000003", "step-000006"}
    records = read_metrics(open_store(place / "run"))  # what was held_out_loss then is read as validation_loss
    expected = json.loads((EXPECTED / "metrics.json").read_text().replace("held_out_loss", "validation_loss"))
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    for record, wanted in zip(records, expected, strict=True):
        assert record.keys() >= wanted.keys()
        for name in wanted:
            assert record[name] == pytest.approx(wanted[name], abs=1e-6), (wanted["step"], name)


def test_checkpoint_of_earlier_layout_gives_the_same_picture(place: Path) -> None:
    settings = ("--prompt", "a cat", "--steps", "2", "--seed", "0", "--size", "64")
    run(place, "sample", place / "run", "text2image", *settings, "--out", place / "sampled.png")
    found, wanted = (np.asarray(Image.open(path), int) for path in (place / "sampled.png", EXPECTED / "sampled.png"))
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= 1


def test_checkpoint_of_earlier_layout_is_exported(place: Path) -> None:
    """Averaged weights as it has them in the layout of diffusers, live ones as training continues from them."""
    checkpoint = place / "run" / "checkpoints" / "step-000003"
    averaged = load_file(checkpoint / "transformer" / "diffusion_pytorch_model.safetensors")
    training = load_file(checkpoint / "training.safetensors")
    live = {name: training[f"model.{name}"] for name in averaged}
    for weights, options in ((averaged, ()), (live, ("--live",))):
        out = place / "exported" / str(len(options))
        result = CliRunner().invoke(app, ["export", str(place / "run"), str(out), *options])
        assert result.exit_code == 0, result.exception
        found = load_file(out / "transformer" / "diffusion_pytorch_model.safetensors")
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[name], value) for name, value in weights.items())


def test_pipeline_of_earlier_layout_gives_the_same_sample(place: Path) -> None:
    pipe = OneDiffusionPipeline.from_pretrained(place / "pipeline")
    assert type(pipe.vae).__name__ == "AutoencoderDCT"
    generator = torch.Generator().manual_seed(0)
    found = pipe(
        "text2image",
        prompt="a cat",
        num_inference_steps=2,
        guidance_scale=2.0,
        generator=generator,
        output_type="np",
    )
    wanted = load_file(EXPECTED / "sample.safetensors")
    torch.testing.assert_close(found.latents, wanted["latents"], rtol=0, atol=1e-5)
    torch.testing.assert_close(torch.from_numpy(np.asarray(found.images[0])), wanted["image"], rtol=0, atol=1e-5)


def test_job_of_earlier_layout_is_listed_with_its_log(place: Path) -> None:
    folder = place / "dataset" / "jobs" / JOB
    listed = run(place, "jobs", place / "dataset")
    assert re.search(rf"{JOB}.*\blocal\b.*\bsucceeded\b", listed), listed
    assert run(place, "logs", folder) == (folder / "log" / "000001.txt").read_text()


def test_job_of_earlier_layout_sent_again_computes_what_has_a_new_version(place: Path) -> None:
    before = content(place)
    job = run(place, "submit", place / "dataset" / "jobs" / JOB / "job.yaml", "--target", "local").strip()
    said = run(place, "logs", "-f", job)
    found = labeled(said)
    assert found.pop("segmentation") == (2, 0)
    assert {found.pop(group) for group in READERS} <= {(2, 0), (1, 1), (0, 2)}
    assert found == dict.fromkeys(GROUPS["dataset"] - STALE - READERS, (0, 2)), said
    assert re.search(rf"{job}.*\bsucceeded\b", run(place, "jobs"))
    kept = {name: data for name, data in before.items() if not (STALE | READERS) & set(Path(name).parts)}
    assert content(place).items() >= kept.items()
