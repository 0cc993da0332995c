"""A source with a condition trains on exactly the rows of which it is true, and a resumed run on the same ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from labeling.dataset import Dataset, Store, open_store, select_rows
from model.inputs import InputError
from training.config import TrainingConfig, load_config
from training.plan.manifest import Manifest
from training.plan.mixture import build_manifest
from training.plan.step_plan import Plan
from training.run import _check_same, _pin, _write
from training.source_config import SourceConfig

SIZE, SHARDS = 64, [[4, 4], [2, 2]]
SCORES = [0.1, 0.9, 0.5, 0.8, None, 0.7, 0.2, 0.95, 0.6, 0.3, 0.45, 0.4]
WHERE = "quality.score > 0.4 and images.width > 460"


@pytest.fixture
def scored(pictures_dataset: Path, write_group: Callable[..., None]) -> Path:
    rows = [{"score": score, "error": "no picture" if score is None else None} for score in SCORES]
    write_group(pictures_dataset, "quality", SHARDS, {"score": pa.float32()}, rows)
    return pictures_dataset


def config(dataset: Path, **changes: Any) -> TrainingConfig:
    source = {"dataset": str(dataset), "tasks": ["text2image", "edges"], "where": WHERE, **changes}
    return load_config("debug", {"size": SIZE, "batch": 8, "mixture": {"pictures": source, "views": None}})


def drawn(manifest: Manifest, task: str) -> set[str]:
    """Ids of the rows that a task has in some epochs."""
    plan = Plan(manifest, 0, 8, load_config("debug").objective, 2)
    shards = manifest.sources["pictures"].shards
    ids: set[str] = set()
    for step in range(40):
        for planned in plan.step(step):
            if planned.task == task:
                number = shards.row_in_shard(planned.shard, planned.row_group, planned.row)
                ids.add(str(int(shards.row_starts[planned.shard]) + number))
    return ids


def test_run_draws_exactly_the_selected_rows(scored: Path) -> None:
    widths = [
        width for shard in ("000000", "000001") for width in Dataset(scored).read("images", shard)["width"].to_pylist()
    ]
    expected = {str(row) for row, score in enumerate(SCORES) if score is not None and score > 0.4 and widths[row] > 460}
    assert 3 < len(expected) < 9
    manifest = build_manifest(config(scored).mixture, SIZE, 4)
    assert drawn(manifest, "text2image") == expected - {"3"}, "row 3 has no prompt"
    assert drawn(manifest, "edges") == expected - {"3", "1"}, "nor has row 1 edges"
    selection = select_rows(Dataset.open(scored), WHERE)
    facts = {"where": WHERE, "rows": len(expected), "fingerprint": selection.fingerprint}
    assert manifest.sources["pictures"].selection == facts


def prepare(config: TrainingConfig, store: Store, resumes: bool) -> Manifest:
    """Begin a run, or go on with it, as far as its manifest and configuration are concerned."""
    manifest = _pin(config, store, resumes)
    _write(config, store, None if resumes else manifest)
    return manifest


def test_resumed_run_keeps_its_rows(scored: Path, tmp_path: Path, write_group: Callable[..., None]) -> None:
    store = open_store(tmp_path / "run")
    begun = prepare(config(scored), store, resumes=False)
    write_group(scored, "quality", SHARDS, {"score": pa.float32()}, [{"score": 0.0}] * 12)
    with pytest.raises(InputError, match=r"where 'quality.score > 0.4 .*' is true of none of its 12 rows"):
        build_manifest(config(scored).mixture, SIZE)
    resumed = prepare(config(scored), store, resumes=True)
    assert resumed == begun
    assert resumed.sources["pictures"].selection == begun.sources["pictures"].selection is not None


def test_another_condition_is_another_run(scored: Path, tmp_path: Path) -> None:
    store = open_store(tmp_path / "run")
    prepare(config(scored), store, resumes=False)
    with pytest.raises(InputError, match=r"was begun with mixture.pictures.where .*quality.score > 0.4"):
        _check_same(config(scored, where="images.width > 460"), store)


def test_configuration_without_a_condition_is_as_before(scored: Path) -> None:
    assert "where" not in config(scored, where=None).fixed()["mixture"]["pictures"]
    assert config(scored).digest() != config(scored, where=None).digest()


def test_labels_that_a_condition_reads_must_be_complete(scored: Path) -> None:
    (scored / "quality" / "000001.parquet").unlink()
    with pytest.raises(InputError, match=r"reads 'quality', which lacks 1 of 2 shards; finish it with `label`"):
        build_manifest({"a": SourceConfig(dataset=str(scored), tasks={"edges": 1}, where=WHERE)}, SIZE)
    by_subquery = "images.id in (select x.id from Quality x where x.score > 0.4)"
    with pytest.raises(InputError, match=r"reads 'quality', which lacks 1 of 2 shards; finish it with `label`"):
        build_manifest({"a": SourceConfig(dataset=str(scored), tasks={"edges": 1}, where=by_subquery)}, SIZE)


def test_empty_condition_is_refused(scored: Path) -> None:
    with pytest.raises(InputError, match="where '': give a condition"):
        build_manifest(config(scored, where="").mixture, SIZE)
