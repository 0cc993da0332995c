"""Meshes of a source: local copies with the files that they name, and the forms that cannot be rendered.

A mesh that comes from Windows names its textures with backslashes, or in other letters than the files have.
"""

from __future__ import annotations

import json
import re
import struct
import urllib.parse
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from labeling.sources.scenes.files import SceneFiles, folder_of, joined
from model.inputs import InputError

MESHES = (".glb", ".gltf", ".obj", ".ply", ".stl", ".off")
_MOST_NAMED = 1 << 10  # files that a mesh may name
_MAP = re.compile(rb"^\s*(map_\w+|bump|disp|decal|refl|norm)\s+(.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_LIBRARY = re.compile(rb"^\s*mtllib\s+(.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_PLY_TEXTURE = re.compile(rb"^comment\s+TextureFile\s+(.*?)\s*$", re.IGNORECASE | re.MULTILINE)
_NOT_READ = {
    "KHR_draco_mesh_compression": "compressed by Draco",
    "EXT_meshopt_compression": "compressed by meshopt",
    "KHR_texture_basisu": "its textures are of Basis Universal",
}


def is_mesh(name: str) -> bool:
    """Whether a file is a mesh, by its name."""
    return PurePosixPath(name).suffix.lower() in MESHES


def copy_mesh(files: SceneFiles, name: str, raw: bytes, target: Path) -> Path:
    """Write a mesh and the files that it names below a local folder; where it is.

    Raises InputError for a form that cannot be rendered.
    """
    suffix = PurePosixPath(name).suffix.lower()
    mesh = _LocalCopy(files, folder_of(name), target)
    if suffix == ".obj":
        raw = mesh.with_materials(raw)
    elif suffix == ".ply":
        header = raw[: raw.find(b"end_header")]
        for found in list(_PLY_TEXTURE.finditer(header))[:_MOST_NAMED]:
            mesh.copy(_text(found[1]))
    elif suffix in (".gltf", ".glb"):
        for uri in _uris(raw, suffix):
            mesh.copy(uri, urllib.parse.unquote(uri))
    path = target / PurePosixPath(name).name
    path.write_bytes(raw)
    return path


class _LocalCopy:
    """What a mesh names, written beside it under the names that it uses."""

    def __init__(self, files: SceneFiles, folder: str, target: Path) -> None:
        self._files, self._folder, self._target = files, folder, target

    def copy(self, name: str, spelled: str | None = None) -> str | None:
        """Copy a file; the name by which it lies there, None where there is none such. spelled: as it is looked for."""
        for wanted in dict.fromkeys([spelled or name, PurePosixPath(name.replace("\\", "/")).name]):
            try:
                path = self._files.spelled(joined(self._folder, wanted))
            except InputError:
                continue
            if path is not None:
                local = re.sub(r"[^\w./-]", "_", name.replace("\\", "/")) if spelled is None else spelled
                place = self._target / local
                if not place.resolve().is_relative_to(self._target.resolve()):
                    local = PurePosixPath(path).name
                    place = self._target / local
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(self._files.read(path))
                return local
        return None

    def with_materials(self, raw: bytes) -> bytes:
        """An OBJ that names its libraries of materials as they are called here; those and their textures are copied."""

        def library(found: re.Match[bytes]) -> bytes:
            local = self.copy(_text(found[1]))
            if local is None:
                return b""
            path = self._target / local
            path.write_bytes(_MAP.sub(texture, path.read_bytes()))
            return b"mtllib " + local.encode()

        def texture(found: re.Match[bytes]) -> bytes:
            # Options come before the name, which may have spaces itself.
            words = _text(found[2]).split()
            for first in range(len(words)):
                local = self.copy(" ".join(words[first:]))
                if local is not None:
                    return found[1] + b" " + local.encode()
            return b""

        return _LIBRARY.sub(library, raw)


def _uris(raw: bytes, suffix: str) -> Iterator[str]:
    """Files that a glTF names. Raises InputError for an extension without which nothing of it is seen."""
    try:
        if suffix == ".glb" and raw[:4] == b"glTF":
            raw = raw[20 : 20 + struct.unpack_from("<I", raw, 12)[0]]
        scene = json.loads(raw)
        required = [*scene.get("extensionsRequired", ()), *_of_primitives(scene)]
        uris = [part.get("uri") for key in ("buffers", "images") for part in scene.get(key, ())]
    except (ValueError, struct.error, AttributeError, TypeError, KeyError, RecursionError):
        return  # which reading the mesh tells
    for extension, what in _NOT_READ.items():
        if extension in required:
            raise InputError(f"{what} ({extension}), which is not read; export it without")
    named = (uri for uri in uris if isinstance(uri, str) and not uri.startswith("data:"))
    yield from list(dict.fromkeys(named))[:_MOST_NAMED]


def _of_primitives(scene: dict[str, list[dict[str, list[dict[str, dict[str, object]]]]]]) -> Iterator[str]:
    """Extensions of the primitives, which some programs do not say to be required."""
    for mesh in scene.get("meshes", ()):
        for primitive in mesh.get("primitives", ()):
            yield from primitive.get("extensions", {})


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace").strip().strip('"')
