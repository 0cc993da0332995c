"""The dataset of aligned column groups: the one contract that other folders may import. It knows no labeler."""

from __future__ import annotations

from labeling.dataset.shards import SCHEMA_VERSION, Dataset, Footer, ShardInfo, recipe, write_shard
from labeling.dataset.storage import Entry, Store, open_store

__all__ = ["SCHEMA_VERSION", "Dataset", "Entry", "Footer", "ShardInfo", "Store", "open_store", "recipe", "write_shard"]
