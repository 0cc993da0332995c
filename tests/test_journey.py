"""The whole journey on a real S3 server: the demo, what it learned, and that a second run has nothing left to do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from labeling.dataset import Dataset, Entry, open_store

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
TASKS = {"text2image", "segmentation", "boxes", "pose", "edges", "depth", "deblurring", "inpainting", "views"}


def demo(out: str) -> str:
    """`make demo` in the environment of this test, taken as installed."""
    installed = f"{sys.prefix}/installed"
    found = subprocess.run(
        ["make", "--old-file", installed, "demo", f"VENV={sys.prefix}", f"OUT={out}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=dict(os.environ),
        timeout=2400,
    )
    assert found.returncode == 0, found.stderr[-4000:]
    return found.stdout


@pytest.fixture(scope="module")
def journey(s3_server: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Address of a finished demo on S3 and what it said. Its tests reach it, those of other files have no S3."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.items():
            patch.setenv(name, value)
        yield "s3://lab/demo", demo("s3://lab/demo")


def test_demo_labels_at_least_five_images_of_each_kind(journey: tuple[str, str]) -> None:
    pictures, views = Dataset.open(f"{journey[0]}/dataset"), Dataset.open(f"{journey[0]}/views")
    counts = {
        "boxes": sum(bool(row["boxes"]) for row in pictures.rows("boxes")),
        "segmentation": sum(bool(row["names"]) for row in pictures.rows("segmentation")),
        "pose": sum(bool(row["keypoints"]) for row in pictures.rows("pose")),
        "caption": sum(bool(row["caption"]) for row in pictures.rows("caption")),
        "edges": sum(row["edges"] is not None for row in pictures.rows("edges")),
        "depth": sum(len(row["depth"]) for row in views.rows("depth"))
        + sum(row["depth"] is not None for row in pictures.rows("depth")),
    }
    assert min(counts.values()) >= 5, counts
    reasons = [row["reason"] for row in pictures.rows("rejected")]
    for word in ("bomb", "truncated", "not a picture", "same bytes"):
        assert any(word in reason for reason in reasons), (word, reasons)
    rows = pictures.joined_rows({"images": ["source"], "depth": ["method"]})
    methods = {row["images.source"]: row["depth.method"] for row in rows}
    assert methods["motorcycle_left.png"] == "stereo"


def test_demo_model_learns_edges_and_segmentation(journey: tuple[str, str]) -> None:
    metrics = json.loads(open_store(journey[0]).read("metrics.json"))
    for label in ("edges", "segmentation"):
        name = f"image_to_{label}_correlation"
        figures = metrics["figures"][name]
        assert metrics[name] == figures["model"] >= 0.5
        assert figures["pictures"] >= 5
        assert figures["model"] > max(figures["step_0"], figures["mean_label"], figures["other_pictures"])


def test_demo_samples_every_task_in_both_directions(journey: tuple[str, str]) -> None:
    store = open_store(f"{journey[0]}/samples")
    records = json.loads(store.read("samples.json"))
    directions = {(record["task"], record["direction"]) for record in records}
    assert {task for task, _ in directions} >= TASKS
    for task in TASKS - {"text2image"}:
        assert {(task, "to_image"), (task, "from_image")} <= directions
    files = store.files()
    named = {name for record in records for name in (*record["inputs"], *record["output"], record["label"]) if name}
    assert named <= set(files)


def test_demo_has_sets_of_people_items_and_edits(journey: tuple[str, str]) -> None:
    for kind in ("identity", "subject", "editing"):
        dataset = Dataset.open(f"{journey[0]}/{kind}")
        rows = list(dataset.joined_rows({"caption": ["caption"], "origin": ["method"]}))
        assert rows and all(len(row["caption.caption"]) > 1 for row in rows)
        assert {"images", "caption", "origin"} < set(dataset.groups())
    page = open_store(journey[0]).read("report.html").decode()
    for words in ("Sets of a person", "Sets of an item", "Pictures and edits"):
        assert words in page


def test_demo_page_is_self_contained(journey: tuple[str, str]) -> None:
    page = open_store(journey[0]).read("report.html").decode()
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)
    for word in ("segmentation", "rejected", "tokens", "inpainting", "Grace Hopper"):
        assert word in page


def test_sample_command_recovers_cameras(journey: tuple[str, str], tmp_path: Path, photographs: Path) -> None:
    """The other directions are the README's."""
    cat, out = str(photographs / "chelsea.png"), tmp_path / "poses"
    command = [sys.executable, "-m", "pipelines", "sample", journey[0], "views", "--image", cat, "--image", cat]
    subprocess.run([*command, "--steps", "2", "--out", str(out / "out.png")], check=True, cwd=ROOT, timeout=300)
    assert [path.name for path in out.iterdir()] == ["out.json"]
    assert len(json.loads((out / "out.json").read_text())["R"]) == 2


def test_second_demo_run_finds_everything_fresh(journey: tuple[str, str]) -> None:
    before = kept(journey[0])
    said = demo(journey[0])
    assert "ingest: 0 pictures added" in said
    assert re.search(r"label pictures: 0 shards labeled, \d+ shards fresh", said)
    assert re.search(r"label views: 0 shards labeled, \d+ shards fresh", said)
    assert "finished already" in said
    assert kept(journey[0]) == before


def kept(out: str) -> dict[str, Entry]:
    """Shards and checkpoints, with their sizes and tags."""
    return {name: entry for name, entry in open_store(out).walk().items() if name.endswith(("parquet", "tensors"))}
