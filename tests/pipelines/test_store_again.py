"""`label --store-again`: lists of before become bytes, with equal content, and nothing is computed or stale."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from labeling.dataset import Dataset, dataset_status
from pipelines.cli.app import app

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
    assert {group for group, line in said.items() if not line.startswith("no")} == BYTES - {"text"}
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
