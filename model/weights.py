"""Pretrained models in folders: finding them by path or hub name, and the digest of their weights.

Weights are read from safetensors alone: a pickle can run code when it is opened.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from model.inputs import InputError, as_path, nearest, one_line, shown
from model.node_cache import fetched_once, s3_model

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
OF_DEVICE_MAPS = ("max_memory", "offload_folder", "offload_state_dict")
# Files of JSON that loaders read in a part's folder.
_DESCRIPTIONS = re.compile(
    r"((generation_|scheduler_|tokenizer_)?config|[\w-]+\.index(\.[\w-]+)?|tokenizer|special_tokens_map|added_tokens|vocab)"
    r"\.json"
)
_TEXTS = ["*.json", "*.txt", "*.model", "*.jinja"]  # configurations and tokenizers


@dataclass(frozen=True)
class HubOptions:
    """What diffusers lets a caller say about the hub; the names are those of huggingface_hub."""

    revision: str | None = None
    cache_dir: Any = None
    token: str | bool | None = None
    local_files_only: bool = False
    force_download: bool = False

    @classmethod
    def take(cls, arguments: dict[str, Any]) -> HubOptions:
        """Take them out of `arguments`; None stands for the default. Raises InputError for values that cannot be."""
        given = {field.name: arguments.pop(field.name, None) for field in fields(cls)}
        options = cls(**{name: value for name, value in given.items() if value is not None})
        options._check()
        return options

    @classmethod
    def names(cls) -> list[str]:
        """Names of the arguments."""
        return [field.name for field in fields(cls)]

    def _check(self) -> None:
        """Raise InputError for values of other types."""
        if self.revision is not None and (not isinstance(self.revision, str) or not self.revision):
            raise InputError(f"revision {shown(self.revision)}: give the name of a branch, a tag or a commit")
        if self.cache_dir is not None:
            as_path("cache_dir", self.cache_dir)
        if self.token is not None and not isinstance(self.token, str | bool):
            raise InputError("token: give the token as a text, or True for the one that is stored")  # and never show it
        for name in ("local_files_only", "force_download"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} {shown(getattr(self, name))}: give True or False")

    def arguments(self) -> dict[str, Any]:
        """The keywords of huggingface_hub."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


def model_folder(
    name: str, subfolder: str, siblings: Sequence[str] = (), hub: HubOptions | None = None, variant: str | None = None
) -> Path:
    """The folder of a model: NAME/subfolder of a diffusers layout, or NAME itself.

    `name` is a local path, an s3:// address or a hub name ("owner/model"); the latter two are downloaded once for all
    processes of a node (`model.node_cache`). `siblings` are further subfolders of the layout to download. Raises
    InputError when there is no such model, or it has no weights in safetensors.
    """
    if not isinstance(name, str | Path):
        raise InputError(f"{shown(name)}: give a model's folder or a hub name such as owner/model")
    as_path("subfolder", subfolder)
    hub = hub or HubOptions()
    root = _local_folder(str(name), hub) or _download(str(name), subfolder, siblings, hub, variant)
    folder = next((folder for folder in (root / subfolder, root) if (folder / "config.json").is_file()), None)
    if folder is None:
        raise InputError(f"{name}: neither config.json nor {subfolder}/config.json is there; name a model's folder")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{name}: no weights in safetensors in {folder.name}/; convert them first")
    return folder


def pipeline_folder(
    name: str, hub: HubOptions | None = None, variant: str | None = None, given: Collection[str] = ()
) -> Path:
    """The folder of a whole diffusers pipeline, by path or hub name. Raises InputError.

    given: parts that the caller has, which are not downloaded.
    """
    hub = hub or HubOptions()
    root = _local_folder(name, hub)
    had = [f"{part}/*" for part in sorted(given)]
    if root is None:
        if variant is None:
            # A repository may hold the same weights in several types; their names have a second dot.
            root = _fetch(name, [*_TEXTS, "*/*.safetensors"], ["*.*.safetensors", *had], hub)
        else:
            root = _fetch(name, [*_TEXTS, *_of_variant("*/", variant)], had, hub)
            parts = [part for part in _parts(root) if part.name not in given]
            plain = [part.name for part in parts if not any(part.glob("*.safetensors"))]
            if plain:
                root = _fetch(name, [f"{part}/*.safetensors" for part in plain], ["*.*.safetensors"], hub)
    if not (root / "model_index.json").is_file():
        raise InputError(f"{name}: no model_index.json is there; name the folder that save_pretrained wrote")
    return root


