"""A web server of pictures on loopback that also does what servers on the web do: fail, redirect, stall, refuse."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class Answer:
    """What the server says to a path. wait: seconds before it; first: answers given before this one, one a request;
    claimed: Content-Length, where it is another than that of the body."""

    body: bytes = b""
    status: int = 200
    headers: list[tuple[str, str]] = field(default_factory=list)
    wait: float = 0.0
    first: list[Answer] = field(default_factory=list)
    claimed: int | None = None
    drip: float = 0.0  # seconds after each byte


class PictureServer:
    """Serves `answers` by path (without its query). requests: how often each path was asked for; most: connections
    that were being answered at once."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: Counter[str] = Counter()
        self.headers: list[Mapping[str, str]] = []
        self.times: list[float] = []
        self.most = self._now = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._answer(self)

            def log_message(self, *arguments: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 256
            address_family = socket.AF_INET

            def handle_error(self, *arguments: Any) -> None:
                pass  # clients that go away are part of the tests

        self._http = Server(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    @property
    def port(self) -> int:
        return int(self._http.server_port)

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = handler.path.partition("?")[0]
        with self._lock:
            self.requests[path] += 1
            self.headers.append(dict(handler.headers.items()))
            self.times.append(time.monotonic())
            self._now += 1
            self.most = max(self.most, self._now)
            answer = self.answers.get(path, Answer(b"not here", 404))
            if self.requests[path] <= len(answer.first):
                answer = answer.first[self.requests[path] - 1]
        time.sleep(answer.wait)
        with self._lock:
            self._now -= 1  # before a client can have the answer and ask again by another connection
        try:
            handler.send_response(answer.status)
            for name, value in answer.headers:
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(answer.body) if answer.claimed is None else answer.claimed))
            handler.end_headers()
            if answer.drip:
                for byte in answer.body:
                    handler.wfile.write(bytes([byte]))
                    handler.wfile.flush()
                    time.sleep(answer.drip)
            else:
                handler.wfile.write(answer.body)
            handler.close_connection = handler.close_connection or answer.claimed is not None
        except OSError:
            handler.close_connection = True


@contextmanager
def silent_port() -> Iterator[int]:
    """A port at which connections are taken and nothing is ever said."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(128)
        yield int(listening.getsockname()[1])
