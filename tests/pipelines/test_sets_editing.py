"""`sets editing` of files: the layouts in which edits are published, and what is wrong with rows of them."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from commands import onediffusion
from PIL import Image

from labeling.dataset import Dataset, dataset_status
from model.inputs import InputError
from pipelines.sets import sets

SIZE = (96, 64)


def encoded(seed: int, size: tuple[int, int] = SIZE, form: str = "PNG") -> bytes:
    """A picture, another one for each seed."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def hub(seed: int, **options: Any) -> dict[str, Any]:
    """A picture as the hub's datasets have it in Parquet."""
    return {"bytes": encoded(seed, **options), "path": f"{seed}.png"}


# By its publisher: a row, and what of it is read.
LAYOUTS: dict[str, dict[str, Any]] = {
    "InstructPix2Pix": {"original_prompt": "a house", "original_image": hub(1), "edit_prompt": "make it snow",
                        "edited_prompt": "a house in snow", "edited_image": hub(2)},
    "InstructPix2Pix of diffusers": {"input_image": hub(1), "edit_prompt": "make it snow", "edited_image": hub(2)},
    "MagicBrush": {"img_id": "7", "turn_index": 1, "source_img": hub(1), "mask_img": hub(3),
                   "instruction": "make it snow", "target_img": hub(2)},
    "OmniEdit": {"omni_edit_id": "task_1", "task": "env", "src_img": hub(1), "edited_img": hub(2),
                 "edited_prompt_list": ["make it snow", "let snow fall"], "o_score": 9.5, "width": 96},
    "UltraEdit": {"clip_sim_dir": 0.2, "source_caption": "a house", "target_caption": "a house in snow",
                  "source_image": hub(1), "edited_image": hub(2), "edit_prompt": "make it snow",
                  "mask_image": hub(3)},
    "HQ-Edit": {"input": "a house", "input_image": hub(1), "edit": "make it snow", "output": "a house in snow",
                "inverse_edit": "melt it", "output_image": hub(2)},
}  # fmt: skip


def pictures_of(uri: Path) -> list[dict[str, Any]]:
    """Columns of images, caption and origin of each set."""
    columns = {"images": None, "caption": ["caption"], "origin": ["method"]}
    return list(Dataset.open(uri).joined_rows(columns))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_parquet_give_the_same_set(layout: str, tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist([LAYOUTS[layout]]), tmp_path / "train-0.parquet")
    assert sets("editing", [str(tmp_path)], str(tmp_path / "edits"), {}).sets == 1
    (row,) = pictures_of(tmp_path / "edits")
    assert row["images.image"] == [encoded(1), encoded(2)], "the bytes are copied as they are"
    says_what_it_was = {"InstructPix2Pix", "UltraEdit", "HQ-Edit"}
    assert row["caption.caption"] == ["a house" if layout in says_what_it_was else "", "make it snow"]
    assert row["origin.method"] == ["original", "given"]
    facts = json.loads(row["images.metadata"][1] or "{}")
    if layout == "OmniEdit":
        assert (facts["task"], facts["o_score"], facts["edited_prompt_list"][1]) == ("env", 9.5, "let snow fall")


def test_folders_of_the_generator_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "raw" / "0000012"
    folder.mkdir(parents=True)
    (folder / "prompt.json").write_text(json.dumps({"input": "a house", "edit": "make it snow", "output": "snow"}))
    (folder / "metadata.jsonl").write_text(
        "".join(json.dumps({"seed": seed, "cfg_scale": 7.5}) + "\n" for seed in (5, 6, 7))
    )
    for seed in (5, 6):
        (folder / f"{seed}_0.jpg").write_bytes(encoded(seed))
        (folder / f"{seed}_1.jpg").write_bytes(encoded(10 * seed))
    result = sets("editing", [str(tmp_path / "raw")], str(tmp_path / "edits"), {})
    assert (result.sets, result.rejected) == (2, 1)
    assert [row["images.image"][1] for row in pictures_of(tmp_path / "edits")] == [encoded(50), encoded(60)]
    (refused,) = Dataset.open(tmp_path / "edits").rows("rejected")
    assert refused["reason"] == "source_image: 7_0.jpg is not there"


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """JSONL with edits of two pictures, and a line for everything that may be wrong."""
    folder = tmp_path / "lines"
    folder.mkdir()
    for seed in range(1, 5):
        (folder / f"{seed}.png").write_bytes(encoded(seed))
    (folder / "tall.png").write_bytes(encoded(8, (32, 96)))
    (folder / "tiny.png").write_bytes(encoded(8, (8, 8)))
    (folder / "cut.png").write_bytes(encoded(9)[:200])
    pairs = [("1", "2", "one"), ("1", "3", "two"), ("4", "2", "three")]
    good = [json.dumps({"source": f"{a}.png", "target": f"{b}.png", "instruction": text}) for a, b, text in pairs]
    bad = [
        '{"source": "1.png"',
        '["1.png"]',
        '{"source": "1.png", "target": "2.png"}',
        '{"source": "1.png", "target": "2.png", "instruction": " "}',
        '{"source": "1.png", "target": "1.png", "instruction": "x"}',
        '{"source": "none.png", "target": "2.png", "instruction": "x"}',
        '{"source": "../1.png", "target": "2.png", "instruction": "x"}',
        '{"source": "1.png", "target": "tall.png", "instruction": "x"}',
        '{"source": "1.png", "target": "cut.png", "instruction": "x"}',
        '{"source": "1.png", "target": "tiny.png", "instruction": "x"}',
        '{"source": null, "target": "2.png", "instruction": "x"}',
        good[2],
    ]
    text = "\r\n".join([*good, *bad, "", '{"source": "\udcff"}'])
    (folder / "edits.jsonl").write_bytes(text.encode("utf-8", "surrogateescape"))
    return folder


