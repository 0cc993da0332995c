"""Declarations in group.json, also those written when labelers lay in other modules."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import pyarrow as pa
import pytest

from labeling.dataset import Dataset, ShardInfo, dataset_status, expected_recipe, write_shard
from labeling.declaration import declare, declared_name, is_same
from labeling.labeler import AddedLater
from labeling.labelers.edges import EdgesLabeler
from labeling.plan import choose_labelers, next_wave
from labeling.registry import load_labeler
from model.inputs import InputError
from simple_labelers import Brightness

OLD_CLASS = "labeling.edges:EdgesLabeler"  # where the labeler was before labelers had a folder


@pytest.fixture
def old_dataset(tmp_path: Path) -> Dataset:
    """One shard of images with edges of low=50, declared by the old class path."""
    dataset = Dataset(tmp_path)
    write_shard(dataset.store, "images", "000000", pa.table({"id": ["a"], "image": [b"x"]}), [1], "from a source")
    dataset.describe("pictures", [ShardInfo("000000", 1)], [])
    dataset.declare("images", {"labeler": "ingest", "version": 1, "parameters": {}, "weights": "", "reads": []})
    declaration = {**declare(load_labeler("edges", {"low": 50})), "class": OLD_CLASS}
    dataset.declare("edges", declaration)
    shard_recipe = expected_recipe(declaration, "000000", {"images": dataset.footers("images")})
    assert shard_recipe is not None
    write_shard(dataset.store, "edges", "000000", pa.table({"id": ["a"], "edges": [b"x"]}), [1], shard_recipe)
    return dataset


def test_rerun_on_an_old_dataset_finds_its_labelers_and_nothing_to_do(old_dataset: Dataset) -> None:
    labelers = choose_labelers(old_dataset, ["edges"], {})
    assert isinstance(labelers["edges"], EdgesLabeler)
    declaration = declare(labelers["edges"])
    assert declaration["parameters"]["low"] == 50
    assert is_same(old_dataset.declaration("edges"), declaration)
    footers = {group: old_dataset.footers(group) for group in ("images", "edges")}
    assert not next_wave({"edges": declaration}, footers, old_dataset.shard_names).work
    assert dataset_status(old_dataset)["edges"].fresh == 1


@pytest.mark.parametrize(
    ("group", "declared", "name"),
    [
        ("edges", OLD_CLASS, "edges"),
        ("latents-96-edges", "labeling.latents:LatentsLabeler", "latents-96-edges"),
        ("brightness", "simple_labelers:Brightness", "simple_labelers:Brightness"),
        ("edges", None, "edges"),
    ],
)
def test_built_in_labelers_are_found_by_name_and_others_by_class(group: str, declared: str | None, name: str) -> None:
    declaration: dict[str, Any] = {"class": declared} if declared else {}
    assert declared_name(group, declaration) == name


def test_declarations_differ_by_parameters_and_by_the_class_of_a_user() -> None:
    edges = declare(load_labeler("edges", {}))
    assert not is_same(None, edges)
    assert not is_same({**edges, "parameters": {}}, edges)
    brightness = declare(Brightness("brightness", Brightness.Parameters()))
    assert is_same(brightness, dict(brightness))
    assert not is_same({**brightness, "class": "elsewhere:Brightness"}, brightness)


def test_parameter_added_later_leaves_shards_of_before_fresh(old_dataset: Dataset, monkeypatch: Any) -> None:
    """A labeler that gets a parameter after datasets were labeled; and one of them, labeled before."""

    class Extended(EdgesLabeler.Parameters):
        dtype: Annotated[str, AddedLater()] = "fp32"

    monkeypatch.setattr(EdgesLabeler, "Parameters", Extended)
    for given, fresh in (({}, True), ({"edges": {"dtype": "fp32"}}, True), ({"edges": {"dtype": "bf16"}}, False)):
        declaration = declare(choose_labelers(old_dataset, ["edges"], given)["edges"])
        assert is_same(old_dataset.declaration("edges"), declaration) == fresh
        footers = {group: old_dataset.footers(group) for group in ("images", "edges")}
        assert (not next_wave({"edges": declaration}, footers, old_dataset.shard_names).work) == fresh
    old_dataset.declare("edges", declaration)  # labeled with it, it stays until it is set back
    assert declare(choose_labelers(old_dataset, ["edges"], {})["edges"])["parameters"]["dtype"] == "bf16"
    back = declare(choose_labelers(old_dataset, ["edges"], {"edges": {"dtype": "fp32"}})["edges"])
    assert "dtype" not in back["parameters"]


def test_column_that_cannot_be_stored_is_refused_before_anything_runs(
    old_dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Brightness, "schema", pa.schema([("value", pa.list_(pa.float32(), 2))]))
    with pytest.raises(InputError, match=r"labeler brightness, column 'value': .*fixed_size_list"):
        choose_labelers(old_dataset, ["simple_labelers:Brightness"], {})


def test_condition_is_kept_and_missing_one_is_named(old_dataset: Dataset) -> None:
    where = "images.id <> 'b'"
    chosen = choose_labelers(old_dataset, ["edges"], {}, where)
    (selection, edges) = chosen
    for group, labeler in chosen.items():
        old_dataset.declare(group, declare(labeler))
    again = choose_labelers(old_dataset, [edges], {})
    assert list(again) == [selection, edges] and declare(again[selection])["parameters"]["where"] == where
    assert list(choose_labelers(old_dataset, ["edges"], {}, "true")) == ["edges"]
    old_dataset.store.delete_tree(selection)
    with pytest.raises(InputError, match=f"no condition '{selection}' there; select rows with --where"):
        choose_labelers(old_dataset, ["edges"], {})
