"""Tiny datasets of every kind that the presets train on, of the datasets that tests/compatibility keeps."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from labeling.dataset import Dataset

OLD = Path(__file__).parents[1] / "compatibility"
SIZE = 64


@pytest.fixture(scope="session")
def stage_datasets(tmp_path_factory: pytest.TempPathFactory, write_set_group: Callable[..., None]) -> dict[str, Path]:
    """By kind: pictures with all labels drawn, views with cameras, references: captioned and named sets."""
    folder = tmp_path_factory.mktemp("stages")
    pictures = Path(shutil.copytree(OLD / "dataset", folder / "pictures"))
    for label in ("pose", "boxes"):  # drawn like another label: what they show does not matter here
        shutil.copytree(pictures / "latents-64-segmentation", pictures / f"latents-64-{label}")
    views = Path(shutil.copytree(OLD / "views", folder / "views"))
    references = Path(shutil.copytree(OLD / "views", folder / "references"))
    shutil.rmtree(references / "cameras")
    write_set_group(references, "subject", "item", "chair")
    return {"pictures": pictures, "views": views, "references": references}


@pytest.fixture(scope="session")
def write_set_group() -> Callable[..., None]:
    """Writes a group of one column that says the same of every picture of every set."""
    from tiny_training import _write

    def write(uri: Path, group: str, column: str, value: str) -> None:
        dataset = Dataset.open(uri)
        counts = [len(row["caption"]) for row in dataset.rows("caption")]
        shards = [dataset.footer("caption", shard.name).row_groups for shard in dataset.shards]
        rows = [{column: [value] * count} for count in counts]
        _write(uri, group, shards, {column: pa.list_(pa.string())}, rows)

    return write


def tiny(preset: str, datasets: dict[str, Path], **changes: Any) -> dict[str, Any]:
    """Overrides that make a preset a run of three steps of a tiny model on the tiny datasets."""
    from training.config import load_config

    config = load_config(preset)
    mixture = {}
    for name, source in config.mixture.items():
        kind = "views" if "views" in source.tasks else "pictures"
        kind = "references" if {"identity", "subject", "editing"} & set(source.tasks) else kind
        mixture[name] = {"dataset": str(datasets[kind]), "size": SIZE, "text": "online", "where": None}
    return {
        "steps": 3,
        "batch": 2 * sum(len(source.tasks) for source in config.mixture.values()),
        "size": SIZE,
        "initialize": None,
        "text_encoder": "minilm",
        "mixture": mixture,
        "model": {"hidden_size": 48, "depth": 1, "num_heads": 4, "num_kv_heads": 2, "caption_channels": 384},
        "workers": {"count": 1, "gpus": 0, "fsdp": False, "precision": "no", "gradient_checkpointing": False},
        "validation": {"share": 0.0},
        **changes,
    }
