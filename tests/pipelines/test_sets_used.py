"""A set that `sets` made goes the way of every other row: latents, training's reader, evaluation, the run's page."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from labels_here import label_here
from PIL import Image
from plan_readers import first_sample, read_sample
from report_pages import read_page
from tiny_run import save_run

from labeling.dataset import open_store
from model.pictures import decode_picture
from pipelines.evaluate import evaluate
from pipelines.reports.page import report
from pipelines.sets import sets
from training.config import load_config
from training.plan.mixture import build_manifest
from training.reader import PlanReader

INSTRUCTION = "make it snow"


def picture(seed: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (64, 96, 3), np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def edits(tmp_path: Path) -> str:
    """Two sets of a picture and its edit, labeled."""
    rows = [
        {"source_img": {"bytes": picture(n)}, "instruction": INSTRUCTION, "target_img": {"bytes": picture(n + 10)}}
        for n in range(2)
    ]
    (tmp_path / "files").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "files" / "edits.parquet")
    assert sets("editing", [str(tmp_path / "files")], str(tmp_path / "edits"), {}).sets == 2
    label_here(str(tmp_path / "edits"), "latents-64")
    return str(tmp_path / "edits")


def test_edits_of_files_are_trained_on_evaluated_and_shown(edits: str, tmp_path: Path) -> None:
    run = save_run(tmp_path)
    mixture = {
        "editing": {"dataset": edits, "tasks": ["editing"], "text": "online"},
        "pictures": None,
        "views": None,
    }
    config = load_config("debug", {"size": 64, "mixture": mixture, "text_encoder": str(tmp_path / "models")})
    manifest = build_manifest(config.mixture, config.size, config.lanes, config.text_encoder)
    reader = PlanReader(manifest, config)
    sample = read_sample(reader, first_sample(reader, "editing"))
    assert len(sample.latents) == 2 and sample.latents[0].shape == sample.latents[1].shape
    assert (sample.prompt or "").endswith(INSTRUCTION)

    (run / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    manifest.write(open_store(run))
    evaluate(str(run))
    (record,) = json.loads((run / "samples" / "samples.json").read_text())
    assert record["task"] == "editing" and record["prompt"].endswith(INSTRUCTION)
    drawn, truth, known = (
        decode_picture((run / "samples" / name).read_bytes())
        for name in (*record["output"], record["label"], *record["inputs"])
    )
    assert drawn.shape == truth.shape == known.shape and not np.array_equal(truth, known)
    page = read_page(report(str(run)))
    assert INSTRUCTION in page.text and "the first picture is edited" in page.text
