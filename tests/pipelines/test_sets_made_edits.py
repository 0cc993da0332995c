"""`sets editing` of labeled pictures: edits that labels make, their instructions, and what is said of how."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from commands import onediffusion
from PIL import Image

from labeling.dataset import Dataset, write_shard
from labeling.sets.edits import KINDS, Region, recolor, remove, restyle
from labeling.sets.options import EDITS
from model.inputs import InputError
from model.pictures import decode_picture, encode_png
from pipelines.ingest import ingest
from pipelines.sets import sets

COLUMNS = {"images": None, "caption": ["caption"], "origin": None}


@pytest.fixture
def pictures(photographs: Path, tmp_path: Path) -> str:
    """Three pictures whose middle is segmented, and one in which nothing is."""
    (tmp_path / "files").mkdir()
    for name in ("astronaut", "chelsea", "coffee", "camera"):
        Image.open(photographs / f"{name}.png").convert("RGB").resize((240, 200)).save(tmp_path / f"files/{name}.png")
    uri = str(tmp_path / "pictures")
    ingest(str(tmp_path / "files"), uri)
    dataset = Dataset.open(uri)
    rows = []
    for row in dataset.rows("images"):
        mask = np.zeros((row["height"], row["width"]), np.uint8)
        names = [] if row["source"] == "camera.png" else ["cup"]
        mask[60:120, 80:150] = len(names)
        rows.append({"id": row["id"], "mask": encode_png(mask), "names": names})
    declared = {"labeler": "segmentation", "version": 1, "parameters": {}, "weights": "", "reads": []}
    dataset.declare("segmentation", declared)
    schema = pa.schema([("id", pa.string()), ("mask", pa.binary()), ("names", pa.list_(pa.string()))])
    row_groups = dataset.footer("images", "000000").row_groups
    write_shard(dataset.store, "segmentation", "000000", pa.Table.from_pylist(rows, schema), row_groups, "r")
    return uri


def rows_of(uri: Path) -> list[dict[str, Any]]:
    return list(Dataset.open(uri).joined_rows(COLUMNS))


def methods(rows: list[dict[str, Any]]) -> set[str]:
    return {method.partition(":")[0] for row in rows for method in row["origin.method"]}


def test_each_set_has_the_picture_as_it_is_and_edits_that_say_how_they_were_made(pictures: str, tmp_path: Path) -> None:
    result = sets("editing", [pictures], str(tmp_path / "edits"), {"edits": 4, "reversed": 0})
    rows = rows_of(tmp_path / "edits")
    assert not list(Dataset.open(tmp_path / "edits").rows("rejected"))
    assert result.sets == len(rows) == 4
    sources = {row["id"]: row["image"] for row in Dataset.open(pictures).rows("images")}
    for row in rows:
        assert row["images.image"][0] == sources[row["origin.row"][0]] and row["origin.method"][0] == "original"
        is_segmented = row["images.source"][0] != "camera.png"
        assert {one.partition(":")[0] for one in row["origin.method"][1:]} == (
            set(EDITS) if is_segmented else {"style"}
        )
        assert len(set(zip(row["images.width"], row["images.height"], strict=True))) == 1
        assert all(row["caption.caption"][1:]), "each has an instruction"
        original = decode_picture(row["images.image"][0]).astype(int)
        for method, data in zip(row["origin.method"][1:], row["images.image"][1:], strict=True):
            change = np.abs(decode_picture(data).astype(int) - original).max(axis=2)
            assert change.max() > 20, method
            if method.startswith(("remove", "recolor")):  # what lies apart from the object stays
                assert np.percentile(change[:40], 99) < 16, method


def test_the_way_back_ends_in_the_real_picture(pictures: str, tmp_path: Path) -> None:
    options = {"make": ["remove"], "reversed": 1.0}
    assert sets("editing", [pictures], str(tmp_path / "edits"), options).rejected == 1
    for row in rows_of(tmp_path / "edits"):
        assert [one.partition(":")[0] for one in row["origin.method"]] == ["remove", "original"]
        assert "a cup" in row["caption.caption"][1]
    (refused,) = Dataset.open(tmp_path / "edits").rows("rejected")
    assert refused["source"] == "camera.png" and "nothing segmented" in refused["reason"]


@pytest.mark.parametrize(
    ("options", "holds"),
    [
        (["--make", "style"], lambda rows: methods(rows) == {"original", "style"} and len(rows) == 4),
        (["--edits", "1"], lambda rows: {len(row["origin.method"]) for row in rows} == {2}),
        (["--area", "0.5:0.9"], lambda rows: methods(rows) == {"original", "style"}),
        (["--where", "images.source = 'coffee.png'"], lambda rows: len(rows) == 1),
    ],
)
def test_options_have_their_effect(
    options: list[str], holds: Callable[..., bool], pictures: str, tmp_path: Path
) -> None:
    done = onediffusion("sets", "editing", pictures, tmp_path / "edits", *options)
    assert done.returncode == 0, done.stderr
    assert holds(rows_of(tmp_path / "edits"))


def test_a_job_file_does_the_same(pictures: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.jobs.resolved import resolve_job
    from pipelines.jobs.specification import parse_specification
    from pipelines.jobs.steps import run_job

    monkeypatch.chdir(tmp_path)
    options = {"make": ["style"], "edits": 1, "seed": 3}
    values = {"kind": "sets", "of": "editing", "sources": ["pictures"], "dataset": "by-job", "options": options}
    job = resolve_job(parse_specification(values, "job"))
    assert job.specification.data == [pictures, str(tmp_path / "by-job")], "whole addresses"
    assert run_job(job.specification, None)["sets"] == 4  # type: ignore[arg-type]  # of the attempt it needs nothing
    sets("editing", [pictures], str(tmp_path / "by-hand"), options)
    files = [(tmp_path / name / "images/000000.parquet").read_bytes() for name in ("by-job", "by-hand")]
    assert files[0] == files[1]


def test_seeds_draw_other_edits_and_the_same_one_the_same(pictures: str, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        sets("editing", [pictures], str(tmp_path / name), {"seed": seed})
    files = [(tmp_path / name / "images/000000.parquet").read_bytes() for name in "abc"]
    assert files[0] == files[1] != files[2]


def test_what_cannot_be_made_is_told(pictures: str, photographs: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "edits")
    with pytest.raises(InputError, match=r"'stile' is no kind of edit \(did you mean 'style'\?\)"):
        sets("editing", [pictures], out, {"make": ["stile"]})
    with pytest.raises(InputError, match="source: it says nothing of datasets, whose labels edits are made by"):
        sets("editing", [pictures], out, {"source": "a"})
    ingest(str(photographs / "chelsea.png"), str(tmp_path / "unlabeled"))
    with pytest.raises(InputError, match="no segmentation of shard 000000; make it with `label"):
        sets("editing", [str(tmp_path / "unlabeled")], out, {})
    with pytest.raises(InputError, match="is true of none of its 4 rows"):
        sets("editing", [pictures], out, {"where": "images.width > 9000"})


def test_colors_and_textures_are_those_that_instructions_say(photographs: Path) -> None:
    picture = np.asarray(Image.open(photographs / "coffee.png").convert("RGB").resize((300, 200)))
    mask = np.zeros(picture.shape[:2], bool)
    mask[70:130, 100:180] = True
    random = np.random.default_rng(3)
    edit = recolor(picture, Region("cup", mask), random)
    inside, hue = edit.picture[mask].mean(axis=0), edit.instruction.rstrip(".").split()[-1]
    strongest = {"blue": [2], "green": [1], "turquoise": [1, 2], "purple": [0, 2], "red": [0], "pink": [0, 2]}
    assert int(inside.argmax()) in strongest.get(hue, [0, 1])
    # Grass is filled with grass: what is filled varies as what surrounds it does.
    grass = np.repeat(np.asarray(Image.open(photographs / "grass.png").convert("L"))[:200, :300, None], 3, axis=2)
    filled = remove(grass, Region("stone", mask), random).picture
    assert 0.6 < filled[mask].std() / grass[~mask].std() < 1.5
    for _ in range(20):
        assert "black-and-white" not in restyle(grass, None, random).instruction, "it is gray already"
    assert tuple(KINDS) == EDITS
