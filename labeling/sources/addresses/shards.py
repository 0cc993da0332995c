"""Shards of a dataset made from a list of addresses: rows fetched, checked and written, or rejected with a reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from labeling.dataset import IMAGE_SCHEMA, IMAGES, REJECTED, REJECTED_SCHEMA, Dataset, digest_json, write_shard
from labeling.sources.addresses.fetch import Failure, Fetcher, is_transient
from labeling.sources.addresses.policy import FetchPolicy
from labeling.sources.addresses.rows import BadRow, Row
from labeling.sources.addresses.sharing import Shares
from labeling.sources.addresses.urls import public_form
from labeling.sources.facts import Described, Naming, describe, plain_value, storable
from labeling.sources.ingest import Limits, same_bytes, write_images, write_pictures
from labeling.sources.normalize import Rejected, image_id, normalize
from labeling.sources.seen import SEEN_SCHEMA, read_seen, write_seen
from model.inputs import one_line

# What is kept of each row of a list; `file` is the list's. rejected/ repeats what it says.
ROW_SCHEMA = pa.schema(
    [
        *SEEN_SCHEMA,
        ("place", pa.int64()),  # number of the row in the file
        ("reason", pa.string()),  # why it was rejected
    ]
)


@dataclass(frozen=True)
class ListedRow:
    """One row of a list: the file, the number of the row in it, and what it says."""

    file: str
    place: int
    row: Row


@dataclass(frozen=True)
class Columns:
    """The columns of addresses and of captions of a list; "" for no captions."""

    url: str
    text: str


@dataclass(frozen=True)
class _Picture:
    identity: str
    size: int
    row: dict[str, Any]


@dataclass(frozen=True)
class Making:
    """How rows become pictures.

    threads: that decode, in a process of which the job has only one; shares: of connections to hosts, hashable.
    """

    columns: Columns
    limits: Limits
    policy: FetchPolicy
    threads: int = 1
    shares: Shares | None = None


def write_rows(dataset: Dataset, shard: str, listed: Sequence[ListedRow], making: Making, shard_recipe: str) -> None:
    """Fetch the pictures of some rows and write them as one shard; of equal pictures the first one stays."""
    columns = making.columns
    accepted: dict[str, dict[str, Any]] = {}
    seen: list[dict[str, Any]] = []
    for one, result in zip(listed, _fetch(listed, making), strict=True):
        described = _describe(one.row, columns)
        name = storable(public_form(_address(one.row, columns)) or f"{one.file}, row {one.place + 1}")
        state = {
            "name": name,
            "file": one.file,
            "place": one.place,
            "size": result.size,
            "said": digest_json(described.columns),
        }
        if isinstance(result, _Picture):
            state["id"] = result.identity
            if result.identity in accepted:
                result = Failure(same_bytes(accepted[result.identity]["source"]), result.size)
        if isinstance(result, Failure):
            state["reason"] = storable(result.reason)
        else:
            accepted[result.identity] = {**result.row, "source": name, **described.columns}
        seen.append({**state, "taken": isinstance(result, _Picture)})
    images = pa.Table.from_pylist(list(accepted.values()), IMAGE_SCHEMA)
    table = pa.Table.from_pylist(seen, ROW_SCHEMA)
    write_images(dataset, shard, images, rejected_of(table), table, shard_recipe)


def rejected_of(seen: pa.Table) -> pa.Table:
    """The rows of rejected/ of a shard (ROW_SCHEMA)."""
    rows = seen.filter(pc.invert(seen["taken"]))
    return pa.table({"source": rows["name"], "reason": rows["reason"], "size": rows["size"]}, REJECTED_SCHEMA)


def _fetch(listed: Sequence[ListedRow], making: Making) -> list[_Picture | Failure]:
    """The picture of each row, or why there is none."""
    columns, limits = making.columns, making.limits

    def take(index: int, raw: bytes) -> _Picture | Failure:
        try:
            image = normalize(raw, limits.max_pixels, limits.min_side)
        except Rejected as error:
            return Failure(str(error), len(raw))
        except Exception as error:  # nothing that a server sends may end the job
            return Failure(f"cannot be decoded ({type(error).__name__}: {one_line(error)})", len(raw))
        identity = image_id(raw)
        row = {"id": identity, "image": image.encoded, "width": image.width, "height": image.height}
        return _Picture(identity, len(raw), row)

    urls = {index: url for index, one in enumerate(listed) if (url := _address(one.row, columns))}
    fetched = iter(_fetcher(making.policy, making.shares).fetch_all(list(urls.values()), take, making.threads))
    return [next(fetched) if index in urls else Failure(_no_address(one.row)) for index, one in enumerate(listed)]


@lru_cache(maxsize=1)
def _fetcher(policy: FetchPolicy, shares: Shares | None) -> Fetcher:
    """The fetcher of this process, which remembers hosts that do not answer."""
    return Fetcher(policy, shares)


def reject_rows(dataset: Dataset, shard: str, reasons: Mapping[str, str]) -> int:
    """Move rows of a shard to its rejected ones; how many are left. reasons: by id.

    The recipe stays, so that a rerun knows the shard. What was interrupted is found again, since the list of rows seen
    is written last, and comes to the same.
    """
    shard_recipe = dataset.footer(IMAGES, shard).recipe
    images = dataset.read(IMAGES, shard)
    images = images.filter(pc.invert(pc.is_in(images["id"], value_set=pa.array(list(reasons), pa.string()))))
    seen = read_seen(dataset, shard).to_pylist()
    for state in seen:
        if state["taken"] and state["id"] in reasons:
            state |= {"taken": False, "reason": reasons[state["id"]]}
    table = pa.Table.from_pylist(seen, ROW_SCHEMA)
    write_pictures(dataset, shard, images, shard_recipe)
    write_rejected(dataset, shard, table, shard_recipe)
    return int(images.num_rows)


def forget_failed(dataset: Dataset, shard: str) -> None:
    """Remove the rows that were tried again elsewhere from those that a shard rejected."""
    seen = read_seen(dataset, shard)
    if "place" in seen.column_names:
        keep = [reason is None or not is_transient(reason) for reason in seen["reason"].to_pylist()]
        write_rejected(dataset, shard, seen.filter(pa.array(keep, pa.bool_())), dataset.footer(IMAGES, shard).recipe)


def write_rejected(dataset: Dataset, shard: str, seen: pa.Table, shard_recipe: str) -> None:
    """Write what of a shard was rejected and, last, all rows seen."""
    rejected = rejected_of(seen)
    write_shard(dataset.store, REJECTED, shard, rejected, [rejected.num_rows], shard_recipe)
    write_seen(dataset, shard, seen, shard_recipe)


def _address(row: Row, columns: Columns) -> str:
    return "" if isinstance(row, BadRow) else str(row.get(columns.url) or "").strip()


def _no_address(row: Row) -> str:
    return row.reason if isinstance(row, BadRow) else "no address in this row"


def _describe(row: Row, columns: Columns) -> Described:
    """What a row of a list says of its picture."""
    facts = {} if isinstance(row, BadRow) else row
    plain = {name: plain_value(value) for name, value in facts.items() if name != columns.url}
    return describe(plain, Naming(text=columns.text))
