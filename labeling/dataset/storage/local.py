"""A folder of this machine as a store."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from labeling.dataset.storage.errors import explained
from labeling.dataset.storage.store import Entry, Trouble

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

_MOST_PARTS = 1024  # that a system call takes


class LocalStore:
    """Files below a folder of this machine (or of a disk that all machines share)."""

    parallel = 8
    gap = 0

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.root = Path(uri)

    def subfolder(self, name: str) -> LocalStore:
        return LocalStore(f"{self.uri}/{name}")

    def files(self, prefix: str = "", begins: str = "") -> dict[str, Entry]:
        return dict(sorted(self.listing(prefix, begins)))

    def listing(self, prefix: str = "", begins: str = "") -> Iterator[tuple[str, Entry]]:
        folder = self.root / prefix
        for item in os.scandir(folder) if folder.is_dir() else ():
            if item.name.startswith(begins) and not item.name.startswith("."):
                try:
                    if item.is_file():
                        yield item.name, _entry(item.stat())
                except FileNotFoundError:  # deleted since it was listed
                    continue

    def folders(self, prefix: str = "") -> list[str]:
        folder = self.root / prefix
        return sorted(item.name for item in os.scandir(folder) if item.is_dir()) if folder.is_dir() else []

    def walk(self, prefix: str = "") -> dict[str, Entry]:
        entries = {}
        base = self.root / prefix
        for folder, subfolders, names in os.walk(base):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in names:
                path = Path(folder, name)
                if not name.startswith(".") and path.is_file():
                    stat = path.stat()
                    entries[path.relative_to(base).as_posix()] = _entry(stat)
        return dict(sorted(entries.items()))

    def scan(self, prefix: str = "", trouble: Trouble | None = None) -> Iterator[tuple[str, Entry]]:
        base = self.root / prefix
        inside = os.path.realpath(base)
        followed: set[str] = set()
        pending = [""]
        while pending:
            relative = pending.pop()
            try:
                with os.scandir(base / relative) as listed:
                    items = sorted(listed, key=lambda item: item.name, reverse=True)
            except OSError as error:
                if trouble is not None and not isinstance(error, FileNotFoundError | NotADirectoryError):
                    trouble(relative or ".", f"folder cannot be read ({error.strerror})")
                continue
            for item in reversed(items):
                name = f"{relative}/{item.name}" if relative else item.name
                if item.name.startswith("."):
                    continue
                if item.is_file():
                    with suppress(FileNotFoundError):  # deleted since it was listed
                        yield name, _entry(item.stat())
                elif item.is_symlink() and not os.path.exists(item):
                    if trouble is not None:
                        trouble(name, "link to a file that is not there")
                elif item.is_symlink():
                    # What lies below the root is found there; what lies outside is followed once, so no circle is.
                    target = os.path.realpath(item)
                    around = f"{target}/".startswith(f"{inside}/") or f"{inside}/".startswith(f"{target}/")
                    if item.is_dir() and not around and target not in followed:
                        followed.add(target)
                        pending.append(name)
            pending += [
                f"{relative}/{item.name}" if relative else item.name
                for item in items
                if item.is_dir(follow_symlinks=False) and not item.name.startswith(".")
            ]

    def entry(self, name: str) -> Entry | None:
        try:
            stat = (self.root / name).stat()
        except OSError:
            return None
        return _entry(stat) if (self.root / name).is_file() else None

    def exists(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        try:
            return (self.root / name).read_bytes()
        except NotADirectoryError:
            raise FileNotFoundError(str(self.root / name)) from None

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        with (self.root / name).open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def read_tail(self, name: str, size: int, listed: int | None = None) -> tuple[bytes, Entry]:
        with (self.root / name).open("rb", buffering=0) as file:
            stat = os.fstat(file.fileno())
            file.seek(max(0, stat.st_size - size))
            return file.read(size), _entry(stat)

    def put(self, name: str, content: bytes) -> None:
        with self._written(name, content) as path:
            self.put_file(name, path)

    def put_new(self, name: str, content: bytes) -> bool:
        with self._written(name, content) as path, explained(str(self.root / name)):
            try:
                os.link(path, self.root / name)
            except FileExistsError:
                return False
            except OSError:  # a disk without links
                if self.exists(name):
                    return False
                os.replace(path, self.root / name)
        return True

    @contextmanager
    def _written(self, name: str, content: bytes) -> Iterator[Path]:
        """A temporary file with the content: unlike a shard, such a file may have several writers at a time."""
        path = self.scratch(name)
        path = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.tmp")
        try:
            with explained(str(self.root / name)):
                try:
                    path.write_bytes(content)
                except FileNotFoundError:  # the folder was empty, and another job that ended took it away
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(content)
            yield path
        finally:
            path.unlink(missing_ok=True)  # left behind where the disk is full

    def put_file(self, name: str, path: Path) -> Entry:
        target = self.root / name
        with explained(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            if path.parent != target.parent:  # perhaps on another disk, and a rename must stay on one
                path = Path(shutil.copyfile(path, self.scratch(name)))
            os.replace(path, target)
            return _entry(target.stat())

    def put_stream(self, name: str, parts: Iterable[bytes | memoryview], size: int) -> None:
        path = self.scratch(name)
        try:
            with explained(str(self.root / name)), path.open("wb") as file:
                for part in parts:
                    file.write(part)
            self.put_file(name, path)
        finally:
            path.unlink(missing_ok=True)  # left behind where the disk is full

    def scratch(self, name: str) -> Path:
        # The name is fixed, so that a resumed writer overwrites what a killed one left.
        target = self.root / name
        with explained(str(self.root)):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f".{target.name}.tmp")

    def discard(self, path: Path) -> None:
        path.unlink(missing_ok=True)

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        shutil.rmtree(self.root / prefix, ignore_errors=True)

    @contextmanager
    def without_empty_folders(self, names: Iterable[str]) -> Iterator[None]:
        made = [
            folder
            for name in names
            for folder in ((self.root / name).absolute(), *(self.root / name).absolute().parents)
            if not folder.exists()
        ]
        try:
            yield
        finally:
            for folder in sorted(set(made), key=lambda folder: -len(folder.parts)):
                with suppress(OSError):  # it was not made, or holds something
                    folder.rmdir()

    def open(self, name: str) -> pa.NativeFile:
        import pyarrow as pa

        return pa.OSFile(os.fsencode(self.root / name), "rb")  # a name may not be UTF-8

    def ranges(self, name: str) -> _Ranges:
        return _Ranges(self.root / name)

    def arrow(self) -> tuple[fs.FileSystem, str]:
        from pyarrow import fs

        return fs.LocalFileSystem(), str(self.root)

    def explained(self, name: str) -> AbstractContextManager[None]:
        return nullcontext()


def _entry(stat: os.stat_result) -> Entry:
    return Entry(stat.st_size, str(stat.st_mtime_ns))


class _Ranges:
    """An open file of this machine."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb", buffering=0)  # it is closed when nobody reads from it any more

    def read_into(self, offset: int, parts: Sequence[Any], size: int) -> bool:
        rest = parts[_MOST_PARTS:]
        read = os.preadv(self._file.fileno(), parts[:_MOST_PARTS] if rest else parts, offset)
        if read == size:
            return True
        # The system may read less than it is asked for: at most 2 GiB, or to the end of what is at hand.
        left = [memoryview(part).cast("B") for part in parts if memoryview(part).nbytes]
        done = read
        while read:
            while left and read >= len(left[0]):
                read -= len(left.pop(0))
            if not left:
                break
            left[0] = left[0][read:]
            read = os.preadv(self._file.fileno(), left[:_MOST_PARTS], offset + done)
            done += read
        return done == size

    def read(self, offset: int, size: int) -> bytearray | None:
        content = bytearray(size)
        return content if self.read_into(offset, [content], size) else None

    def read_tail(self, size: int) -> tuple[bytes, Entry]:
        stat = os.fstat(self._file.fileno())
        start = max(0, stat.st_size - size)
        return os.pread(self._file.fileno(), stat.st_size - start, start), _entry(stat)
