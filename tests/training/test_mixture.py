"""The manifest: what is pinned, which rows are eligible, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from labeling.dataset import Dataset, open_store
from model.inputs import InputError
from training.plan.manifest import Manifest
from training.plan.mixture import build_manifest
from training.plan.pinned_shards import ShardPin, Shards, bits_of
from training.plan.streams import Stream
from training.seeded_generator import SeededGenerator
from training.source_config import SourceConfig

SIZE = 64


def _mixture(dataset: Path, *tasks: str, size: int | None = None) -> dict[str, SourceConfig]:
    return {"source": SourceConfig(dataset=str(dataset), tasks=dict.fromkeys(tasks, 1.0), size=size)}


def test_eligible_rows_are_counted_by_task(pictures_dataset: Path) -> None:
    manifest = build_manifest(_mixture(pictures_dataset, "text2image", "edges", "segmentation", "inpainting"), SIZE)
    # Of twelve rows: row 3 has no prompts, row 1 no edges, row 2 an empty segmentation.
    assert manifest.counts() == {"text2image": 11, "edges": 10, "segmentation": 10, "inpainting": 11}
    edges = next(stream for stream in manifest.streams if stream.task == "edges")
    first = manifest.sources["source"].shards[0]
    assert first.mask(edges.key).tolist() == [True, False, True, False, True, True, True, True]


def test_rows_marked_as_removed_are_not_eligible(pictures_dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(pictures_dataset, tmp_path / "dataset")
    dataset = Dataset.open(tmp_path / "dataset")
    dataset.describe(dataset.kind, dataset.shards, dataset.sources, {"000000": [0, 3], "000001": [1]})
    manifest = build_manifest(_mixture(tmp_path / "dataset", "text2image", "edges"), SIZE)
    assert manifest.counts() == {"text2image": 9, "edges": 8}
    stream = manifest.streams[0]
    assert manifest.sources["source"].shards[1].mask(stream.key).tolist() == [True, False, True, True]


def test_manifest_pins_content_of_used_groups(pictures_dataset: Path) -> None:
    manifest = build_manifest(_mixture(pictures_dataset, "text2image", "edges"), SIZE)
    dataset = Dataset.open(pictures_dataset)
    shards = manifest.sources["source"].shards
    assert [shard.name for shard in shards] == ["000000", "000001"]
    assert [shard.row_groups for shard in shards] == [[4, 4], [2, 2]]
    assert set(shards[0].content) == {"latents-64", "text", "latents-64-edges"}
    for group, content in shards[1].content.items():
        assert content == dataset.footer(group, "000001").content


def test_split_puts_a_row_on_the_same_side_for_all_tasks(pictures_dataset: Path) -> None:
    manifest = build_manifest(_mixture(pictures_dataset, "text2image", "edges", "segmentation"), SIZE)
    training, validation = manifest.split(0.3, 0)
    sides = []
    for side in (training, validation):
        rows: dict[str, set[tuple[str, int]]] = {}
        for stream in side.streams:
            shards = side.sources["source"].shards
            masks = [(shard.name, shard.mask(stream.key)) for shard in shards]
            rows[stream.task] = {(name, int(row)) for name, mask in masks for row in mask.nonzero()[0]}
            assert stream.rows == len(rows[stream.task])
        sides.append(rows)
    assert set().union(*sides[0].values()).isdisjoint(set().union(*sides[1].values()))
    for task, count in manifest.counts().items():
        assert len(sides[0][task]) + len(sides[1][task]) == count
    assert 0 < validation.counts()["text2image"] < training.counts()["text2image"]
    assert manifest.split(0.3, 0) == (training, validation) != manifest.split(0.3, 1)
    with pytest.raises(
        InputError, match=r"validation.share 1e-09 of 11 rows leaves none for validation; change it, or set it to 0"
    ):
        manifest.split(1e-9, 0)


def test_manifest_counts_views_of_sets(views_dataset: Path) -> None:
    manifest = build_manifest(_mixture(views_dataset, "views"), SIZE)
    assert manifest.counts() == {"views": 3}
    assert manifest.sources["source"].shards[0].views == [3, 4, 5]


def test_manifest_of_a_run_is_read_as_it_was_written(
    pictures_dataset: Path, views_dataset: Path, tmp_path: Path
) -> None:
    mixture = {
        **_mixture(pictures_dataset, "text2image", "edges"),
        "sets": SourceConfig(dataset=str(views_dataset), tasks={"views": 2.0}),
    }
    manifest = build_manifest(mixture, SIZE, lanes=6)
    store = open_store(tmp_path / "run")
    assert Manifest.find(store) is None
    manifest.write(store)
    found = Manifest.read(store)
    assert found == manifest and found.lanes == 6
    shards = found.sources["sets"].shards
    assert not shards.views.flags.owndata and not shards.views.flags.writeable, "mapped, not copied"
    (tmp_path / "run" / "manifest.arrow").write_bytes((tmp_path / "run" / "manifest.arrow").read_bytes()[:-99])
    assert Manifest.find(store) is None


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("manifest.arrow", b"ARROW1", "manifest.arrow: the run's manifest is damaged"),
        ("manifest.json", b"{}", "manifest.json: the run's manifest is damaged"),
        ("manifest.json", b"[", "manifest.json: the run's manifest is damaged"),
        ("other", b"", "manifest.arrow: the run's manifest is gone; restore it, or remove"),
    ],
)
def test_damaged_or_missing_manifest_is_one_line(tmp_path: Path, name: str, content: bytes, expected: str) -> None:
    store = open_store(tmp_path)
    store.put(name, content)
    with pytest.raises(InputError) as error:
        Manifest.read(store)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert Manifest.find(store) is None


def test_manifest_of_version_1_is_read_and_has_no_lanes(tmp_path: Path) -> None:
    """As runs of that version have it, also beside nothing newer; see tests/compatibility for such a run."""
    text = (Path(__file__).parents[1] / "compatibility" / "run" / "manifest.json").read_text()
    store = open_store(tmp_path)
    store.put("manifest.json", text.encode())
    manifest, values = Manifest.read(store), json.loads(text)
    assert manifest.lanes == 0
    for name, source in values["sources"].items():
        assert list(manifest.sources[name].shards) == [ShardPin(**shard) for shard in source["shards"]]
    assert [vars(stream) for stream in manifest.streams] == [
        {**vars(Stream("", "", 0, 0)), **stream} for stream in values["streams"]
    ]
    store.put("manifest.json", text.replace('"version":1', '"version":9').encode())
    with pytest.raises(InputError, match="the run's manifest has version 9; begin a new run"):
        Manifest.read(store)


def test_masks_of_shards_are_those_of_their_pins() -> None:
    generator = SeededGenerator("masks", 0)
    pins, stream = [], Stream("a", "edges", 1.0, 64)
    for number in range(9):
        mask = generator.uniforms(13) < (0.6 if number % 3 else 2.0)
        pins.append(ShardPin(f"{number:06d}", [5, 1, 7], {}, {stream.key: bits_of(mask)}))
    shards = Shards.of(iter(pins))
    assert list(shards) == pins and shards[2:4] == pins[2:4] and shards[-1] == pins[-1]
    counts = [
        mask[start:end].sum()
        for pin in pins
        for mask in [pin.mask(stream.key)]
        for start, end in ((0, 5), (5, 6), (6, 13))
    ]
    assert shards.counts(stream.key).tolist() == counts
    for number, pin in enumerate(pins):
        assert shards.mask(stream.key, number).tolist() == pin.mask(stream.key).tolist()
    assert shards.row_in_shard(4, 2, 3) == 9


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ("edgs", "unknown task 'edgs' (did you mean 'edges'?)"),
        ("hed", "no group 'latents-64-hed', which hed needs"),
        ("views", "a dataset of pictures, but task 'views' needs one of sets"),
        ("depth", "no group 'latents-64-depth', which depth needs"),
    ],
)
def test_unservable_task_is_named(pictures_dataset: Path, task: str, expected: str) -> None:
    with pytest.raises(InputError) as caught:
        build_manifest(_mixture(pictures_dataset, task), SIZE)
    assert expected in str(caught.value)


def test_missing_shards_and_sizes_are_named(pictures_dataset: Path) -> None:
    with pytest.raises(InputError, match="no group 'latents-128'"):
        build_manifest(_mixture(pictures_dataset, "text2image", size=128), SIZE)
    (pictures_dataset / "text" / "000001.parquet").unlink()
    with pytest.raises(InputError, match=r"group 'text' lacks 1 of 2 shards \(000001"):
        build_manifest(_mixture(pictures_dataset, "text2image"), SIZE)


def test_latents_of_two_codecs_are_refused(pictures_dataset: Path) -> None:
    dataset = Dataset.open(pictures_dataset)
    declaration = dataset.declaration("latents-64-edges")
    assert declaration is not None
    dataset.declare("latents-64-edges", {**declaration, "weights": "another"})
    with pytest.raises(InputError, match="come from different weights; latents must be of one kind"):
        build_manifest(_mixture(pictures_dataset, "edges"), SIZE)


def test_mixture_without_eligible_rows_is_refused(pictures_dataset: Path, write_group: Callable[..., None]) -> None:
    rows: list[dict[str, Any]] = [{"names": []}] * 12
    write_group(pictures_dataset, "segmentation", [[4, 4], [2, 2]], {"names": pa.list_(pa.string())}, rows)
    with pytest.raises(InputError, match=r"no row of .* is eligible"):
        build_manifest(_mixture(pictures_dataset, "segmentation"), SIZE)
    assert build_manifest(_mixture(pictures_dataset, "segmentation", "edges"), SIZE).counts()["segmentation"] == 0
