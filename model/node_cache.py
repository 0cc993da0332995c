"""Models that are fetched once for all processes of a node, or of all nodes whose cache is on a shared disk.

A job has many processes with the same models. The first one fetches, the others wait for it, and take what it left
without asking the hub or S3 again for some minutes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from model.inputs import InputError, one_line

FRESH_SECONDS = 600.0  # that what was fetched is taken for the newest; a job's processes start within these
_NOTES = ".onediffusion"  # folder of locks and notes, within a cache
_NOT_READ = (".bin", ".pt", ".pth", ".ckpt", ".msgpack", ".h5", ".onnx", ".ot")  # weights that are not opened here


def fetched_once(cache: Path, what: Any, fetch: Callable[[], Path], fresh: bool = False) -> Path:
    """The folder that `fetch` gives, from the process that was first of all that share the cache.

    what: names what is fetched, as JSON; fresh: fetch in any case. Only folders within the cache are remembered.
    """
    name = hashlib.blake2b(json.dumps(what, sort_keys=True, default=str).encode(), digest_size=16).hexdigest()
    note = cache / _NOTES / f"{name}.json"
    with _alone(note.with_suffix(".lock")):
        if not fresh and (known := _noted(cache, note)):
            return known
        folder = fetch()
        if folder.is_relative_to(cache):
            with suppress(OSError):  # a cache that others fill may be read-only
                _write(note, json.dumps({"folder": str(folder.relative_to(cache)), "time": time.time()}))
        return folder


def s3_model(address: str) -> Path:
    """A copy of the model below an s3:// address, in the cache of this node. Raises InputError.

    What changes there gets a folder of its own, so that a process never reads half of each.
    """
    from huggingface_hub.constants import HF_HOME

    cache = Path(HF_HOME).expanduser().absolute() / "s3"
    return fetched_once(cache, address, lambda: _copy(address, cache))


def _copy(address: str, cache: Path) -> Path:
    import boto3
    from boto3.exceptions import Boto3Error
    from botocore.exceptions import BotoCoreError, ClientError

    bucket, _, prefix = address.removeprefix("s3://").rstrip("/").partition("/")
    try:
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
        client = boto3.session.Session().client("s3", region_name=region)
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/" if prefix else "")
        found = {item["Key"]: item for page in pages for item in page.get("Contents", ())}
        objects = {key: item for key, item in found.items() if not key.endswith(("/", *_NOT_READ))}
        if not objects:
            raise InputError(f"{address}: no model is there; give the folder that save_pretrained wrote")
        state = json.dumps([(key, item["Size"], item.get("ETag")) for key, item in sorted(objects.items())])
        digest = hashlib.blake2b(f"{address} {state}".encode(), digest_size=8).hexdigest()
        folder = cache / f"{prefix.rpartition('/')[2] or bucket}-{digest}"
        if folder.is_dir():
            return folder
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=".copy-") as aside:
            for key in objects:
                path = Path(aside, "model", key.removeprefix(f"{prefix}/" if prefix else ""))
                path.parent.mkdir(parents=True, exist_ok=True)
                client.download_file(bucket, key, str(path))
            with suppress(OSError):  # another node was faster
                os.replace(Path(aside, "model"), folder)
        return folder
    except (BotoCoreError, ClientError, Boto3Error) as error:
        raise InputError(f"{address}: cannot be read ({one_line(error, 200)}); correct it, or AWS_*") from None
    except OSError as error:
        raise InputError(
            f"{cache}: cannot keep {address} there ({error.strerror}); set HF_HOME to a folder with room"
        ) from None


def _noted(cache: Path, note: Path) -> Path | None:
    """The folder that was fetched some minutes ago at most, if it is still there."""
    try:
        values = json.loads(note.read_text())
        folder = cache / values["folder"]
        return folder if 0 <= time.time() - values["time"] < FRESH_SECONDS and folder.is_dir() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as aside:
        aside.write(text)
    os.replace(aside.name, path)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Let one process at a time fetch; where the cache is read-only or knows no locks, all of them do."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError:
        yield
        return
    with file:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
