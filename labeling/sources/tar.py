"""Tar archives, also compressed: pictures, and beside them the captions and JSON of WebDataset and img2dataset.

A plain archive is read by offsets, from disk or S3, in few large requests; a compressed one as a stream, from its
beginning. Nothing is unpacked, so a member's name can lead nowhere. As in unpacking, the last member of a name counts.
"""

from __future__ import annotations

import io
import lzma
import tarfile
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import IO, Any, cast

import pyarrow as pa

from labeling.dataset import Entry, LocalStore, Store
from labeling.sources.captions import pair, read_beside
from labeling.sources.items import Contents, Item, Reading, Trouble, items_table, printable, trouble_of
from model.inputs import InputError, one_line

COMPRESSED = {".gz": "gzip", ".tgz": "gzip", ".bz2": "bz2", ".tbz2": "bz2", ".xz": "xz", ".txz": "xz"} | {
    ".zst": "zstd",
    ".tzst": "zstd",
}
_SIGNS = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"(\xb5/\xfd": "zstd"}  # how files begin
SUFFIXES = (".tar", ".tgz", ".tbz2", ".txz", ".tzst", ".tar.gz", ".tar.bz2", ".tar.xz", ".tar.zst")
MAX_MEMBER = 1 << 30  # bytes; nothing larger is a picture
_BLOCK = 32 << 20  # bytes of one request
_GAP = 1 << 20  # bytes between members that are read rather than asked for around

_DAMAGE = (tarfile.TarError, EOFError, OSError, lzma.LZMAError, pa.ArrowException, OverflowError)

Span = tuple[str, int, int]  # name, offset and size of a member


class TarArchive:
    """A tar archive; files whose names begin with a dot are left out."""

    def contents(self, store: Store, file: str, entry: Entry) -> Contents:
        troubles: list[Trouble] = []
        codec = codec_of(file)
        try:
            try:
                members, damage = _walk_through(store, file, codec, troubles)
            except _DAMAGE:
                codec = _codec_within(
                    store, file
                )  # downloads lose or get a suffix, and programs unpack them all the same
                if codec == codec_of(file):
                    raise
                members, damage = _walk_through(store, file, codec, troubles)
        except (*_DAMAGE, ValueError) as error:
            raise InputError(f"{store.uri}/{file} cannot be read ({one_line(error)}); is all of it there?") from None
        if damage:
            troubles.append(Trouble(printable(file), entry.size, damage))
        names = list(members)
        pairs, used = pair(names)

        def beside(index: int) -> Any:
            spans = [(printable(names[one]), *members[names[one]]) for one in pairs.get(index, ())]
            return {"codec": codec, "spans": spans} if codec != codec_of(file) else spans or None

        return Contents(
            items_table(
                {
                    "name": f"{file}/{name}",
                    "size": members[name][1],
                    "file": file,
                    "place": members[name][0],
                    "together": 0 if codec else None,
                    "beside": beside(index),
                }
                for index, name in enumerate(names)
                if index not in used
            ),
            troubles,
        )

    def read(self, store: Store, items: Sequence[Item]) -> Iterator[Reading]:
        waiting = sorted(items, key=lambda item: item.place or 0)
        spans = {id(item): [("", item.place or 0, item.size), *_spans_beside(item)] for item in waiting}
        file, beside = items[0].file, items[0].beside
        codec = beside["codec"] if isinstance(beside, dict) else codec_of(file)
        wanted = sorted(span[1:] for one in spans.values() for span in one)
        try:
            opened: Any = _Stream(store, file, codec, wanted) if codec else _Ranges(store, file, wanted)
        except _DAMAGE as error:
            for item in waiting:
                yield Reading(item, reason=f"cannot be read from its archive ({trouble_of(error)})")
            return
        with opened as ranges:
            for item in waiting:
                try:
                    raw, *beside = [ranges.read(offset, size) for _, offset, size in spans[id(item)]]
                except _DAMAGE as error:
                    yield Reading(item, reason=f"cannot be read from its archive ({trouble_of(error)})")
                    continue
                facts = read_beside((span[0], one) for span, one in zip(spans[id(item)][1:], beside, strict=True))
                cut = len(raw) < item.size
                yield Reading(item, raw, facts, "cut off: the archive ends before it does" if cut else "")


def codec_of(file: str) -> str | None:
    """The compression of an archive by its name, None of a plain one."""
    return COMPRESSED.get("." + file.lower().rpartition(".")[2])


def _spans_beside(item: Item) -> list[Span]:
    """Where the files that say something of an item are."""
    spans = item.beside["spans"] if isinstance(item.beside, dict) else item.beside
    return [cast(Span, tuple(span)) for span in spans or ()]


def _codec_within(store: Store, file: str) -> str | None:
    """The compression of an archive by its first bytes."""
    with store.open(file) as opened:
        start = bytes(opened.read(8))
    return next((codec for sign, codec in _SIGNS.items() if start.startswith(sign)), None)


def _walk_through(
    store: Store, file: str, codec: str | None, troubles: list[Trouble]
) -> tuple[dict[str, tuple[int, int]], str]:
    with _opened(store, file, codec) as stream:
        return _walk(stream, file, troubles)


