"""A checkpoint as a diffusers folder: what is sampled from it is what the checkpoint gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_run import save_run
from typer.testing import CliRunner

from labeling.dataset import open_store
from model import NextDiT, OneDiffusionPipeline
from model.inputs import InputError
from pipelines.cli.app import app
from pipelines.export import export
from pipelines.sampler import load_pipeline

LIVE = 3.0  # what the live weights are, times the averaged ones


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_run(tmp_path_factory.mktemp("export"), LIVE)


def draw(pipeline: OneDiffusionPipeline) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    pipeline.set_progress_bar_config(disable=True)
    result = pipeline("text2image", prompt="a cat", num_inference_steps=2, generator=generator, output_type="np")
    return np.asarray(result.images[0])


def test_exported_folder_draws_what_the_checkpoint_draws(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "out")])
    assert result.exit_code == 0 and result.output.strip() == str(tmp_path / "out")
    exported = OneDiffusionPipeline.from_pretrained(tmp_path / "out")
    assert np.array_equal(draw(exported), draw(load_pipeline(str(run), "cpu")))
    files = {path.suffix for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert ".bin" not in files and ".pt" not in files and ".safetensors" in files
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_live_weights_and_bf16_are_exported_by_choice(run: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", str(run), str(tmp_path / "out"), "--live", "--bf16"])
    assert result.exit_code == 0
    averaged = load_pipeline(str(run), "cpu").transformer.state_dict()
    for name, value in NextDiT.from_pretrained(tmp_path / "out" / "transformer").state_dict().items():
        assert torch.equal(value, (LIVE * averaged[name]).bfloat16()), name


def test_folder_with_something_in_it_is_left_alone(run: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("kept")
    with pytest.raises(InputError, match="there is something already"):
        export(str(run), str(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    for taken in (tmp_path / "clone", tmp_path / "mine.txt"):
        if not taken.exists():
            (taken / ".git").mkdir(parents=True)
        with pytest.raises(InputError, match="there is something already"):
            export(str(run), str(taken))
    assert (tmp_path / "clone" / ".git").is_dir()
    with pytest.raises(InputError, match="no checkpoint there"):
        export(str(tmp_path / "nothing"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_export_to_s3_is_read_back(run: Path, s3: str, tmp_path: Path) -> None:
    store = open_store(f"{s3}/exported")
    assert export(str(run), store.uri) == store.uri
    for name in store.walk():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(store.read(name))
    assert np.array_equal(draw(OneDiffusionPipeline.from_pretrained(tmp_path)), draw(load_pipeline(str(run), "cpu")))
