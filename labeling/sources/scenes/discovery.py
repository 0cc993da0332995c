"""Which scenes a source has: files that describe cameras, meshes, and folders of photographs."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, Literal

from labeling.dataset import digest_json
from labeling.sources.scenes import co3d, colmap_model, meshes, realestate, transforms
from labeling.sources.scenes.files import SceneFiles, folder_of, is_picture
from labeling.sources.scenes.piles import group_pile
from labeling.sources.source import Source
from model.inputs import InputError

Kind = Literal["mesh", "transforms", "colmap", "co3d", "realestate", "photographs"]
_MODEL_FOLDERS = ("sparse", "colmap", "colmap_sparse", "dense")  # within the folder of a scene


@dataclass(frozen=True)
class SceneSource:
    """A scene to make a set of.

    name: the file that describes it, or of photographs their folder ("." for the source's own); inside: the sequence in
    that file, or the first picture of a group of a pile; pictures: of photographs; size: bytes that the set may have;
    tag: changes when a file of it does; facts: file → what metadata.csv says of it and of the pictures beside it.
    """

    kind: Kind
    name: str
    inside: str = ""
    pictures: tuple[str, ...] = ()
    size: int = 0
    tag: str = ""
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """What it is called in a dataset."""
        return f"{self.name}#{self.inside}" if self.inside else self.name


def kind_of(name: str) -> Kind | None:
    """What a file that stands for a scene is, by its name; None for others."""
    if meshes.is_mesh(name):
        return "mesh"
    if transforms.is_transforms(name):
        return "transforms"
    if colmap_model.is_model(name):
        return "colmap"
    return "co3d" if co3d.is_annotations(name) else None


def find_scenes(source: Source, photographs: bool, pile: bool = False) -> list[SceneSource]:
    """The scenes of a source, sorted by name. photographs: folders of pictures without cameras are scenes, too; pile:
    of those pictures, whatever folder they lie in, each group that shows the same.

    A model of COLMAP, or a folder of pictures, beside or below a file of cameras is of the same scene, and none of its
    own. Raises InputError for annotations of CO3D that cannot be read.
    """
    table, _ = source.files()
    listed = {
        row["name"]: (row["size"] or 0, row["tag"] or "") for row in table.select(["name", "size", "tag"]).to_pylist()
    }
    pictures = _Pictures(filter(is_picture, listed))
    scenes = [SceneSource(kind, name) for name in listed if (kind := kind_of(name))]
    folders = set(pictures.folders)
    scenes += [
        SceneSource("realestate", name)
        for name in listed
        if kind_of(name) is None and realestate.may_be_lines(name, folders)
    ]
    scenes = list(_expanded(source, _without_twins(scenes)))
    if photographs:
        described = {_root(scene) for scene in scenes}
        folders = {folder for folder in pictures.folders if not any(above in described for above in _above(folder))}
        if pile:
            names = [name for folder in folders for name in pictures.of(folder)]
            groups = group_pile(SceneFiles(source.store), sorted(names))
            scenes += [SceneSource("photographs", ".", group[0], tuple(group)) for group in groups]
        else:
            scenes += [SceneSource("photographs", one or ".", pictures=tuple(pictures.of(one))) for one in folders]
    metadata = source.metadata()
    scenes.sort(key=lambda scene: (scene.name, scene.inside))
    return [_listed(scene, listed, pictures, metadata) for scene in scenes]


def has_pictures(source: Source) -> bool:
    """Whether a source has pictures."""
    return any(is_picture(name) for name in source.files()[0]["name"].to_pylist())


def _without_twins(scenes: Sequence[SceneSource]) -> list[SceneSource]:
    """Leave out models of COLMAP that a transforms.json was made of, and of text and binary files the text."""
    described = {folder_of(scene.name) for scene in scenes if scene.kind == "transforms"}
    names = {scene.name for scene in scenes}
    kept = []
    for scene in scenes:
        if scene.kind == "colmap":
            is_double = scene.name.endswith(".txt") and scene.name.removesuffix(".txt") + ".bin" in names
            if is_double or any(above in described for above in _above(folder_of(scene.name))):
                continue
        kept.append(scene)
    return kept


def _expanded(source: Source, scenes: Iterable[SceneSource]) -> Iterable[SceneSource]:
    for scene in scenes:
        if scene.kind != "co3d":
            yield scene
            continue
        try:
            sequences = co3d.sequences_of(source.store, scene.name)
        except InputError:  # which making the set tells
            yield scene
            continue
        for sequence in sequences:
            yield dataclasses.replace(scene, inside=sequence)


def _root(scene: SceneSource) -> str:
    """The folder that all of a scene lies in: pictures in it and below are of that scene."""
    folder = folder_of(scene.name)
    if scene.kind == "colmap":
        path = PurePosixPath(folder)
        while path.name.isdecimal() or path.name in _MODEL_FOLDERS:
            path = path.parent
        return "" if str(path) == "." else str(path)
    return folder


def _above(folder: str) -> list[str]:
    """A folder and those it lies in, up to the source's own."""
    folders = [folder]
    while folders[-1]:
        folders.append(folder_of(folders[-1]))
    return folders


def _listed(
    scene: SceneSource,
    listed: Mapping[str, tuple[int, str]],
    pictures: _Pictures,
    metadata: Mapping[str, Mapping[str, Any]],
) -> SceneSource:
    """The scene with what the listing says of its files."""
    own = [scene.name] if scene.name in listed else []
    if scene.kind == "colmap":
        folder, suffix = folder_of(scene.name), PurePosixPath(scene.name).suffix
        own += [name for stem in ("cameras", "points3D") if (name := f"{folder}/{stem}{suffix}".lstrip("/")) in listed]
    files = [*own, *(scene.pictures or _pictures_of(scene, pictures))]
    if scene.kind == "mesh":
        files = own
    facts = {name: metadata[name] for name in (scene.name, *files) if name in metadata}
    return dataclasses.replace(
        scene,
        size=0 if scene.kind == "mesh" else sum(listed[name][0] for name in files if is_picture(name)),
        tag=digest_json([[name, *listed[name]] for name in files]),
        facts=facts,
    )


def _pictures_of(scene: SceneSource, pictures: _Pictures) -> list[str]:
    """The pictures that a scene may be made of, as far as can be told without opening it."""
    root = _root(scene)
    if scene.kind == "co3d":
        return pictures.of(f"{root}/{scene.inside}/images")
    if scene.kind == "realestate":
        stem = PurePosixPath(scene.name).stem
        return [name for one in (stem, f"frames/{stem}", f"images/{stem}") for name in pictures.of(f"{root}/{one}")]
    return pictures.below(root)


class _Pictures:
    """The pictures of a source by the folder that they lie in."""

    def __init__(self, names: Iterable[str]) -> None:
        self.folders: dict[str, list[str]] = {}
        for name in sorted(names):
            self.folders.setdefault(folder_of(name), []).append(name)
        self._sorted = sorted(f"{folder}/" for folder in self.folders)

    def of(self, folder: str) -> list[str]:
        """Those directly in a folder."""
        return self.folders.get(folder.strip("/"), [])

    def below(self, folder: str) -> list[str]:
        """Those in a folder and in all within it."""
        if not folder:
            return [name for names in self.folders.values() for name in names]
        first = bisect_left(self._sorted, f"{folder}/")
        found: list[str] = []
        for one in self._sorted[first:]:
            if not one.startswith(f"{folder}/"):
                break
            found += self.of(one)
        return found
