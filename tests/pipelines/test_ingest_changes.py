"""Ingest again: what was replaced, corrected, renamed, removed or is back at the source."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from labeling.dataset import Dataset, expected_recipe
from pipelines.cli.app import app
from pipelines.ingest import IngestResult, ingest
from pipelines.label import label


def images(target: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((target / "images").glob("[0-9]*.parquet"))}


def run(source: Path, target: Path, *options: str) -> str:
    """What the command printed."""
    done = CliRunner().invoke(app, ["ingest", str(source), str(target), *options])
    assert done.exit_code == 0, done.output
    return str(done.stdout)


def test_changes_at_the_source_are_said_and_taken_over(pictures: Path, tmp_path: Path, photographs: Path) -> None:
    target = tmp_path / "dataset"
    (pictures / "coffee.txt").write_text("a cap")
    ingest(str(pictures), str(target), shard_rows=4)
    before = images(target)
    shutil.copy(photographs / "hubble_deep_field.jpg", pictures / "rocket.jpg")
    (pictures / "coffee.txt").write_text("a cup")
    (pictures / "astronaut.png").touch()  # the same bytes
    (pictures / "chelsea.png").rename(pictures / "cat.png")
    (pictures / "camera.png").unlink()
    found = ingest(str(pictures), str(target))
    assert found == IngestResult(0, 1, 6, changed=2, gone=1)
    assert found.remarks == [
        "at the source, 2 changed and 1 gone: --update takes them over, --prune marks their rows as removed"
    ]
    assert {name: images(target)[name] for name in before} == before

    assert "2 replaced, 1 marked as removed" in run(pictures, target, "--update", "--prune")
    dataset = Dataset.open(target)
    rows = list(dataset.rows("images"))
    assert [row["source"] for row in rows] == [
        "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg",
    ]  # fmt: skip
    assert rows[3]["text"] == "a cup"
    assert rows[5]["image"] == (photographs / "hubble_deep_field.jpg").read_bytes()
    assert len({row["id"] for row in rows}) == 6
    assert dataset.removed_rows("000000") == [1]
    assert ingest(str(pictures), str(target)) == IngestResult(0, 0, 6)

    shutil.copy(photographs / "camera.png", pictures)
    assert ingest(str(pictures), str(target)).remarks == ["1 picture is back at the source; the mark is taken off"]
    assert Dataset.open(target).removed_rows("000000") == []


def test_change_that_is_no_picture_or_a_known_one_leaves_the_row(
    pictures: Path, tmp_path: Path, photographs: Path
) -> None:
    target = tmp_path / "dataset"
    ingest(str(pictures), str(target), shard_rows=4)
    before = images(target)
    (pictures / "rocket.jpg").write_bytes(b"no picture")
    shutil.copy(pictures / "camera.png", pictures / "chelsea.png")
    result = ingest(str(pictures), str(target), update=True)
    assert (result.changed, result.replaced) == (2, 0)
    assert result.remarks == ["2 changed pictures could not be taken over; rejected/ says why"]
    assert images(target) == before
    reasons = {row["source"]: row["reason"] for row in Dataset.open(target).rows("rejected")}
    assert reasons["rocket.jpg"].startswith("changed at the source: not a picture")
    assert reasons["chelsea.png"].startswith("changed at the source: in the dataset already, as ")
    assert ingest(str(pictures), str(target)) == IngestResult(0, 0, 6)


@pytest.mark.parametrize("killed_at", ["write_shard", "write_seen"])
def test_update_that_was_killed_is_done_by_the_next_one(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str
) -> None:
    source, target = tmp_path / "in", tmp_path / "dataset"
    source.mkdir()
    shutil.copy(photographs / "camera.png", source / "a.png")
    ingest(str(source), str(target))
    shutil.copy(photographs / "coffee.png", source / "a.png")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"labeling.sources.changes.{killed_at}", killed)
        with pytest.raises(KeyboardInterrupt):
            ingest(str(source), str(target), update=True)
    again = ingest(str(source), str(target), update=True)
    assert (again.changed, again.replaced) == (1, 1)
    (row,) = Dataset.open(target).rows("images")
    assert row["image"] == (photographs / "coffee.png").read_bytes()
    assert ingest(str(source), str(target)) == IngestResult(0, 0, 1)


def test_changed_picture_that_equals_a_new_one_is_not_taken_twice(photographs: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "dataset"
    source.mkdir()
    shutil.copy(photographs / "camera.png", source / "a.png")
    ingest(str(source), str(target))
    for name in ("a.png", "b.png"):
        shutil.copy(photographs / "coffee.png", source / name)
    result = ingest(str(source), str(target), update=True)
    assert (result.added, result.changed, result.replaced) == (1, 1, 0)
    ids = [row["id"] for row in Dataset.open(target).rows("images")]
    assert len(set(ids)) == len(ids) == 2


def test_mark_stays_while_another_picture_has_the_name(photographs: Path, tmp_path: Path) -> None:
    source, target = tmp_path / "in", tmp_path / "dataset"
    source.mkdir()
    for name in ("camera.png", "brick.png"):
        shutil.copy(photographs / name, source)
    ingest(str(source), str(target))
    (source / "camera.png").unlink()
    ingest(str(source), str(target), prune=True)
    shutil.copy(photographs / "coffee.png", source / "camera.png")
    for update in (False, False, True):
        assert Dataset.open(target).removed_rows("000000") == [1]
        result = ingest(str(source), str(target), update=update)
        assert (result.changed, result.replaced) == (1, int(update))
    assert Dataset.open(target).removed_rows("000000") == []
    assert ingest(str(source), str(target)) == IngestResult(0, 0, 2)
    (source / "camera.png").unlink()
    ingest(str(source), str(target), prune=True)
    shutil.copy(photographs / "brick.png", source / "camera.png")  # which no row can become
    for update in (True, False):
        ingest(str(source), str(target), update=update)
        assert Dataset.open(target).removed_rows("000000") == [1]


@pytest.mark.usefixtures("ray_cluster")
def test_labels_of_replaced_rows_are_stale_and_those_of_marked_ones_stay(
    pictures: Path, tmp_path: Path, photographs: Path
) -> None:
    target = tmp_path / "dataset"
    ingest(str(pictures), str(target), shard_rows=4)
    label(str(target), ["simple_labelers:Brightness"])
    (pictures / "camera.png").unlink()
    ingest(str(pictures), str(target), prune=True)

    def fresh() -> list[bool]:
        dataset = Dataset.open(target)
        footers = dataset.all_footers(["images", "brightness"])
        declaration = dataset.declaration("brightness") or {}
        return [
            footers["brightness"][shard].recipe == expected_recipe(declaration, shard, footers)
            for shard in dataset.shard_names
        ]

    assert all(fresh())
    shutil.copy(photographs / "hubble_deep_field.jpg", pictures / "rocket.jpg")
    ingest(str(pictures), str(target), update=True)
    assert fresh() == [True, False, True]


def test_dataset_from_before_items_were_kept_takes_new_pictures_alone(
    pictures: Path, tmp_path: Path, photographs: Path
) -> None:
    target = tmp_path / "dataset"
    ingest(str(pictures), str(target), shard_rows=4)
    shutil.rmtree(target / "items")
    assert ingest(str(pictures), str(target)) == IngestResult(0, 0, 6)
    shutil.copy(photographs / "coffee.png", pictures / "a-new-coffee.png")
    shutil.copy(photographs / "brick.png", pictures / "brick.png")
    assert ingest(str(pictures), str(target)) == IngestResult(1, 1, 7)
    rejected = {row["source"]: row["reason"] for row in Dataset.open(target).rows("rejected")}
    assert rejected["a-new-coffee.png"].startswith("in the dataset already, as ")


def test_columns_without_a_place_are_kept_and_said_once(pictures: Path, tmp_path: Path) -> None:
    (pictures / "metadata.csv").write_text("file_name,title,score\ncoffee.png,A cup,0.5\n")
    target = tmp_path / "dataset"
    said = run(pictures, target, "--shard-rows", "2")
    assert "kept in images.metadata: score, title (--text COLUMN makes one of them the caption)" in said
    (row,) = [row for row in Dataset.open(target).rows("images") if row["source"] == "coffee.png"]
    assert row["text"] is None and json.loads(row["metadata"]) == {"score": "0.5", "title": "A cup"}
    run(pictures, tmp_path / "other", "--text", "title")
    (row,) = [row for row in Dataset.open(tmp_path / "other").rows("images") if row["source"] == "coffee.png"]
    assert row["text"] == "A cup"
