"""As much of S3 as a dataset needs, from a folder whose sub-folders are the buckets.

A listing of 10⁵ objects costs real S3 servers on one disk more than the delay that is to be measured: rclone reads the
folder anew for each thousand. Here it is read once.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from s3_proxy import Handler, S3Proxy

PAGE = 1000


class S3Folder(S3Proxy):
    """A server for the buckets below `root`; see `S3Proxy` for the rest."""

    def __init__(self, root: Path, delay: float = 0.0) -> None:
        super().__init__("http://nowhere", delay, handler=_Handler)
        self.root = root
        self.listings: dict[tuple[str, str], list[tuple[str, bool]]] = {}  # bucket, prefix → names and what is a file

    def listing(self, bucket: str, prefix: str) -> list[tuple[str, bool]]:
        """What lies in the folder of a prefix with names that begin as it ends, sorted."""
        if (bucket, prefix) not in self.listings:
            folder, _, begins = prefix.rpartition("/")
            path = self.root / bucket / folder
            items = [(item.name, item.is_file()) for item in path.iterdir()] if path.is_dir() else []
            self.listings[bucket, prefix] = sorted(item for item in items if item[0].startswith(begins))
        return self.listings[bucket, prefix]


class _Handler(Handler):
    server: S3Folder

    def _forward(self, sent: bytes, is_cut: bool) -> None:
        address = urlsplit(self.path)
        bucket, _, key = unquote(address.path).lstrip("/").partition("/")
        path = self.server.root / bucket / key
        if self.command == "GET" and not key:
            self._list(bucket, {name: values[0] for name, values in parse_qs(address.query).items()})
        elif self.command == "PUT":
            if self.headers.get("If-None-Match") and path.exists():
                self._refuse(412, "PreconditionFailed")
                return
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f".{path.name}.put")
            scratch.write_bytes(sent)
            scratch.replace(path)
            self.server.listings.clear()
            self._answer(200, [("ETag", tag_of(path))], 0, b"")
        elif self.command == "DELETE":
            path.unlink(missing_ok=True)
            self.server.listings.clear()
            self._answer(204, [], 0, b"")
        elif not path.is_file():
            self._refuse(404, "NoSuchKey")
        else:
            self._get(path)

    def _get(self, path: Path) -> None:
        size = path.stat().st_size
        headers = [("ETag", tag_of(path)), ("Last-Modified", "Thu, 01 Jan 1970 00:00:00 GMT")]
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, size - int(last))
        end = min(int(last) + 1, size) if first and last else size
        with path.open("rb") as file:
            file.seek(start)
            body = file.read(end - start)
        if "Range" in self.headers:
            headers.append(("Content-Range", f"bytes {start}-{end - 1}/{size}"))
        self._answer(206 if "Range" in self.headers else 200, headers, len(body), body)

    def _list(self, bucket: str, query: dict[str, str]) -> None:
        prefix, start = query.get("prefix", ""), int(query.get("continuation-token", "0"))
        folder = prefix.rpartition("/")[0]
        names = self.server.listing(bucket, prefix)
        parts = []
        for name, is_file in names[start : start + PAGE]:
            key = escape(f"{folder}/{name}".lstrip("/"))
            if is_file:
                path = self.server.root / bucket / folder / name
                tag = escape(tag_of(path))
                parts.append(
                    f"<Contents><Key>{key}</Key><Size>{path.stat().st_size}</Size><ETag>{tag}</ETag></Contents>"
                )
            else:
                parts.append(f"<CommonPrefixes><Prefix>{key}/</Prefix></CommonPrefixes>")
        more = start + PAGE < len(names)
        token = f"<NextContinuationToken>{start + PAGE}</NextContinuationToken>" if more else ""
        parts.append(f"<IsTruncated>{str(more).lower()}</IsTruncated>{token}")
        body = f"<ListBucketResult>{''.join(parts)}</ListBucketResult>"
        self._answer(200, [("Content-Type", "application/xml")], len(body.encode()), body.encode())

    def _refuse(self, status: int, code: str) -> None:
        body = f"<Error><Code>{code}</Code></Error>".encode()
        self._answer(status, [("Content-Type", "application/xml")], len(body), body)


def tag_of(path: Path) -> str:
    """The ETag of a file, which changes when it does."""
    stat = path.stat()
    return f'"{stat.st_size:x}-{stat.st_mtime_ns:x}"'