def check_files(folder: Path, variant: str | None = None) -> None:
    """Raise InputError, naming the file, where one that loaders read in a part's folder is damaged.

    Of safetensors it is the header that is read, which says how long the file has to be. What else lies there, as notes
    and files of other variants, does not matter.
    """
    from safetensors import SafetensorError, safe_open

    for path in sorted(folder.glob("*.json")):
        if _DESCRIPTIONS.fullmatch(path.name):
            read_object(path)
        if ".index." in path.name and path.name.endswith(f".index.{variant}.json" if variant else ".index.json"):
            indexed_files(path)
    for path in safetensors_files(folder, variant):
        try:
            with safe_open(path, "pt"):
                pass
        except (ValueError, SafetensorError, OSError) as error:
            raise damaged(path, error) from None


def indexed_files(index: Path) -> list[Path]:
    """The safetensors that an index names. Raises InputError where it names none, or one that is not there."""
    weight_map = read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{index}: it names no weights; download it again")
    names = sorted(set(map(str, weight_map.values())))
    absent = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if absent:
        raise InputError(f"{index.parent}: {index.name} names {absent[0]}, which is not there; download it again")
    return [index.parent / name for name in names]


def check_loaded(part: Any, folder: Path, variant: str | None = None) -> None:
    """Raise InputError for weights that a part and its files do not share: loaders only warn, and draw what is missing.

    Missing are those that no file holds. Tied weights are stored under one of their names, and some files add a prefix
    to all of them. Too many are layers beyond those of its configuration; a file may well hold other parts of a model.
    A quantized part keeps more beside its weights than their files may hold. Too many are also those of an autoencoder
    whose configuration leaves out a layer that they are of.
    """
    stored = {key for path in safetensors_files(folder, variant) for key in _keys(path)}
    own = dict(part.named_parameters(remove_duplicate=False))
    if getattr(part, "hf_quantizer", None) is None:
        own |= dict(part.named_buffers(remove_duplicate=False))
    places: dict[int, list[str]] = {}
    for key in part.state_dict():
        if key in own:
            places.setdefault(id(own[key]), []).append(key)
    for keys in places.values():
        if any("pooler" in key for key in keys):  # encoders are asked for tokens, and some files leave it out
            continue
        if not any(
            key in stored or any(f".{key}".endswith(f".{one}") or f".{one}".endswith(f".{key}") for one in stored)
            for key in keys
        ):
            raise InputError(f"{folder}: the weights lack {keys[0]}; copy or download them again")
    _check_layers(part, folder, stored)
    if type(part).__name__ == "AutoencoderKL" and getattr(part, "hf_quantizer", None) is None:
        unused = next((key for key in sorted(stored) if key not in own), None)
        if unused:
            raise InputError(
                f"{folder}: its config.json has no place for {unused} of its weights; copy or download the folder again"
            )


def _check_layers(part: Any, folder: Path, stored: set[str]) -> None:
    from torch.nn import ModuleList

    for name, module in part.named_modules():
        if isinstance(module, ModuleList) and name:
            layers = re.compile(rf"(?:^|\.){re.escape(name)}\.(\d+)\.")
            count = max((int(found[1]) + 1 for key in stored if (found := layers.search(key))), default=0)
            if count > len(module):
                raise InputError(
                    f"{folder}: {count} layers {name} in its weights, {len(module)} in its config.json; copy or "
                    "download the folder again"
                )


def safetensors_files(folder: Path, variant: str | None) -> list[Path]:
    """The safetensors of a variant, or those of none where the part has no such variant."""
    files = sorted(path for path in folder.glob("*.safetensors") if not path.name.startswith("."))
    return [path for path in files if variant and f".{variant}" in path.name] or [
        path for path in files if path.name.count(".") == 1
    ]


def _keys(path: Path) -> list[str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return list(file.keys())


def damaged(path: Any, error: BaseException) -> InputError:
    """What to tell a person whose file cannot be read: cut by a full disk or a broken transfer, or changed."""
    return InputError(f"{path}: damaged ({one_line(error, 120)}); copy or download it again, or take another")


def read_json(path: Path) -> Any:
    """The value in a JSON file. Raises InputError for one that is damaged."""
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError, OSError) as error:
        raise damaged(path, error) from None


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file. Raises InputError for a damaged one, and for one that holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(f"{path}: {shown(value)}, and no object with names and values; copy or download it again")
    return value


