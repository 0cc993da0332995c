"""What tests of the steps share."""

from __future__ import annotations

from pathlib import Path

import pytest

from labeling.dataset import Dataset
from pipelines.ingest import ingest


@pytest.fixture
def dataset(pictures: Path, tmp_path: Path) -> Dataset:
    """The pictures in shards of three rows."""
    ingest(str(pictures), str(tmp_path / "dataset"), shard_rows=3)
    return Dataset.open(tmp_path / "dataset")