def _walk(stream: IO[bytes], file: str, troubles: list[Trouble]) -> tuple[dict[str, tuple[int, int]], str]:
    """Members by name → (offset, size), and what is wrong with the archive, "" if nothing is."""
    members: dict[str, tuple[int, int]] = {}
    with tarfile.open(fileobj=stream, mode="r:" if stream.seekable() else "r|") as archive:
        damage = ""
        try:
            for member in archive:
                archive.members = []  # type: ignore[attr-defined]  # it keeps a kilobyte of each
                if not 0 <= member.size < 1 << 62 or archive.offset <= member.offset:
                    raise tarfile.ReadError("a size that no file has")  # after a negative one itself would come next
                _take(member, members, file, troubles)
        except (*_DAMAGE, ValueError) as error:
            if not members or isinstance(error, InputError):
                raise
            damage = f"damaged after {len(members)} members ({one_line(error)}); those before are taken"
        if not damage and stream.seekable():
            # tarfile takes a header that makes no sense for the end.
            stream.seek(archive.offset)
            block = stream.read(tarfile.BLOCKSIZE)
            if block.strip(b"\0") and members:
                damage = f"damaged at byte {archive.offset}, after {len(members)} members; those before are taken"
    return members, damage


def _take(member: tarfile.TarInfo, members: dict[str, tuple[int, int]], file: str, troubles: list[Trouble]) -> None:
    name = member.name
    if name.rpartition("/")[2].startswith("."):
        return
    if member.islnk():
        if member.linkname in members:
            members[name] = members[member.linkname]
    elif member.issparse() or (member.isfile() and member.size > MAX_MEMBER):
        reason = "sparse file in an archive" if member.issparse() else f"larger than {MAX_MEMBER >> 20} MiB"
        troubles.append(Trouble(printable(f"{file}/{name}"), member.size, reason))
    elif member.isfile():
        members.pop(name, None)  # the later one takes its own place
        members[name] = (member.offset_data, member.size)


def _opened(store: Store, file: str, codec: str | None) -> Any:
    """The archive's uncompressed bytes: seekable with a large buffer, or a stream."""
    opened = store.open(file)
    if codec == "xz":
        return lzma.open(opened)
    if codec:
        return pa.CompressedInputStream(opened, codec)
    return io.BufferedReader(opened, 1 << 16 if isinstance(store, LocalStore) else 8 << 20)


class _Ranges:
    """Members of a plain archive; those near each other come in one request. spans: sorted, of all reads."""

    def __init__(self, store: Store, file: str, spans: Sequence[tuple[int, int]]) -> None:
        self._file = store.open(file)
        self._blocks = merge_spans(spans) if not isinstance(store, LocalStore) else []
        self._start, self._bytes = 0, b""

    def __enter__(self) -> _Ranges:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        if not self._start <= offset <= offset + size <= self._start + len(self._bytes):
            for start, end in self._blocks:
                if start <= offset and offset + size <= end:
                    self._start, self._bytes = start, self._read(start, end - start)
                    break
            else:
                return self._read(offset, size)
        return self._bytes[offset - self._start : offset - self._start + size]

    def _read(self, offset: int, size: int) -> bytes:
        self._file.seek(offset)
        return cast(bytes, self._file.read(size))


class _Stream:
    """Members of a compressed archive, in the order of their offsets.

    spans: sorted, of all reads; what a span holds is kept until its last read.
    """

    def __init__(self, store: Store, file: str, codec: str, spans: Sequence[tuple[int, int]]) -> None:
        self._file = _opened(store, file, codec)
        self._uses = Counter(spans)
        self._spans = deque(self._uses)
        self._at = 0
        self._damage: Exception | None = None
        self._read: dict[tuple[int, int], bytes] = {}

    def __enter__(self) -> _Stream:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, offset: int, size: int) -> bytes:
        while (offset, size) not in self._read:
            if self._damage:  # after which nothing is where it was
                raise self._damage
            try:
                self._read_next()
            except _DAMAGE as error:
                self._damage = error
                raise
        self._uses[offset, size] -= 1
        return self._read[offset, size] if self._uses[offset, size] else self._read.pop((offset, size))

    def _read_next(self) -> None:
        start, length = self._spans.popleft()
        while self._at < start:
            skipped = len(self._file.read(min(start - self._at, 1 << 20)))
            if not skipped:
                raise EOFError("the archive ends before")
            self._at += skipped
        raw = b""
        while len(raw) < length and (part := self._file.read(length - len(raw))):
            raw += part
        self._at += len(raw)
        self._read[start, length] = raw


def merge_spans(spans: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sorted (offset, size) → (start, end) of few requests that cover them, each of at most 32 MiB if it can be."""
    blocks: list[tuple[int, int]] = []
    for offset, size in spans:
        if blocks and offset - blocks[-1][1] <= _GAP and offset + size - blocks[-1][0] <= _BLOCK:
            blocks[-1] = (blocks[-1][0], max(blocks[-1][1], offset + size))
        else:
            blocks.append((offset, offset + size))
    return blocks