def check_device_map(call: str, given: Mapping[str, Any]) -> None:
    """Raise InputError for arguments that say how a device_map is filled, where none is given."""
    for name in OF_DEVICE_MAPS:
        if given.get(name) not in (None, False) and given.get("device_map") is None:
            raise InputError(f"{call}: {name} has no effect without a device_map; give one, as device_map='balanced'")


def check_variant(variant: Any) -> None:
    """Raise InputError for what cannot be the name of a variant: it becomes a part of files' names."""
    if variant is not None and not (isinstance(variant, str) and re.fullmatch(r"[\w-]+", variant)):
        raise InputError(f"variant {shown(variant)}: give a short name, as fp16")


def refuse_unknown(call: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    """Raise InputError for an argument that a call does not take: one that is dropped changes results unseen."""
    for name in given:
        if name not in known:
            raise InputError(f"{call} takes no {name}{nearest(name, list(known))}; it takes {', '.join(known)}")


def weights_digest(*folders: Path) -> str:
    """Digest of what a model's output depends on: its safetensors, configuration and tokenizer files."""
    digest = hashlib.blake2b(digest_size=16)
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix in (".safetensors", ".json", ".txt", ".model", ".jinja"):
                status = path.stat()
                digest.update(f"{path.name} {_file_digest(path, status.st_size, status.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@cache
def _file_digest(path: Path, _size: int, _modified: int) -> str:
    # Cached for the process: a command asks several times, and weights are gigabytes.
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()


def _local_folder(name: str, hub: HubOptions) -> Path | None:
    if not name:
        raise InputError("'': give a model's folder or a hub name such as owner/model")
    on_s3 = name.startswith("s3://")
    root = Path(name) if on_s3 else as_path("model", name)
    if not on_s3 and not root.is_dir():
        return None
    if hub.revision is not None:
        raise InputError(f"revision {hub.revision}: {name} is a folder, and only models of the hub have revisions")
    return s3_model(name) if on_s3 else root


def _parts(root: Path) -> list[Path]:
    """The folders of a pipeline's models: those with a configuration of a network."""
    return sorted(path.parent for path in root.glob("*/config.json"))


def _of_variant(prefix: str, variant: str) -> list[str]:
    return [f"{prefix}*.{variant}.safetensors", f"{prefix}*.{variant}-*.safetensors"]


def _download(name: str, subfolder: str, siblings: Sequence[str], hub: HubOptions, variant: str | None) -> Path:
    # The configurations first, to learn the repository's layout: of a whole pipeline only some folders are needed.
    root = _fetch(name, ["config.json", f"{subfolder}/config.json"], [], hub)
    others = [] if variant else ["*.*.safetensors"]
    if (root / subfolder / "config.json").is_file():
        ignored = ["*.bin", "*.msgpack", "*.h5", "*.onnx", *others]
        return _fetch(name, [f"{part}/*" for part in (subfolder, *siblings)], ignored, hub)
    return _fetch(name, ["*.safetensors", *_TEXTS], ["*/*", *others], hub)


def _fetch(name: str, patterns: Sequence[str], ignored: Sequence[str], hub: HubOptions) -> Path:
    """Download the files of a hub repository that match; the folder they are in. Raises InputError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"{name}: no such folder; give a model's folder or a hub name such as owner/model")
    allowed, left_out = list(patterns), list(ignored)

    def fetch() -> Path:
        return Path(snapshot_download(name, allow_patterns=allowed, ignore_patterns=left_out, **hub.arguments()))

    try:
        if hub.local_files_only or HF_HUB_OFFLINE:
            return fetch()
        cache = Path(hub.cache_dir or HF_HUB_CACHE).expanduser().absolute()
        return fetched_once(cache, [name, hub.revision, allowed, left_out], fetch, hub.force_download)
    except RepositoryNotFoundError:
        raise InputError(f"{name}: neither a folder nor a model of the hub") from None
    except RevisionNotFoundError:
        raise InputError(f"{name}: the hub has no revision {hub.revision} of it") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, HFValidationError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{name}: no such folder, and the hub does not give it ({reason})") from None
