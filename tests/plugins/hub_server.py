"""A stand-in for the hub: the three answers that huggingface_hub needs to download a repository, and a count."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "1" * 40


@contextmanager
def hub_server(folder: Path, name: str) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder as the repository of that name; yields its address and the "METHOD PATH" of all requests."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(True)

        def do_HEAD(self) -> None:
            self._answer(False)

        def _answer(self, body: bool) -> None:
            path = self.path.partition("?")[0]
            requests.append(f"{self.command} {path}")
            if path.startswith(f"/api/models/{name}"):
                files = {str(file.relative_to(folder)): file for file in folder.rglob("*") if file.is_file()}
                answer: object = {"id": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
                if "/tree/" in path:
                    answer = [
                        {"type": "file", "path": file, "size": where.stat().st_size, "oid": COMMIT}
                        for file, where in files.items()
                    ]
                self._send(json.dumps(answer).encode(), {"Content-Type": "application/json"}, body)
                return
            file = folder / path.removeprefix(f"/{name}/resolve/").partition("/")[2]
            if not file.is_file():
                self.send_error(404)
                return
            content = file.read_bytes()
            self._send(content, {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": COMMIT}, body)

        def _send(self, content: bytes, headers: dict[str, str], body: bool) -> None:
            self.send_response(200)
            for key, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(key, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", requests
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
