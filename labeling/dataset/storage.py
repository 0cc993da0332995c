"""Where datasets and runs live: a folder or an s3:// prefix, with the same few whole-or-absent operations.

S3 goes through boto3 (managed, multipart transfers) for whole objects and through pyarrow for ranged reads of Parquet;
both take credentials and endpoint from the usual AWS_* environment variables.
"""

from __future__ import annotations

import mimetypes
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from model.inputs import InputError

if TYPE_CHECKING:
    import pyarrow as pa


_SCRATCH = "onediffusion-"


@dataclass(frozen=True)
class Entry:
    """A file as a listing shows it: size in bytes, and a tag that changes when its bytes do (ETag or mtime)."""

    size: int
    tag: str


class Store(Protocol):
    """A folder of files, named by '/'-separated paths relative to its root."""

    uri: str

    def files(self, prefix: str = "") -> dict[str, Entry]:
        """Files directly in the folder `prefix`, by base name. An absent folder is empty."""

    def folders(self, prefix: str = "") -> list[str]:
        """Sub-folders directly in the folder `prefix`, by base name, sorted."""

    def walk(self, prefix: str = "") -> dict[str, Entry]:
        """All files below `prefix`, by path relative to it; names beginning with a dot are left out."""

    def exists(self, name: str) -> bool:
        """Whether the file is there."""

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        """`size` bytes from `offset`."""

    def put(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all, replacing what was there."""

    def put_file(self, name: str, path: Path) -> None:
        """Move a finished local file to its final name, whole or not at all."""

    def scratch(self, name: str) -> Path:
        """A local path to write the file `name` to, from which `put_file` is cheapest."""

    def delete(self, name: str) -> None:
        """Remove a file; absent is fine."""

    def delete_tree(self, prefix: str) -> None:
        """Remove everything below `prefix`."""

    def open(self, name: str) -> pa.NativeFile:
        """Random access for pyarrow readers. Raises FileNotFoundError."""


def open_store(uri: str | Path) -> Store:
    """The store at a local path or s3://bucket/prefix. Raises InputError for another scheme."""
    text = str(uri)
    if text.startswith("s3://"):
        return S3Store(text.rstrip("/"))
    if "://" in text:
        raise InputError(f"{text}: only local paths and s3:// addresses are supported")
    return LocalStore(str(Path(text).expanduser().absolute()))


class LocalStore:
    """Files below a folder of this machine (or of a disk that all machines share)."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.root = Path(uri)

    def files(self, prefix: str = "") -> dict[str, Entry]:
        folder = self.root / prefix
        if not folder.is_dir():
            return {}
        return {
            item.name: Entry((stat := item.stat()).st_size, str(stat.st_mtime_ns))
            for item in sorted(os.scandir(folder), key=lambda item: item.name)
            if item.is_file() and not item.name.startswith(".")
        }

    def folders(self, prefix: str = "") -> list[str]:
        folder = self.root / prefix
        return sorted(item.name for item in os.scandir(folder) if item.is_dir()) if folder.is_dir() else []

    def walk(self, prefix: str = "") -> dict[str, Entry]:
        found = {}
        base = self.root / prefix
        for folder, subfolders, names in os.walk(base):
            subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
            for name in names:
                path = Path(folder, name)
                if not name.startswith(".") and path.is_file():
                    stat = path.stat()
                    found[path.relative_to(base).as_posix()] = Entry(stat.st_size, str(stat.st_mtime_ns))
        return dict(sorted(found.items()))

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

    def put(self, name: str, content: bytes) -> None:
        # Unlike a shard, which has one writer, some of these have several at a time: each writes aside by itself.
        path = self.scratch(name)
        path = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.tmp")
        try:
            with _explained(str(self.root / name)):
                path.write_bytes(content)
            self.put_file(name, path)
        finally:
            path.unlink(missing_ok=True)  # of a disk that is full, say

    def put_file(self, name: str, path: Path) -> None:
        target = self.root / name
        with _explained(str(target)):
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            if path.parent != target.parent:  # another disk, perhaps: the rename must stay on one
                path = Path(shutil.copyfile(path, self.scratch(name)))
            os.replace(path, target)

    def scratch(self, name: str) -> Path:
        # The name is fixed, so that what a killed writer left is overwritten by the one that resumes.
        target = self.root / name
        with _explained(str(self.root)):
            target.parent.mkdir(parents=True, exist_ok=True)
        return target.with_name(f".{target.name}.tmp")

    def delete(self, name: str) -> None:
        (self.root / name).unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        shutil.rmtree(self.root / prefix, ignore_errors=True)

    def open(self, name: str) -> pa.NativeFile:
        import pyarrow as pa

        return pa.OSFile(str(self.root / name), "rb")


class S3Store:
    """Objects below an s3:// prefix. Clients are made on first use, so that a store can be sent to other processes."""

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.bucket, _, self.prefix = uri.removeprefix("s3://").partition("/")
        if not self.bucket:
            raise InputError(f"{uri}: name a bucket, as in s3://bucket/prefix")

    def __reduce__(self) -> tuple[type[S3Store], tuple[str]]:
        return S3Store, (self.uri,)

    @cached_property
    def client(self) -> Any:
        import boto3

        with _explained(self.uri):
            # A session of its own: the default one would keep the first credentials it met.
            return boto3.session.Session().client("s3", region_name=_region())

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}".strip("/")

    def _pages(self, prefix: str, delimiter: str) -> Iterator[dict[str, Any]]:
        folder = self.key(prefix)
        with _explained(self.uri):
            yield from self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=f"{folder}/" if folder else "", Delimiter=delimiter
            )

    def files(self, prefix: str = "") -> dict[str, Entry]:
        found = {}
        for page in self._pages(prefix, "/"):
            for item in page.get("Contents", ()):
                name = item["Key"].rsplit("/", 1)[-1]
                if name and not name.startswith("."):
                    found[name] = Entry(item["Size"], item["ETag"].strip('"'))
        return dict(sorted(found.items()))

    def folders(self, prefix: str = "") -> list[str]:
        return sorted(
            item["Prefix"].rstrip("/").rsplit("/", 1)[-1]
            for page in self._pages(prefix, "/")
            for item in page.get("CommonPrefixes", ())
        )

    def walk(self, prefix: str = "") -> dict[str, Entry]:
        start = len(f"{self.key(prefix)}/") if self.key(prefix) else 0
        found = {}
        for page in self._pages(prefix, ""):
            for item in page.get("Contents", ()):
                name = item["Key"][start:]
                if name and not name.endswith("/") and not any(part.startswith(".") for part in name.split("/")):
                    found[name] = Entry(item["Size"], item["ETag"].strip('"'))
        return dict(sorted(found.items()))

    def exists(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        with _explained(self.uri):
            try:
                self.client.head_object(Bucket=self.bucket, Key=self.key(name))
            except ClientError as error:
                if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                    return False
                raise
            return True

    def read(self, name: str) -> bytes:
        with _explained(f"{self.uri}/{name}"):
            body = self.client.get_object(Bucket=self.bucket, Key=self.key(name))["Body"]
            return cast(bytes, body.read())

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        with _explained(f"{self.uri}/{name}"):
            answer = self.client.get_object(
                Bucket=self.bucket, Key=self.key(name), Range=f"bytes={offset}-{offset + size - 1}"
            )
            return cast(bytes, answer["Body"].read())

    def put(self, name: str, content: bytes) -> None:
        with _explained(f"{self.uri}/{name}"):
            # A report opened from the bucket must show, not download.
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            self.client.put_object(Bucket=self.bucket, Key=self.key(name), Body=content, ContentType=kind)

    def put_file(self, name: str, path: Path) -> None:
        with _explained(f"{self.uri}/{name}"):
            self.client.upload_file(str(path), self.bucket, self.key(name))
        path.unlink()
        if path.parent.name.startswith(_SCRATCH):
            path.parent.rmdir()

    def scratch(self, name: str) -> Path:
        import tempfile

        return Path(tempfile.mkdtemp(prefix=_SCRATCH)) / Path(name).name

    def delete(self, name: str) -> None:
        with _explained(self.uri):
            self.client.delete_object(Bucket=self.bucket, Key=self.key(name))

    def delete_tree(self, prefix: str) -> None:
        for name in self.walk(prefix):
            self.delete(f"{prefix}/{name}".strip("/"))

    def open(self, name: str) -> pa.NativeFile:
        with _explained(f"{self.uri}/{name}"):
            return self._arrow.open_input_file(f"{self.bucket}/{self.key(name)}")

    @cached_property
    def _arrow(self) -> Any:
        from pyarrow import fs

        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        options: dict[str, Any] = {"region": _region()}
        if endpoint:
            scheme, _, address = endpoint.rpartition("://")
            options |= {"endpoint_override": address, "scheme": scheme or "https"}
        return fs.S3FileSystem(**options)


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"


@contextmanager
def _explained(place: str) -> Iterator[None]:
    """Turn what a disk or S3 answers to a user's mistake into one line; other errors pass."""
    try:
        yield
    except (PermissionError, NotADirectoryError, FileExistsError) as error:
        raise InputError(f"{place}: cannot write there ({error.strerror}); choose another folder") from None
    except OSError as error:
        if error.errno in _DISK_REFUSES:
            raise InputError(f"{place}: cannot write there ({error.strerror})") from None
        if "ACCESS_DENIED" in str(error) or "403" in str(error):
            raise InputError(f"{place}: S3 refused these credentials; check AWS_ACCESS_KEY_ID and its key") from None
        raise
    except Exception as error:
        if not type(error).__module__.startswith(("botocore", "boto3")):
            raise
        raise _s3_error(place, error) from None


_DISK_REFUSES = {2, 28, 30}  # ENOENT (as /proc gives for mkdir), ENOSPC, EROFS


def _s3_error(place: str, error: Exception) -> Exception:
    from boto3.exceptions import S3UploadFailedError
    from botocore import exceptions as s3

    code = error.response["Error"]["Code"] if isinstance(error, s3.ClientError) else ""
    if code in ("404", "NoSuchKey"):
        return FileNotFoundError(place)
    if code == "NoSuchBucket":
        return InputError(f"{place}: there is no such bucket; create it, or correct the name")
    denied = ("403", "AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken")
    if code in denied or (isinstance(error, S3UploadFailedError) and any(word in str(error) for word in denied)):
        return InputError(f"{place}: S3 refused these credentials; check AWS_ACCESS_KEY_ID and its secret key")
    if isinstance(error, s3.NoCredentialsError | s3.PartialCredentialsError):
        return InputError(f"{place}: no S3 credentials; set AWS_ACCESS_KEY_ID and its secret key, or a profile")
    if isinstance(error, s3.EndpointConnectionError | s3.ConnectTimeoutError):
        return InputError(f"{place}: the S3 endpoint does not answer; check AWS_ENDPOINT_URL and the network")
    return error
