"""A server that speaks OpenAI's chat completions over HTTP, and does with each request what a test says."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Reply:
    """status, body (a text is sent as it is), headers and how many seconds the server takes for it."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0


def says(text: Any, **more: Any) -> Reply:
    """A completion with this text."""
    return Reply(body={"choices": [{"index": 0, "message": {"role": "assistant", "content": text}, **more}]})


@dataclass
class ChatServer:
    """address: base of the API; requests: what came, in order: body, headers and time."""

    address: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    most_at_once: int = 0
    _now: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def enter(self, body: Any, headers: dict[str, str]) -> int:
        with self._lock:
            self.requests.append({"body": body, "headers": headers, "time": time.monotonic()})
            self._now += 1
            self.most_at_once = max(self.most_at_once, self._now)
            return len(self.requests)

    def leave(self) -> None:
        with self._lock:
            self._now -= 1


@contextmanager
def chat_server(reply: Callable[[dict[str, Any], int], Reply]) -> Iterator[ChatServer]:
    """A server whose reply to a request depends on its body, and on its number from 1 on."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            number = server.enter({**body, "path": self.path}, dict(self.headers))
            try:
                answer = reply(body, number)
                time.sleep(answer.seconds)
                data = answer.body if isinstance(answer.body, bytes) else json.dumps(answer.body).encode()
                self.send_response(answer.status)
                for name, value in {**answer.headers, "Content-Length": str(len(data))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
            finally:
                server.leave()

        def log_message(self, *args: Any) -> None:
            pass

    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.daemon_threads = True
    server = ChatServer(f"http://127.0.0.1:{listening.server_port}/v1")
    thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        listening.shutdown()
        listening.server_close()
        thread.join()
