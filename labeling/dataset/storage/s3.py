"""An s3:// prefix as a store.

boto3 transfers whole objects (managed, in several parts); pyarrow reads ranges of Parquet files. Both take credentials
and endpoint from the usual AWS_* environment variables, and both try again what a server answers with 500 or 503 or
does not answer to the end.
"""

from __future__ import annotations

import mimetypes
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cached_property, lru_cache
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from labeling.dataset.storage.errors import explained
from labeling.dataset.storage.store import Entry, Trouble
from model.inputs import InputError, WorkFailed, one_line, shown

if TYPE_CHECKING:
    import pyarrow as pa
    from pyarrow import fs

_BUCKET = re.compile(r"[\w.:-]{1,255}", re.ASCII)  # colons are of access points
_CONTROLS = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")  # and what UTF-8 has not
_LONGEST_KEY = 900  # bytes of 1024 that a key may have, with what is added
_SCRATCH = "onediffusion-"
_PARALLEL = 64
_UPLOAD_BYTES = 8 << 20  # of a part of an upload
_ATTEMPTS = 6  # of a request, with growing pauses: some 15 seconds


class S3Store:
    """Objects below an s3:// prefix. Clients are made on first use, so that a store can be sent to other processes."""

    parallel = _PARALLEL
    gap = 1 << 16

    def __init__(self, uri: str) -> None:
        self.uri = uri
        self.bucket, _, self.prefix = uri.removeprefix("s3://").partition("/")
        if not _BUCKET.fullmatch(self.bucket):
            raise InputError(f"{uri}: name a bucket, as in s3://bucket/prefix")
        if _CONTROLS.search(uri) or len(uri.encode(errors="surrogatepass")) > _LONGEST_KEY:
            raise InputError(f"{shown(uri)}: no object can have this name; give another")

    def __reduce__(self) -> tuple[type[S3Store], tuple[str]]:
        return S3Store, (self.uri,)

    def subfolder(self, name: str) -> S3Store:
        return S3Store(f"{self.uri}/{name}")

    @cached_property
    def client(self) -> Any:
        with explained(self.uri):
            return _client(_credentials())

    def key(self, name: str) -> str:
        return f"{self.prefix}/{name}".strip("/")

    def _pages(self, prefix: str, delimiter: str, begins: str = "") -> Iterator[dict[str, Any]]:
        folder = self.key(prefix)
        with explained(self.uri):
            yield from self.client.get_paginator("list_objects_v2").paginate(
                Bucket=self.bucket, Prefix=(f"{folder}/" if folder else "") + begins, Delimiter=delimiter
            )

    def files(self, prefix: str = "", begins: str = "") -> dict[str, Entry]:
        return dict(sorted(self.listing(prefix, begins)))

    def listing(self, prefix: str = "", begins: str = "") -> Iterator[tuple[str, Entry]]:
        for page in self._pages(prefix, "/", begins):
            for item in page.get("Contents", ()):
                name = item["Key"].rsplit("/", 1)[-1]
                if name and not name.startswith("."):
                    yield name, Entry(item["Size"], item["ETag"].strip('"'))

    def folders(self, prefix: str = "") -> list[str]:
        return sorted(
            item["Prefix"].rstrip("/").rsplit("/", 1)[-1]
            for page in self._pages(prefix, "/")
            for item in page.get("CommonPrefixes", ())
        )

    def walk(self, prefix: str = "") -> dict[str, Entry]:
        start = len(f"{self.key(prefix)}/") if self.key(prefix) else 0
        entries = {}
        for page in self._pages(prefix, ""):
            for item in page.get("Contents", ()):
                name = item["Key"][start:]
                if name and not name.endswith("/") and not any(part.startswith(".") for part in name.split("/")):
                    entries[name] = Entry(item["Size"], item["ETag"].strip('"'))
        return dict(sorted(entries.items()))

    def scan(self, prefix: str = "", trouble: Trouble | None = None) -> Iterator[tuple[str, Entry]]:
        start = len(f"{self.key(prefix)}/") if self.key(prefix) else 0
        for page in self._pages(prefix, ""):
            for item in page.get("Contents", ()):
                name = item["Key"][start:]
                marker = name.endswith(("/", "_$folder$"))  # an empty object by which tools show a folder
                if name and not marker and not any(part.startswith(".") for part in name.split("/")):
                    yield name, Entry(item["Size"], item["ETag"].strip('"'))

    def entry(self, name: str) -> Entry | None:
        from botocore.exceptions import ClientError

        with explained(self.uri):
            try:
                head = self.client.head_object(Bucket=self.bucket, Key=self.key(name))
            except ClientError as error:
                if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                    return None
                raise
            return Entry(head["ContentLength"], head["ETag"].strip('"'))

    def exists(self, name: str) -> bool:
        from botocore.exceptions import ClientError

        with explained(self.uri):
            try:
                self.client.head_object(Bucket=self.bucket, Key=self.key(name))
            except ClientError as error:
                if error.response["Error"]["Code"] in ("404", "NoSuchKey"):
                    return False
                raise
            return True

    def read(self, name: str) -> bytes:
        return self._get(name)[0]

    def read_range(self, name: str, offset: int, size: int) -> bytes:
        return self._get(name, Range=f"bytes={offset}-{offset + size - 1}")[0]

    def read_tail(self, name: str, size: int, listed: int | None = None) -> tuple[bytes, Entry]:
        from botocore.exceptions import ClientError

        try:
            start = "" if listed is None else max(0, listed - size)
            content, answer = self._get(name, Range=f"bytes={start}-" if listed else f"bytes=-{size}")
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("InvalidRange", "416"):
                raise
            content, answer = self._get(name)  # an empty object; some servers refuse the end of a small one
        whole = int(answer.get("ContentRange", "").rpartition("/")[2] or len(content))
        if listed and whole != listed:  # it was replaced since
            return self.read_tail(name, size)
        return content[-size:], Entry(whole, answer["ETag"].strip('"'))

    def _get(self, name: str, **options: str) -> tuple[bytes, dict[str, Any]]:
        """The bytes of an object or a range of it, and the answer. boto3 asks again, but not when a body is cut."""
        from botocore import exceptions as s3

        with explained(f"{self.uri}/{name}"):
            for attempt in range(_ATTEMPTS):
                answer = self.client.get_object(Bucket=self.bucket, Key=self.key(name), **options)
                try:
                    return cast(bytes, answer["Body"].read()), answer
                except (s3.IncompleteReadError, s3.ResponseStreamingError, s3.ReadTimeoutError):
                    if attempt == _ATTEMPTS - 1:
                        raise
                    time.sleep(0.1 * 2**attempt)
        raise AssertionError("an attempt returns or raises")

    def put(self, name: str, content: bytes) -> None:
        with explained(f"{self.uri}/{name}"):
            # With its type, a browser shows a report from the bucket instead of downloading it.
            kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
            self.client.put_object(Bucket=self.bucket, Key=self.key(name), Body=content, ContentType=kind)

    def put_new(self, name: str, content: bytes) -> bool:
        from botocore.exceptions import ClientError

        with explained(f"{self.uri}/{name}"):
            try:
                self.client.put_object(Bucket=self.bucket, Key=self.key(name), Body=content, IfNoneMatch="*")
            except ClientError as error:
                code = error.response["Error"]["Code"]
                if code in ("PreconditionFailed", "412", "ConditionalRequestConflict", "409"):
                    return False
                if code not in ("NotImplemented", "501", "InvalidArgument"):  # servers that know no conditions
                    raise
                if self.exists(name):
                    return False
                self.put(name, content)
        return True

    def put_file(self, name: str, path: Path) -> Entry:
        try:
            with explained(f"{self.uri}/{name}"):
                self.client.upload_file(str(path), self.bucket, self.key(name))
                answer = self.client.head_object(Bucket=self.bucket, Key=self.key(name))
        finally:
            self.discard(path)
        return Entry(answer["ContentLength"], answer["ETag"].strip('"'))

    def put_stream(self, name: str, parts: Iterable[bytes | memoryview], size: int) -> None:
        from boto3.s3.transfer import TransferConfig

        # Ten parts at a time are in memory. An upload has at most 10,000 of them.
        config = TransferConfig(multipart_chunksize=max(_UPLOAD_BYTES, -(-size // 9000)))
        with explained(f"{self.uri}/{name}"):
            self.client.upload_fileobj(_Stream(parts), self.bucket, self.key(name), Config=config)

    def scratch(self, name: str) -> Path:
        import tempfile

        return Path(tempfile.mkdtemp(prefix=_SCRATCH)) / Path(name).name

    def discard(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        if path.parent.name.startswith(_SCRATCH):
            with suppress(FileNotFoundError):
                path.parent.rmdir()

    def delete(self, name: str) -> None:
        with explained(self.uri):
            self.client.delete_object(Bucket=self.bucket, Key=self.key(name))

    def delete_tree(self, prefix: str) -> None:
        for name in self.walk(prefix):
            self.delete(f"{prefix}/{name}".strip("/"))
        self._abort_uploads(prefix)

    def _abort_uploads(self, prefix: str) -> None:
        """Forget the parts of uploads that nobody ended: no listing shows them, and they are paid for."""
        from botocore.exceptions import ClientError

        folder = self.key(prefix)
        with explained(self.uri), suppress(ClientError):  # who may write may not list them; some servers cannot
            pages = self.client.get_paginator("list_multipart_uploads").paginate(
                Bucket=self.bucket, Prefix=f"{folder}/" if folder else ""
            )
            for upload in [upload for page in pages for upload in page.get("Uploads", ())]:
                self.client.abort_multipart_upload(Bucket=self.bucket, Key=upload["Key"], UploadId=upload["UploadId"])

    def open(self, name: str) -> pa.NativeFile:
        with self.explained(name):
            return self._arrow.open_input_file(f"{self.bucket}/{self.key(name)}")

    def ranges(self, name: str) -> _Ranges:
        return _Ranges(self, name)

    def arrow(self) -> tuple[fs.FileSystem, str]:
        return self._arrow, f"{self.bucket}/{self.key('')}".rstrip("/")

    def without_empty_folders(self, names: Iterable[str]) -> AbstractContextManager[None]:
        return nullcontext()  # it has none

    @contextmanager
    def explained(self, name: str) -> Iterator[None]:
        is_missing = False
        try:
            with explained(f"{self.uri}/{name}"):
                try:
                    yield
                except FileNotFoundError:  # its number is that of a disk which refuses to be written
                    is_missing = True
        except FileNotFoundError:
            raise
        except OSError:
            self.read_range(name, 0, 1)  # says which credentials have expired, where pyarrow says "no response body"
            raise
        if is_missing:
            raise FileNotFoundError(f"{self.uri}/{name}")

    @cached_property
    def _arrow(self) -> Any:
        return _arrow(_credentials())


def _credentials() -> str:
    """A digest of all that clients are made of: the process, its variables, and files that may be written anew."""
    files = (
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    )
    times = []
    for file in files:
        with suppress(OSError):
            times.append(os.stat(os.path.expanduser(file)).st_mtime_ns)
    variables = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    return blake2b(repr((os.getpid(), variables, times)).encode()).hexdigest()


@lru_cache(maxsize=4)  # stores share them: to make one takes tenths of a second
def _client(credentials: str) -> Any:
    import boto3
    from botocore.config import Config

    settings = Config(
        retries={
            "mode": cast(Any, os.environ.get("AWS_RETRY_MODE", "standard")),
            "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", _ATTEMPTS)),
        },
        max_pool_connections=_PARALLEL,
    )
    # The default session would keep the first credentials that it reads.
    return boto3.session.Session().client("s3", region_name=_region(), config=settings)


@lru_cache(maxsize=4)
def _arrow(credentials: str) -> Any:
    from pyarrow import fs

    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
    options: dict[str, Any] = {"region": _region(), "retry_strategy": retries}
    if endpoint:
        scheme, _, address = endpoint.rpartition("://")
        options |= {"endpoint_override": address, "scheme": scheme or "https"}
    if key := os.environ.get("AWS_ACCESS_KEY_ID"):
        # The SDK would look for them at every request. One that another thread's change of the environment hides
        # from it would leave unsigned.
        options |= {"access_key": key, "secret_key": os.environ.get("AWS_SECRET_ACCESS_KEY", "")}
        options["session_token"] = os.environ.get("AWS_SESSION_TOKEN")
    return fs.S3FileSystem(**options)


class _Stream:
    """Parts as a file that is read once, from its beginning to its end."""

    def __init__(self, parts: Iterable[bytes | memoryview]) -> None:
        self._parts = iter(parts)
        self._rest = memoryview(b"")

    def read(self, size: int = -1) -> bytes:
        content = bytearray()
        while size < 0 or len(content) < size:
            if not self._rest and (part := next(self._parts, None)) is not None:
                self._rest = memoryview(part)
            elif not self._rest:
                break
            size_left = len(self._rest) if size < 0 else size - len(content)
            content += self._rest[:size_left]
            self._rest = self._rest[size_left:]
        return bytes(content)


class _Ranges:
    """An object opened to read ranges of it, outside Python's lock."""

    def __init__(self, store: S3Store, name: str) -> None:
        self._store, self._name, self._file = store, name, store.open(name)

    def read(self, offset: int, size: int) -> bytes | None:
        try:
            with self._store.explained(self._name):
                content: bytes = self._file.read_at(size, offset)
        except FileNotFoundError:
            raise
        except OSError as error:  # after all attempts
            address = f"{self._store.uri}/{self._name}"
            raise WorkFailed(f"{address}: S3 does not give its bytes ({one_line(error, 120)})") from None
        return content if len(content) == size else None

    def read_into(self, offset: int, parts: Sequence[Any], size: int) -> bool:
        whole = self.read(offset, size)
        if whole is None:
            return False
        content = memoryview(whole)
        for part in parts:
            if not memoryview(part).nbytes:  # there is no view of it as bytes
                continue
            target = memoryview(part).cast("B")
            target[:] = content[: len(target)]
            content = content[len(target) :]
        return True

    def read_tail(self, size: int) -> tuple[bytes, Entry]:
        return self._store.read_tail(self._name, size)


def _region() -> str:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
