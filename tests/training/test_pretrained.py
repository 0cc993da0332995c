"""The checkpoint that comes with the program: named in every place that takes a checkpoint, and of use."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from commands import onediffusion
from PIL import Image

from labeling.dataset import open_store
from model.inputs import InputError
from pipelines.jobs.resolved import resolve_job
from pipelines.jobs.specification import parse_specification
from pipelines.sampler import Call, load_pipeline, sample_all
from training.checkpoint import load_checkpoint
from training.checkpoint.base import BaseModel
from training.checkpoint.files import checked_index, find_checkpoint, is_model_name
from training.config import load_config, override_config, parse_config
from training.pretrained import pretrained_folder, pretrained_names


def test_checkpoints_are_small_and_hold_nothing_but_averaged_weights() -> None:
    assert pretrained_names() == ["small-cpu"]
    for name in pretrained_names():
        folder = pretrained_folder(name)
        assert folder is not None
        files = {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*.*")}
        assert set(files) == {
            *("README.md", "state.json", "transformer/config.json"),
            "transformer/diffusion_pytorch_model.safetensors",
        }
        assert sum(files.values()) < 20 << 20


def test_name_is_no_place_unless_something_here_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_model_name("small-cpu")
    folder, state = find_checkpoint("small-cpu")
    assert state["config"]["size"] == 96
    # What an adapter of it remembers is true on every machine.
    assert BaseModel.of("small-cpu", folder, checked_index(folder)).checkpoint == "small-cpu"
    (tmp_path / "small-cpu").mkdir()
    assert not is_model_name("small-cpu")
    with pytest.raises(InputError, match="no checkpoint there"):
        find_checkpoint("small-cpu")
    with pytest.raises(InputError, match="did you mean 'small-cpu'"):
        find_checkpoint("smal-cpu")


def test_its_preset_starts_from_it() -> None:
    from training.checkpoint.state import initial_weights

    values = load_config("small-cpu").model_dump(mode="json")
    config = parse_config(override_config(values, {"initialize": "small-cpu"}), "config")
    folder, index = initial_weights(config)
    assert folder.uri == open_store(str(pretrained_folder("small-cpu"))).uri
    assert sum(np.prod(entry.shape) for entry in index.tensors.values()) > 4_000_000


def test_job_keeps_the_name_that_every_machine_knows(tmp_path: Path) -> None:
    values = {"kind": "train", "config": "small-cpu", "overrides": {"initialize": "small-cpu"}, "run": str(tmp_path)}
    resolved = resolve_job(parse_specification(values, "job")).specification
    assert resolved.config["initialize"] == "small-cpu"
    assert "small-cpu" not in resolved.data


@pytest.mark.slow
def test_sample_command_draws_from_a_prompt(tmp_path: Path) -> None:
    out = tmp_path / "fish.png"
    result = onediffusion(
        *("sample", "small-cpu", "text2image", "--prompt", "An orange fish.", "--steps", "6", "--out", out)
    )
    assert result.returncode == 0, result.stderr
    drawn = np.asarray(Image.open(out).convert("RGB"))
    assert drawn.shape == (96, 96, 3) and drawn.std() > 10


def test_labels_of_photographs_that_it_never_saw(photographs: Path) -> None:
    """Its edges are nearer to those of their own picture than to those of others."""
    import cv2

    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")
    pictures = [np.asarray(Image.open(photographs / name).convert("RGB").resize((96, 96))) for name in names]
    true = [cv2.GaussianBlur(cv2.Canny(picture, 100, 200), (5, 5), 0).astype(float).ravel() for picture in pictures]
    pipeline = load_pipeline("small-cpu", "cpu", dtype=torch.float32)
    calls = [Call("edges", "", (0, 1), (picture,), 96, 96) for picture in pictures]
    found = [
        cv2.GaussianBlur(images[0].mean(-1).astype(np.float32), (5, 5), 0).ravel()
        for images, _ in sample_all(pipeline, calls, steps=10, guidance=1.0)
    ]
    correlations = np.corrcoef(found, true)[: len(names), len(names) :]
    assert (correlations.argmax(1) == np.arange(len(names))).all(), correlations


def test_weights_are_stored_in_half_precision() -> None:
    transformer, _ = load_checkpoint("small-cpu")
    assert transformer.dtype == torch.bfloat16
    assert all(bool(torch.isfinite(weight).all()) for weight in transformer.parameters())