def test_a_bad_line_is_a_rejected_row_with_its_reason(lines: Path, tmp_path: Path) -> None:
    result = sets("editing", [str(lines)], str(tmp_path / "edits"), {})
    assert (result.sets, result.rejected) == (2, 13)
    rows = pictures_of(tmp_path / "edits")
    assert [row["caption.caption"] for row in rows] == [["", "one", "two"], ["", "three"]], "edits of one picture"
    reasons = [row["reason"] for row in Dataset.open(tmp_path / "edits").rows("rejected")]
    for reason, part in zip(
        reasons,
        ("no JSON", "no JSON object", "no column 'edit_prompt'", "no instruction", "the same picture", "not there",
         "not below", "32 × 96", "target: truncated", "target: ", "no picture", "the same edit as edits.jsonl#",
         "no column"),
        strict=True,
    ):  # fmt: skip
        assert part in reason, reasons


def test_columns_are_named_and_files_without_them_refused(lines: Path, tmp_path: Path) -> None:
    line = {"a": "1.png", "b": "2.png", "c": "make it snow"}
    (lines / "edits.jsonl").write_text(json.dumps(line))
    named = {"source": "a", "target": "b", "instruction": "c"}
    assert sets("editing", [str(lines)], str(tmp_path / "edits"), named).sets == 1
    with pytest.raises(InputError, match=r"none of 1 rows makes a set; .*no column 'x'.*there are a, b, c"):
        sets("editing", [str(lines)], str(tmp_path / "none"), {**named, "source": "x"})
    assert not list((tmp_path / "none").glob("*/*")), "nothing is left of a job that made nothing"
    pq.write_table(pa.table({"text": ["x"]}), lines / "other.parquet")
    with pytest.raises(
        InputError, match=r"other.parquet: no column 'source_image' for the source; name it with --source"
    ):
        sets("editing", [str(lines / "other.parquet")], str(tmp_path / "none"), {})
    with pytest.raises(InputError, match="make: it says nothing of files"):
        sets("editing", [str(lines)], str(tmp_path / "none"), {"make": ["style"]})


def test_what_is_written_is_kept_and_what_was_lost_comes_back_the_same(lines: Path, tmp_path: Path) -> None:
    uri = tmp_path / "edits"
    good = (lines / "edits.jsonl").read_text(errors="replace").splitlines()[:3]
    many = [json.dumps({**json.loads(line), "instruction": f"{n}"}) for n in range(100) for line in good]
    (lines / "edits.jsonl").write_text("\n".join(many))
    assert sets("editing", [str(lines / "edits.jsonl")], str(uri), {}).added > 0
    files = {path: path.read_bytes() for path in uri.rglob("*.parquet")}
    assert sum("images" in str(path) for path in files) == 3
    assert sets("editing", [str(lines / "edits.jsonl")], str(uri), {}).added == 0
    for lost in ("images/000001.parquet", "dataset.json"):  # as of a job that was killed
        (uri / lost).unlink()
    sets("editing", [str(lines / "edits.jsonl")], str(uri), {})
    assert {path: path.read_bytes() for path in uri.rglob("*.parquet")} == files
    with (lines / "edits.jsonl").open("a") as file:
        file.write("\n" + good[0])
    assert sets("editing", [str(lines / "edits.jsonl")], str(uri), {}).added > 0
    assert (uri / "images/000000.parquet").read_bytes() == files[uri / "images/000000.parquet"]
    assert all(not (one.stale or one.missing) for one in dataset_status(Dataset.open(uri)).values())


def test_a_killed_job_goes_on_to_the_same_bytes(lines: Path, tmp_path: Path) -> None:
    for number in range(200):
        (lines / f"t{number}.png").write_bytes(encoded(100 + number))
    edits = [{"source": f"t{n - n % 3}.png", "target": f"t{n}.png", "instruction": "x"} for n in range(200) if n % 3]
    (lines / "edits.jsonl").write_text(
        "\n".join(map(json.dumps, edits)) + "\n" + (lines / "edits.jsonl").read_text("latin-1")
    )
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "pipelines", "sets", "editing", str(lines / "edits.jsonl"), str(killed)]
    with subprocess.Popen(command, stderr=subprocess.PIPE) as job:
        while not (killed / "images/000000.parquet").exists() and job.poll() is None:
            time.sleep(0.01)
        job.kill()
    assert not (killed / "dataset.json").exists(), "it was killed before its end"
    subprocess.run(command, check=True, capture_output=True)
    sets("editing", [str(lines / "edits.jsonl")], str(whole), {})
    files = [
        {path.relative_to(uri): path.read_bytes() for path in uri.rglob("*") if path.suffix in (".parquet", ".json")}
        for uri in (killed, whole)
    ]
    assert files[0] == files[1] and len(files[0]) > 8


def test_command_line_makes_them(lines: Path, tmp_path: Path) -> None:
    done = onediffusion("sets", "editing", lines, tmp_path / "edits")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("2 sets written; 2 sets in") and "13 rows rejected" in done.stdout
    shutil.copytree(tmp_path / "edits", tmp_path / "copy")
    refused = onediffusion("sets", "editing", lines, tmp_path / "edits", tmp_path / "new")
    assert refused.returncode == 2
    assert refused.stderr.startswith(f"onediffusion: {lines}: no dataset, as the other sources are")
