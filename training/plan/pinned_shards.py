"""The shards of a source as a run uses them, in columns: their content, and which of their rows serve which task.

A run may have 10⁵ shards. In columns they are shared by all processes of a machine: nobody unpacks a copy.

S shards, G row groups of all of them together, R rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class ShardPin:
    """One shard as the run uses it.

    content: of every group used. eligible: Stream.key → hex bits over the rows, None where all are.
    views: views of each row of a dataset of sets, else empty.
    """

    name: str
    row_groups: list[int]
    content: dict[str, str]
    eligible: dict[str, str | None]
    views: list[int] = field(default_factory=list)

    def mask(self, key: str) -> NDArray[np.bool_]:
        """(rows,) which rows the stream of that key may use."""
        rows, bits = sum(self.row_groups), self.eligible[key]
        if bits is None:
            return np.ones(rows, bool)
        return np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8), count=rows).view(bool)


@dataclass(frozen=True, eq=False)
class Eligible:
    """The rows that a stream may use. bits: of each shard's rows in turn, from a whole byte on; counts: (G,)."""

    bits: NDArray[np.uint8]
    counts: NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Shards(Sequence[ShardPin]):
    """The pins of all shards of a source, in columns.

    names: (S,) strings; content: group → (S,) strings; group_starts: (S + 1,) row groups before each shard;
    group_rows: (G,) rows of each row group; row_starts: (S + 1,) rows before each shard; eligible: Stream.key → rows,
    None where all are; views: (R,) of a dataset of sets, else (0,).
    """

    names: pa.Array
    content: dict[str, pa.Array]
    group_starts: NDArray[np.int64]
    group_rows: NDArray[np.int32]
    row_starts: NDArray[np.int64]
    eligible: dict[str, Eligible | None]
    views: NDArray[np.uint16]

    def __post_init__(self) -> None:
        rows = np.diff(self.row_starts)
        object.__setattr__(self, "_byte_starts", np.concatenate([[0], np.cumsum(-(-rows // 8))]))

    @classmethod
    def of(cls, pins: Iterable[ShardPin]) -> Shards:
        """Put into columns what is given one by one."""
        import pyarrow as pa

        names: list[str] = []
        content: dict[str, list[str]] = {}
        groups: list[NDArray[np.int32]] = []
        bits: dict[str, list[NDArray[np.uint8]]] = {}
        counts: dict[str, list[NDArray[np.int32]]] = {}
        whole: dict[str, bool] = {}
        views: list[NDArray[np.uint16]] = []
        for pin in pins:
            names.append(pin.name)
            groups.append(np.array(pin.row_groups, np.int32))
            views.append(np.array(pin.views, np.uint16))
            for group, digest in pin.content.items():
                content.setdefault(group, []).append(digest)
            for key, text in pin.eligible.items():
                whole[key] = whole.get(key, True) and text is None
                if text is None:
                    bits.setdefault(key, []).append(np.packbits(np.ones(groups[-1].sum(), bool)))
                    counts.setdefault(key, []).append(groups[-1])
                else:
                    packed = np.frombuffer(bytes.fromhex(text), np.uint8)
                    mask = np.unpackbits(packed, count=int(groups[-1].sum())).view(bool)
                    bits.setdefault(key, []).append(packed)
                    counts.setdefault(key, []).append(_counts(mask, groups[-1]))
        sizes = np.array([len(each) for each in groups], np.int64)
        rows = np.array([each.sum() for each in groups], np.int64)
        return cls(
            names=pa.array(names, pa.string()),
            content={group: pa.array(digests, pa.string()) for group, digests in content.items()},
            group_starts=np.concatenate([[0], np.cumsum(sizes)]),
            group_rows=_joined(groups, np.int32),
            row_starts=np.concatenate([[0], np.cumsum(rows)]),
            eligible={
                key: None if whole[key] else Eligible(_joined(bits[key], np.uint8), _joined(counts[key], np.int32))
                for key in bits
            },
            views=_joined(views, np.uint16),
        )

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, number: Any) -> Any:
        """One pin, made anew: for many shards ask the columns."""
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        start, end = self.row_starts[number : number + 2]
        return ShardPin(
            self.names[number].as_py(),
            self.row_groups(number).tolist(),
            {group: digests[number].as_py() for group, digests in self.content.items()},
            {key: bits_of(self.mask(key, number)) for key in self.eligible},
            self.views[start:end].tolist(),
        )

    def __iter__(self) -> Iterator[ShardPin]:
        return (self[number] for number in range(len(self)))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Shards) and len(self) == len(other) and all(map(ShardPin.__eq__, self, other))

    def name(self, number: int) -> str:
        """The name of a shard."""
        return self.names[number].as_py()

    def row_groups(self, number: int) -> NDArray[np.int32]:
        """The rows of each row group of a shard."""
        return self.group_rows[self.group_starts[number] : self.group_starts[number + 1]]

    def rows(self, number: int) -> int:
        """How many rows a shard has."""
        return int(self.row_starts[number + 1] - self.row_starts[number])

    def row_in_shard(self, number: int, row_group: int, row: int) -> int:
        """Counted from the shard's first row, a row of one of its row groups."""
        return int(self.row_groups(number)[:row_group].sum(dtype=np.int64)) + row

    def counts(self, key: str) -> NDArray[np.int32]:
        """(G,) how many rows of each row group the stream of that key may use."""
        eligible = self.eligible[key]
        return self.group_rows if eligible is None else eligible.counts

    def mask(self, key: str, number: int) -> NDArray[np.bool_]:
        """Which rows of a shard the stream of that key may use."""
        rows, eligible = self.rows(number), self.eligible[key]
        if eligible is None:
            return np.ones(rows, bool)
        start = self._byte_starts[number]  # type: ignore[attr-defined]
        return np.unpackbits(eligible.bits[start : start + -(-rows // 8)], count=rows).view(bool)

    def kept(self, bits: Sequence[NDArray[np.uint8]]) -> Shards:
        """Leave out the rows whose bits are not set. Each shard's bits begin at a whole byte."""
        eligible: dict[str, Eligible | None] = {}
        for key in self.eligible:
            masks, counts = [], []
            for number, packed in enumerate(bits):
                mask = self.mask(key, number) & np.unpackbits(packed, count=self.rows(number)).view(bool)
                masks.append(np.packbits(mask))
                counts.append(_counts(mask, self.row_groups(number)))
            eligible[key] = Eligible(_joined(masks, np.uint8), _joined(counts, np.int32))
        return replace(self, eligible=eligible)


def bits_of(mask: NDArray[np.bool_]) -> str | None:
    """(rows,) as ShardPin keeps it."""
    return None if mask.all() else np.packbits(mask).tobytes().hex()


def _counts(mask: NDArray[np.bool_], row_groups: NDArray[np.int32]) -> NDArray[np.int32]:
    """(row groups,) how many rows of each the mask has; one may have no rows at all."""
    before = np.concatenate([[0], np.cumsum(mask, dtype=np.int32)])
    return np.diff(before[np.concatenate([[0], np.cumsum(row_groups)])])


def _joined(parts: Sequence[NDArray[Any]], kind: type[np.generic]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0, kind)
