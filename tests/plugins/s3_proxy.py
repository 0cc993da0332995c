"""What stands between a program and an S3 server: it counts requests, makes them wait, and lets some of them fail."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TypeVar
from urllib.parse import urlsplit

P = TypeVar("P", bound="S3Proxy")
FAULTS = ("500", "503", "no answer", "cut")


class S3Proxy(ThreadingHTTPServer):
    """A server on loopback in front of another.

    delay: seconds before a request goes on. share: of the requests that fail, by the faults in turn; "no answer" ends
    the connection before an answer, "cut" within the body of one.
    """

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, behind: str, delay: float = 0.0, share: float = 0.0, seed: int = 0, handler: type[Handler] | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), handler or Handler)
        self.behind = urlsplit(behind).netloc
        self.delay = delay
        self.share = share
        self.counts: Counter[str] = Counter()  # method, or fault → how many
        self._random = random.Random(seed)
        self._lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @property
    def requests(self) -> int:
        """How many there were, failed ones included."""
        return sum(count for name, count in self.counts.items() if name not in FAULTS)

    def count(self, method: str) -> str:
        """Count a request; the fault it meets, "" for most."""
        with self._lock:
            self.counts[method] += 1
            if self._random.random() >= self.share:
                return ""
            fault = FAULTS[sum(self.counts[name] for name in FAULTS) % len(FAULTS)]
            self.counts[fault] += 1
            return fault

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that has gone is no trouble of the proxy's."""


class Handler(BaseHTTPRequestHandler):
    """Answers requests of one connection, by what the server behind answers."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: S3Proxy
    upstream: HTTPConnection | None = None

    def handle_one_request(self) -> None:
        self.raw_requestline = self.rfile.readline(65537)
        if not self.raw_requestline or not self.parse_request():
            self.close_connection = True
            return
        sent = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        fault = self.server.count(self.command)
        time.sleep(self.server.delay)
        if fault == "no answer":
            self.close_connection = True
        elif fault in ("500", "503"):
            body = f"<Error><Code>{'SlowDown' if fault == '503' else 'InternalError'}</Code></Error>".encode()
            self._answer(int(fault), [("Content-Type", "application/xml")], len(body), body)
        else:
            self._forward(sent, fault == "cut")

    def _forward(self, sent: bytes, is_cut: bool) -> None:
        self.upstream = self.upstream or HTTPConnection(self.server.behind, timeout=300)
        self.upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("expect", "connection"):
                self.upstream.putheader(name, value)
        self.upstream.endheaders(sent)
        answer = self.upstream.getresponse()
        body = answer.read()
        hop = ("transfer-encoding", "connection", "content-length", "keep-alive")
        headers = [(name, value) for name, value in answer.getheaders() if name.lower() not in hop]
        length = int(answer.getheader("Content-Length") or len(body)) if self.command == "HEAD" else len(body)
        if is_cut:
            self.close_connection = True
            body = body[: len(body) // 2]
        self._answer(answer.status, headers, length, body)

    def _answer(self, status: int, headers: list[tuple[str, str]], length: int, body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != 204:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
        self.wfile.flush()


@contextmanager
def s3_proxy(behind: str, delay: float = 0.0, share: float = 0.0) -> Iterator[S3Proxy]:
    """A proxy in front of the S3 server at an address, as long as the context lasts."""
    with serving(S3Proxy(behind, delay, share)) as proxy:
        yield proxy


@contextmanager
def serving(proxy: P) -> Iterator[P]:
    """Let a proxy answer as long as the context lasts."""
    thread = threading.Thread(target=proxy.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.shutdown()
        proxy.server_close()
