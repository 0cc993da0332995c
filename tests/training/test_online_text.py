"""`text: online`: prompts built of captions and names when they are read, embedded where the model computes."""

from __future__ import annotations

import shutil
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labeling.dataset import TEXT, Dataset
from model.inputs import InputError
from training.batch import StepBatch
from training.config import TrainingConfig, load_config
from training.dataloader import read_ahead
from training.device import DeviceBatches
from training.plan.manifest import Manifest
from training.plan.mixture import build_manifest, with_encoders
from training.reader import PlanReader

OLD = Path(__file__).parents[1] / "compatibility"
TASKS = ["text2image", "edges", "segmentation", "deblurring"]


def _config(text: str, folder: Path, **changes: Any) -> TrainingConfig:
    sources = {
        "pictures": {"dataset": str(folder / "dataset"), "tasks": TASKS, "text": text},
        "views": {"dataset": str(folder / "views"), "tasks": ["views"], "text": text},
    }
    objective = {"min_views": 2, "max_views": 3, "caption_dropout": 0.3}
    model = {"caption_channels": 384}
    settings = {"size": 64, "batch": 8, "mixture": sources, "objective": objective, "model": model, **changes}
    return load_config("debug", {**settings, "text_encoder": "minilm" if text == "online" else None})


def _manifest(config: TrainingConfig) -> Manifest:
    return build_manifest(config.mixture, config.size, 4, config.text_encoder)


def _batches(config: TrainingConfig, manifest: Manifest) -> list[StepBatch]:
    device = DeviceBatches(config, "dct", "minilm", torch.device("cpu"))
    return list(device.ready(read_ahead(PlanReader(manifest, config), 0, 1, range(8))))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("dataset", "views"):
        shutil.copytree(OLD / name, tmp_path / name)
    return tmp_path


def test_prompts_embedded_when_used_are_those_that_labels_have(folder: Path) -> None:
    stored = _config("stored", folder)
    expected = _batches(stored, _manifest(stored))
    for name in ("dataset", "views"):
        shutil.rmtree(folder / name / TEXT)  # nothing of it is needed
    online = _config("online", folder)
    manifest = _manifest(online)
    assert manifest.sources["pictures"].declarations[TEXT]["parameters"] == {"encoder": "minilm"}
    assert TEXT not in manifest.sources["pictures"].shards.content
    found = _batches(online, manifest)
    seen = set()
    for batch, other in zip(found, expected, strict=True):
        for sample, known in zip(*(chain.from_iterable(one.packs) for one in (batch, other)), strict=True):
            assert (sample.task, sample.noise_seed, sample.prompt) == (known.task, known.noise_seed, None)
            np.testing.assert_array_equal(sample.latents, known.latents)
            assert sample.text.dtype == np.float16
            np.testing.assert_allclose(sample.text, known.text, atol=4e-3)
            seen.add(sample.task)
    assert seen == {*TASKS, "views"}


def test_rows_without_a_caption_or_names_serve_no_task_online(folder: Path) -> None:
    online, stored = (_manifest(_config(text, folder)) for text in ("online", "stored"))
    assert online.counts() == stored.counts()
    pictures = Dataset.open(folder / "dataset")
    rows = list(pictures.rows("segmentation"))
    expected = sum(bool(row["names"]) and not row["error"] for row in rows)
    assert 0 < online.counts()["segmentation"] <= expected


def test_text_encoder_is_required_and_fits_the_width_of_the_model(folder: Path) -> None:
    config = _config("online", folder)
    with pytest.raises(InputError, match=r"name the `text_encoder`"):
        load_config("debug", {**config.model_dump(mode="json"), "text_encoder": None})
    narrow = config.model_copy(update={"model": config.model.model_copy(update={"caption_channels": 32})})
    batch = PlanReader(_manifest(config), config).read(0, 0, 1)
    with pytest.raises(InputError, match=r"caption_channels is 32, but the text encoder .* gives 384; set it so"):
        DeviceBatches(narrow, "dct", "minilm", torch.device("cpu")).encoded(batch)


def test_sources_embedded_otherwise_are_not_mixed(folder: Path) -> None:
    config = _config("online", folder)
    stored = config.mixture["views"].model_copy(update={"text": "stored"})
    mixture = {**config.mixture, "views": stored}
    build_manifest(mixture, 64, 4, "minilm")
    dataset = Dataset.open(folder / "views")
    dataset.declare(TEXT, {**(dataset.declaration(TEXT) or {}), "weights": "another"})
    with pytest.raises(InputError, match="come from different weights; text must be of one kind"):
        build_manifest(mixture, 64, 4, "minilm")


def test_prompts_travel_between_processes(folder: Path) -> None:
    config = _config("online", folder)
    batch = PlanReader(_manifest(config), config).read(0, 0, 1)
    again = StepBatch.from_bytes(batch.to_bytes())
    assert [s.prompt for s in again.packs[0]] == [s.prompt for s in batch.packs[0]]
    assert any(s.prompt for s in again.packs[0])


def test_comparison_of_runs_has_no_new_keys_without_online_text(folder: Path) -> None:
    values = _config("stored", folder).fixed()
    assert "text_encoder" not in values
    assert all("text" not in source for source in values["mixture"].values())
    online = _config("online", folder).fixed()
    assert "text_encoder" not in online


def test_resumed_run_keeps_its_text_encoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which may be at another address: its weights are what counts."""
    config = _config("online", folder)
    manifest = _manifest(config)
    weights = {"minilm": manifest.sources["views"].declarations[TEXT]["weights"]}
    weights |= {"moved": weights["minilm"], "changed": "0" * 32}
    monkeypatch.setattr("model.text.text_encoder_digest", weights.__getitem__)
    assert with_encoders(manifest, config) == manifest
    moved = with_encoders(manifest, config.model_copy(update={"text_encoder": "moved"}))
    assert {source.declarations[TEXT]["parameters"]["encoder"] for source in moved.sources.values()} == {"moved"}
    with pytest.raises(InputError, match=r"^text_encoder changed: other weights than those of minilm, which the run"):
        with_encoders(manifest, config.model_copy(update={"text_encoder": "changed"}))
    stored = _config("stored", folder)
    assert with_encoders(_manifest(stored), stored) == _manifest(stored)
