"""A process of its own for decoders that may crash, hang or take all memory: it may die, this one goes on.

What needs more than a look by the plainest decoders is converted there. A process is started when the first such file
comes, and ends with this one.
"""

from __future__ import annotations

import json
import os
import queue
import select
import signal
import struct
import subprocess
import sys
import threading
import time
from typing import Any

from labeling.sources.pixels.outcome import EncodedImage, Rejected

PROCESSES = 2  # at most, of each process that normalizes
SECONDS = 600.0  # that a conversion may take; a decoder that computes all the time has CPU_SECONDS
CPU_SECONDS = 90
MEMORY = 6 << 30  # bytes

HEAD = struct.Struct(">QQQ")  # length of the file, most pixels, shorter side
ANSWER = struct.Struct(">II")  # lengths of the description (JSON) and of the encoded image (0: the file's bytes)
READY = b"1"


class _Died(Exception):
    """The process ended, or was ended, over a file; the message is why."""


class Guard:
    """At most `processes` processes that convert; safe to use from several threads."""

    def __init__(self, processes: int = PROCESSES, seconds: float = SECONDS, cpu_seconds: int = CPU_SECONDS) -> None:
        self._free: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        for _ in range(processes):
            self._free.put(None)
        self._seconds, self._cpu_seconds = seconds, cpu_seconds
        self._srgb: dict[bytes, bool] = {}

    def is_srgb(self, profile: bytes) -> bool | None:
        """Whether a profile that came by before is sRGB; None for one that has not."""
        return self._srgb.get(profile)

    def convert(self, raw: bytes, max_pixels: int, min_side: int) -> EncodedImage:
        """What `keep` and `convert` make of a file. Raises Rejected, also for a file that ends its decoder twice."""
        process = self._free.get()
        try:
            for attempt in range(2):
                process = process or _Process(self._cpu_seconds)
                try:
                    return self._ask(process, raw, max_pixels, min_side)
                except _Died as error:
                    process.stop()
                    process = None
                    # Another process's hunger may have ended it; a file that did it does it again.
                    if attempt or "seconds" in str(error):
                        raise Rejected(f"broken: {error}") from None
            raise AssertionError("unreachable")
        finally:
            self._free.put(process)

    def _ask(self, process: _Process, raw: bytes, max_pixels: int, min_side: int) -> EncodedImage:
        told, encoded = process.ask(HEAD.pack(len(raw), max_pixels, min_side), raw, self._seconds)
        if told.get("profile") is not None and len(self._srgb) < 1024:
            self._srgb[bytes.fromhex(told["profile"])] = told["srgb"]
        if "reason" in told:
            raise Rejected(told["reason"])
        return EncodedImage(encoded or raw, told["width"], told["height"])


class _Process:
    def __init__(self, cpu_seconds: int) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OPENCV_LOG_LEVEL": "OFF",
        }
        command = [sys.executable, "-m", "labeling.sources.pixels.child", str(cpu_seconds), str(MEMORY)]
        self._process = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input, self._output = self._process.stdin.fileno(), self._process.stdout.fileno()
        try:
            self._read(len(READY), time.monotonic() + 120)
        except _Died as error:
            self.stop()
            raise RuntimeError(f"the process that decodes pictures does not start: {error}") from None

    def ask(self, head: bytes, raw: bytes, seconds: float) -> tuple[dict[str, Any], bytes]:
        deadline = time.monotonic() + seconds
        try:
            for part in (head, raw):
                self._write(part)
        except BrokenPipeError:
            raise _Died(self._ending()) from None
        description, encoded = ANSWER.unpack(self._read(ANSWER.size, deadline))
        return json.loads(self._read(description, deadline)), self._read(encoded, deadline)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(self._input, view[: 1 << 20]) :]

    def _read(self, size: int, deadline: float) -> bytes:
        result = bytearray()
        while len(result) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._output], [], [], left)[0]:
                raise _Died("decoding it did not end within many seconds")
            part = os.read(self._output, min(size - len(result), 1 << 20))
            if not part:
                raise _Died(self._ending())
            result += part
        return bytes(result)

    def _ending(self) -> str:
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return "decoding it takes too many seconds"
        if code == -signal.SIGKILL:
            return "its decoder was killed, probably for its memory"
        return f"its decoder crashed ({signal.Signals(-code).name})" if code < 0 else f"its decoder ended with {code}"


_guard: tuple[int, Guard] | None = None
_lock = threading.Lock()


def shared_guard() -> Guard:
    """The guard of this process; a forked one has its own."""
    global _guard
    with _lock:
        if _guard is None or _guard[0] != os.getpid():
            _guard = (os.getpid(), Guard())
        return _guard[1]
