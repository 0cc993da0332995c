"""What every store can do: a folder of files with a few whole-or-absent operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

Trouble = Callable[[str, str], None]  # told the name of what cannot be listed, and why


@dataclass(frozen=True, slots=True)
class Entry:
    """A file as a listing shows it: size in bytes, and a tag that changes when its bytes do (ETag or mtime)."""

    size: int
    tag: str


class Ranges(Protocol):
    """A file opened to read ranges of it, from any thread; it stays the file that it was when it was opened."""

    def read_into(self, offset: int, parts: Sequence[Any], size: int) -> bool:
        """Fill the parts, `size` bytes together, one after another from `offset` on; whether there were so many.

        parts: contiguous writable memory.
        """

    def read(self, offset: int, size: int) -> bytes | bytearray | None:
        """`size` bytes from `offset` on, None where there are fewer."""

    def read_tail(self, size: int) -> tuple[bytes, Entry]:
        """The last `size` bytes (all of a smaller file), and the entry of the file."""


class Store(Protocol):
    """A folder of files, named by '/'-separated paths relative to its root."""

    uri: str
    parallel: int  # requests that are worth having under way at a time
    gap: int  # bytes between two ranges that cost less than a second read

    def subfolder(self, name: str) -> Store:
        """The folder of that name as a store, which shares what this one has open."""

    def files(self, prefix: str = "", begins: str = "") -> dict[str, Entry]:
        """Files directly in the folder `prefix` whose names begin so, by base name. An absent folder is empty."""

    def listing(self, prefix: str = "", begins: str = "") -> Iterator[tuple[str, Entry]]:
        """Files as `files` gives them, one after another and in any order."""

    def folders(self, prefix: str = "") -> list[str]:
        """Sub-folders directly in the folder `prefix`, by base name, sorted."""

    def walk(self, prefix: str = "") -> dict[str, Entry]:
        """All files below `prefix`, by path relative to it; names beginning with a dot are left out."""

    def scan(self, prefix: str = "", trouble: Trouble | None = None) -> Iterator[tuple[str, Entry]]:
        """All files below `prefix` as `walk` names them, one by one and in no order, for folders of any size.

        Links to folders outside are followed. trouble: told the name and the reason where something cannot be listed.
        """

    def entry(self, name: str) -> Entry | None:
        """One file as a listing shows it, None where it is not there."""

    def exists(self, name: str) -> bool:
        """Whether the file is there."""

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`."""

    def read_tail(self, name: str, size: int, listed: int | None = None) -> tuple[bytes, Entry]:
        """The last `size` bytes (all of a smaller file), and the entry of the file. Raises FileNotFoundError.

        listed: the size of the file as far as is known; a server may ask for it.
        """

    def put(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all, replacing what was there."""

    def put_new(self, name: str, content: bytes) -> bool:
        """Write a file that is not there yet; False where it is. Of several writers at a time one has True."""

    def put_file(self, name: str, path: Path) -> Entry:
        """Move a finished local file to its final name, whole or not at all; its entry there. On S3 `path` goes."""

    def put_stream(self, name: str, parts: Iterable[bytes | memoryview], size: int) -> None:
        """Write a file of `size` bytes from its parts, whole or not at all, and hold no more than some parts of it."""

    def scratch(self, name: str) -> Path:
        """A local path to write the file `name` to, from which `put_file` is cheapest."""

    def discard(self, path: Path) -> None:
        """Remove what `scratch` made and what is written there; absent is fine."""

    def delete(self, name: str) -> None:
        """Remove a file; absent is fine."""

    def delete_tree(self, prefix: str) -> None:
        """Remove everything below `prefix`."""

    def without_empty_folders(self, names: Iterable[str]) -> AbstractContextManager[None]:
        """Where folders, or those they lie in, are made within it and are empty at its end, they go."""

    def open(self, name: str) -> pa.NativeFile:
        """Random access for pyarrow readers. Raises FileNotFoundError."""

    def ranges(self, name: str) -> Ranges:
        """The file, to read ranges of it. Raises FileNotFoundError."""

    def arrow(self) -> tuple[fs.FileSystem, str]:
        """What pyarrow reads many files by, and the path of this folder in it."""

    def explained(self, name: str) -> AbstractContextManager[None]:
        """Reading from what `open` gave, where S3's refusals become an InputError."""
