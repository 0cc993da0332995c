"""Pretrained models in folders: finding them by path or hub name, and the digest of their weights.

Weights are read from safetensors alone: a pickle can run code when it is opened.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from model.inputs import InputError

_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def model_folder(name: str, subfolder: str, siblings: Sequence[str] = ()) -> Path:
    """The folder of a model: NAME/subfolder of a diffusers layout, or NAME itself.

    `name` is a local path or a hub name ("owner/model"), which is downloaded once into the hub's cache; `siblings` are
    further subfolders of the layout to download. Raises InputError when there is no such model, or it has no weights
    in safetensors.
    """
    root = Path(name).expanduser()
    if not root.is_dir():
        root = _download(name, subfolder, siblings)
    folder = next((folder for folder in (root / subfolder, root) if (folder / "config.json").is_file()), None)
    if folder is None:
        raise InputError(f"{name}: neither config.json nor {subfolder}/config.json is there; name a model's folder")
    if not list(folder.glob("*.safetensors")):
        raise InputError(f"{name}: no weights in safetensors in {folder.name}/; convert them first")
    return folder


def pipeline_folder(name: str) -> Path:
    """The folder of a whole diffusers pipeline, by path or hub name. Raises InputError."""
    root = Path(name).expanduser()
    if not root.is_dir():
        root = _fetch(name, ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"], [])
    if not (root / "model_index.json").is_file():
        raise InputError(f"{name}: no model_index.json is there; name the folder that save_pretrained wrote")
    return root


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


def _download(name: str, subfolder: str, siblings: Sequence[str]) -> Path:
    # The configurations first, to learn the repository's layout: of a whole pipeline only some folders are needed.
    root = _fetch(name, ["config.json", f"{subfolder}/config.json"], [])
    if (root / subfolder / "config.json").is_file():
        return _fetch(name, [f"{part}/*" for part in (subfolder, *siblings)], ["*.bin", "*.msgpack", "*.h5", "*.onnx"])
    return _fetch(name, ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja"], ["*/*"])


def _fetch(name: str, patterns: Sequence[str], ignored: Sequence[str]) -> Path:
    """Download the files of a hub repository that match; the folder they are in. Raises InputError."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    if not _HUB_NAME.fullmatch(name):
        raise InputError(f"{name}: no such folder; give a model's folder or a hub name such as owner/model")
    try:
        return Path(snapshot_download(name, allow_patterns=list(patterns), ignore_patterns=list(ignored)))
    except RepositoryNotFoundError:
        raise InputError(f"{name}: neither a folder nor a model of the hub") from None
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{name}: no such folder, and the hub does not give it ({reason})") from None
