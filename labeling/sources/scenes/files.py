"""Files of a source by name, and pictures that a description names in a way of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath

from labeling.dataset import Store
from labeling.sources.normalize import EncodedImage, Rejected, normalize
from model.constants import MAX_PIXELS, MIN_SIDE
from model.inputs import InputError, WorkFailed

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".avif", ".jxl")
_LEFT_OUT = (".png", ".jpg", ".jpeg", ".JPG", ".PNG", ".webp")
_SMALLER = ("_2", "_4", "_8")  # of folders with the same pictures at 1/2 … of the size, the largest first


def is_picture(name: str) -> bool:
    """Whether a file is a picture, by its name."""
    return PurePosixPath(name).suffix.lower() in PICTURES


def folder_of(name: str) -> str:
    """The folder that a file lies in, "" for the source's own."""
    parent = str(PurePosixPath(name).parent)
    return "" if parent == "." else parent


def joined(folder: str, name: str) -> str:
    """The path of a file named relative to a folder, as programs on Windows write it too.

    Raises InputError for one outside of the source.
    """
    parts: list[str] = [*PurePosixPath(folder).parts]
    path = name.replace("\\", "/")
    if path.startswith("/") or re.match(r"[A-Za-z]:/", path):
        raise InputError(f"{name!r} is an address of another machine; name it relative to the scene's folder")
    for part in PurePosixPath(path).parts:
        if part == "..":
            if not parts:
                raise InputError(f"{name!r} lies outside the source folder")
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


class SceneFiles:
    """The files that scenes are read from: a folder is listed once, however many pictures of it are looked for."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._folders: dict[str, set[str]] = {}

    def read(self, name: str) -> bytes:
        """The whole file. Raises InputError where it is not there."""
        try:
            with self._answering():
                return self.store.read(name)
        except FileNotFoundError:
            raise InputError(f"{name!r} is not there") from None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """A server that refuses says nothing of a scene: WorkFailed, where a scene's own fault is an InputError."""
        try:
            yield
        except InputError as error:
            raise (WorkFailed(str(error)) if self.store.gap else error) from None

    def exists(self, path: str) -> bool:
        """Whether a file is there."""
        folder = folder_of(path)
        if folder not in self._folders:
            with self._answering():
                self._folders[folder] = set(self.store.files(folder))
        return PurePosixPath(path).name in self._folders[folder]

    def spelled(self, path: str) -> str | None:
        """The file of that path, or the one that differs from it in capital letters alone; None where there is none."""
        if self.exists(path):
            return path
        folder, name = folder_of(path), PurePosixPath(path).name.lower()
        found = next((one for one in sorted(self._folders[folder]) if one.lower() == name), None)
        return None if found is None else joined(folder, found)

    def find_picture(self, folders: Sequence[str], name: str) -> str:
        """The path of a picture that a description names relative to one of these folders, the first that has it.

        It may lack its extension (Blender), and may be there at a smaller size alone (images_4). Raises InputError.
        """
        outside: InputError | None = None
        for folder in folders:
            try:
                path = joined(folder, name)
            except InputError as error:
                outside = outside or error
                continue
            found = next(filter(self.exists, _spellings(path)), None)
            if found is not None:
                return found
        raise outside or InputError(f"{name!r} is not there")


def _spellings(path: str) -> Iterable[str]:
    yield path
    pure = PurePosixPath(path)
    if pure.suffix.lower() not in PICTURES:
        yield from (path + suffix for suffix in _LEFT_OUT)
    if not re.search(r"_\d+$", pure.parent.name) and pure.parent.name:
        for smaller in _SMALLER:
            folder = pure.parent.with_name(pure.parent.name + smaller)
            yield str(folder / pure.name)
            # Pictures made smaller are often coded anew.
            yield from (str(folder / (pure.stem + suffix)) for suffix in _LEFT_OUT if suffix != pure.suffix)


def read_picture(files: SceneFiles, path: str) -> tuple[bytes, EncodedImage]:
    """The bytes of a picture, and it as datasets store it. Raises InputError, naming it."""
    raw = files.read(path)
    try:
        return raw, normalize(raw, MAX_PIXELS, MIN_SIDE)
    except Rejected as error:
        raise InputError(f"{path!r} is {error}") from None
