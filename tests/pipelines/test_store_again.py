"""`label --store-again`: lists of before become bytes, with equal content, and nothing is computed or stale."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from labeling.dataset import Dataset, LocalStore, dataset_status, write_shard
from model.inputs import InputError
from pipelines.cli.app import app
from pipelines.store_again import store_again

OLD = Path(__file__).parents[1] / "compatibility" / "dataset"
BYTES = {"latents-64", "latents-64-depth", "latents-64-edges", "latents-64-segmentation", "text"}


def test_shards_of_before_are_stored_as_bytes_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(shutil.copytree(OLD, tmp_path / "dataset"))
    dataset = Dataset.open(place)
    status, before = dataset_status(dataset), {group: dataset.footers(group) for group in dataset.groups()}
    values = {group: list(dataset.rows(group)) for group in BYTES}
    shards = {group: len(before[group]) for group in BYTES}
    app(["label", place, "text", "--store-again"], standalone_mode=False)
    assert capsys.readouterr().out.startswith(f"text: {shards['text']} shard")
    app(["label", place, "--store-again"], standalone_mode=False)
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert {group for group, line in said.items() if line.startswith("no")} == {"text"}
    for group in BYTES:
        assert list(dataset.rows(group)) == values[group]
        for shard in before[group]:
            file = dataset.arrays(group, shard)
            assert file.latents or file.entries
    for group, footers in before.items():
        for shard, footer in footers.items():
            assert dataset.footer(group, shard) == footer
    assert dataset_status(dataset) == status
    app(["label", place, "--store-again"], standalone_mode=False)
    assert {line.split(": ")[1] for line in capsys.readouterr().out.splitlines()} == {"no shards stored again"}


def test_damaged_shard_of_before_stays_as_it_is(tmp_path: Path) -> None:
    """Its digests tell, and with checksums of its own nothing would tell any more."""
    place = Path(shutil.copytree(OLD, tmp_path / "dataset"))
    dataset = Dataset.open(place)
    file = min((place / "latents-64").glob("0*.parquet"))
    footer = {key: value for key, value in pq.read_metadata(file).metadata.items() if key != b"ARROW:schema"}
    table = dataset.read("latents-64", file.stem)
    lists = table["latent"].combine_chunks()
    values = lists.values.to_numpy(zero_copy_only=False).copy()
    values[5] += np.float16(1)
    changed = pa.ListArray.from_arrays(lists.offsets, pa.array(values, pa.float16()))
    changed = table.set_column(table.column_names.index("latent"), "latent", changed)
    rows = max(dataset.footer("latents-64", file.stem).row_groups)
    with pq.ParquetWriter(file, changed.schema.remove_metadata()) as writer:
        writer.write_table(changed, row_group_size=rows)
        writer.add_key_value_metadata(footer)
    before = file.read_bytes()
    with pytest.raises(InputError, match=rf"latents-64/{file.name}: damaged; delete the file and label"):
        store_again(str(place), ["latents-64"])
    assert file.read_bytes() == before


def test_shards_that_cannot_be_stored_otherwise_are_stored_once(tmp_path: Path) -> None:
    place = Path(shutil.copytree(OLD, tmp_path / "dataset"))
    store = Dataset.open(place).store
    half = pa.list_(pa.float16())
    holes = pa.table({"latent": pa.array([[1.0, None]], half)})
    for file in (place / "latents-64").glob("0*.parquet"):
        write_shard(store, "latents-64", file.stem, holes, [1], "r")
    assert store_again(str(place), ["latents-64"]) == {"latents-64": 0}


def test_shards_of_a_group_are_listed_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = str(shutil.copytree(OLD, tmp_path / "dataset"))
    asked: list[str] = []
    original = LocalStore.exists

    def exists(store: LocalStore, name: str) -> bool:
        asked.append(name)
        return original(store, name)

    monkeypatch.setattr(LocalStore, "exists", exists)
    assert store_again(place, ["latents-64"])["latents-64"] > 0
    assert not [name for name in asked if name.startswith("latents-64/0")]
