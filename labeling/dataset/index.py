"""GROUP/index.parquet: a cache of the footers of a group's shards. Deleting it is harmless.

With it, the status of a group costs one listing and the footers that changed, however many shards there are.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq

from labeling.dataset.shards import SUFFIX, Footer, read_footer
from labeling.dataset.storage import Entry, Store
from model.inputs import InputError

INDEX = "index.parquet"


def read_footers(store: Store, group: str, shards: Sequence[str], save: bool = False) -> dict[str, Footer]:
    """Footers of those of the shards that are there, by shard name.

    save: keep the footers in the index, where one may write there.
    """
    listing = store.files(group)
    cached = _load(store, group) if INDEX in listing else {}
    entries = {shard: listing[f"{shard}{SUFFIX}"] for shard in shards if f"{shard}{SUFFIX}" in listing}
    footers, changed = {}, len(cached) != len(entries)
    for shard, entry in entries.items():
        if shard in cached and cached[shard][0] == entry:
            footers[shard] = cached[shard][1]
        else:
            footers[shard] = read_footer(store, group, shard)
            changed = True
    if save and changed:
        with suppress(InputError, OSError):  # the index is only a cache, and not everyone who reads may write
            _save(store, group, {shard: (entries[shard], footer) for shard, footer in footers.items()})
    return footers


def _load(store: Store, group: str) -> dict[str, tuple[Entry, Footer]]:
    try:
        with store.open(f"{group}/{INDEX}") as file:
            rows = pq.read_table(file).to_pylist()
        return {row["name"]: (Entry(row["size"], row["tag"]), Footer(**json.loads(row["footer"]))) for row in rows}
    except (OSError, pa.ArrowException, KeyError, TypeError, ValueError):
        return {}  # an unreadable cache is made anew


def _save(store: Store, group: str, footers: Mapping[str, tuple[Entry, Footer]]) -> None:
    rows = [
        {"name": shard, "size": entry.size, "tag": entry.tag, "footer": json.dumps(asdict(footer), sort_keys=True)}
        for shard, (entry, footer) in footers.items()
    ]
    name = f"{group}/{INDEX}"
    path = store.scratch(name)
    pq.write_table(pa.Table.from_pylist(rows), path)
    store.put_file(name, path)
