"""Sets as `sets` writes them are trained on: latents of all their pictures, and prompts stored or built when used."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from labels_here import label_here
from PIL import Image
from tiny_stages import tiny

from labeling.dataset import Dataset
from labeling.registry import default_groups
from model.inputs import InputError
from pipelines.ingest import ingest
from pipelines.sets import sets
from training.config import load_config
from training.plan.mixture import build_manifest
from training.plan.step_plan import Plan
from training.reader import PlanReader


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory, photographs: Path) -> dict[str, str]:
    """Sets of an item and sets of edits, with latents."""
    folder = tmp_path_factory.mktemp("sets")
    whole = Image.open(photographs / "coffee.png").convert("RGB")
    (folder / "files/cup").mkdir(parents=True)
    for number in range(3):  # of several shapes
        whole.crop((60 * number, 0, 60 * number + 280, 300 - 30 * number)).save(folder / f"files/cup/{number}.jpg")
    table = [f"cup/{number}.jpg,a cup from place {number}" for number in range(3)]
    (folder / "files/metadata.csv").write_text("\n".join(["file_name,text", *table]))
    ingest(str(folder / "files"), str(folder / "pictures"))
    sets("subject", [str(folder / "pictures")], str(folder / "subject"), {"duplicates": -1})
    lines = [{"source": "cup/0.jpg", "target": "t.jpg", "instruction": "make it dark"}]
    darker = np.asarray(Image.open(folder / "files/cup/0.jpg")) // 2
    buffer = io.BytesIO()
    Image.fromarray(darker).save(buffer, "JPEG")
    (folder / "files/t.jpg").write_bytes(buffer.getvalue())
    (folder / "files/edits.jsonl").write_text("\n".join(map(json.dumps, lines)))
    sets("editing", [str(folder / "files/edits.jsonl")], str(folder / "editing"), {})
    for name in ("subject", "editing"):
        label_here(str(folder / name), "latents-64")
    label_here(str(folder / "editing"), "text-editing")
    return {name: str(folder / name) for name in ("subject", "editing")}


def samples(mixture: dict[str, Any]) -> list[tuple[Any, Any]]:
    """(planned, sample) of a step."""
    off = {"pictures": None, "views": None}
    values = tiny("debug", {"pictures": Path(), "views": Path()}, mixture={**mixture, **off}, batch=8)
    config = load_config("debug", values)
    manifest = build_manifest(config.mixture, config.size, text_encoder="minilm", codec="dct")
    plan = Plan(manifest, config.seed, config.batch, config.objective, config.reader.window)
    reader = PlanReader(manifest, config)
    return [(planned, reader.read_sample(planned, *rest)) for planned, *rest in plan.draw(0, range(8))]


def test_items_are_trained_on_with_their_name_and_captions(datasets: dict[str, str]) -> None:
    source = {"dataset": datasets["subject"], "tasks": ["subject"], "text": "online"}
    for planned, sample in samples({"subject": source}):
        assert len(sample.latents) == planned.frames and np.isfinite(sample.latents).all()
        assert sample.latents.std() > 0.1
        if sample.prompt:
            assert sample.prompt.startswith("[[subject_driven]] <item: cup> [[img0]] a cup from place")


def test_edits_are_trained_on_with_prompts_that_are_stored_or_not(datasets: dict[str, str]) -> None:
    source = {"dataset": datasets["editing"], "tasks": ["editing"]}
    (stored, online) = (samples({"editing": {**source, "text": text}}) for text in ("stored", "online"))
    for (planned, sample), (_, other) in zip(stored, online, strict=True):
        assert planned.views == (1, 0) and len(sample.latents) == 2
        assert np.array_equal(sample.latents, other.latents)
        assert sample.text.shape[0] > 0 and other.prompt in ("", "[[image_editing]] make it dark")
    entries = next(iter(Dataset.open(datasets["editing"]).rows("text-editing")))["entries"]
    assert [one["prompt"] for one in entries[1]] == ["", "[[image_editing]] make it dark"]


def test_prompts_of_sets_that_cannot_be_stored_are_told(datasets: dict[str, str]) -> None:
    groups = Dataset.open(datasets["subject"]).groups()
    with pytest.raises(
        InputError, match=r"train with `text: online`; those of edits can be stored: label text-editing"
    ):
        default_groups("text", groups, groups, sets=True)
    assert default_groups("text", groups, groups, ["editing"], sets=True) == ["text-editing"]
