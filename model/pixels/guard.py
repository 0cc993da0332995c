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

from model.pixels.outcome import EncodedImage, Rejected

PROCESSES = 2  # at most, of each process that normalizes
SECONDS = 600.0  # that a conversion may take; a decoder that computes all the time has CPU_SECONDS
CPU_SECONDS = 90
MEMORY = 6 << 30  # bytes

HEAD = struct.Struct(">QQQ?")  # length of the file, most pixels, shorter side, whether it is to lose nothing
ANSWER = struct.Struct(">II")  # lengths of the description (JSON) and of the encoded image (0: the file's bytes)
READY = b"1"


class _Died(Exception):
    """The process ended, or is to end, over a file; the message is why."""

    def __init__(self, why: str, is_slow: bool = False) -> None:
        super().__init__(why)
        self.is_slow = is_slow


class Guard:
    """At most `processes` processes that convert; safe to use from several threads.

    seconds, cpu_seconds: that a file may take by the clock, and of CPU; memory: bytes that a process may take; module:
    what the processes run.
    """

    def __init__(
        self,
        processes: int = PROCESSES,
        seconds: float = SECONDS,
        cpu_seconds: int = CPU_SECONDS,
        memory: int = MEMORY,
        module: str = "model.pixels.child",
    ) -> None:
        self._free: queue.SimpleQueue[_Process | None] = queue.SimpleQueue()
        for _ in range(processes):
            self._free.put(None)
        self._seconds = seconds
        self._command = [sys.executable, "-m", module, str(cpu_seconds), str(memory)]
        self._srgb: dict[bytes, bool] = {}

    def is_srgb(self, profile: bytes) -> bool | None:
        """Whether a profile that came by before is sRGB; None for one that has not."""
        return self._srgb.get(profile)

    def convert(self, raw: bytes, max_pixels: int, min_side: int, exact: bool = False) -> EncodedImage:
        """What `keep` and `convert` make of a file. Raises Rejected, also for a file that ends its decoder twice."""
        head = HEAD.pack(len(raw), max_pixels, min_side, exact)
        try:
            return self._convert(raw, head)
        except _Died as error:
            if error.is_slow:
                raise Rejected(f"broken: {error}") from None
        try:  # another process's hunger may have ended it; a file that did it does it again
            return self._convert(raw, head, fresh=True)
        except _Died as error:
            raise Rejected(f"broken: {error}") from None

    def _convert(self, raw: bytes, head: bytes, fresh: bool = False) -> EncodedImage:
        process = self._free.get()
        try:
            # One that waited may be gone: Ray ends the children of a process that leaves it.
            if process and (fresh or process.has_ended):
                process.stop()
                process = None
            process = process or _Process(self._command)
            return self._ask(process, raw, head)
        except Rejected:
            raise
        except BaseException:  # an interrupt, too, leaves an answer unread
            if process:
                process.stop()
            process = None
            raise
        finally:
            self._free.put(process)

    def _ask(self, process: _Process, raw: bytes, head: bytes) -> EncodedImage:
        report, encoded = process.ask(head, raw, self._seconds)
        if report.get("profile") is not None and len(self._srgb) < 1024:
            self._srgb[bytes.fromhex(report["profile"])] = report["srgb"]
        if "reason" in report:
            raise Rejected(report["reason"])
        return EncodedImage(encoded or raw, report["width"], report["height"])


class _Process:
    def __init__(self, command: list[str]) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OPENCV_LOG_LEVEL": "OFF",
        }
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
            raise self._death() from None
        description, encoded = ANSWER.unpack(self._read(ANSWER.size, deadline))
        return json.loads(self._read(description, deadline)), self._read(encoded, deadline)

    @property
    def has_ended(self) -> bool:
        return self._process.poll() is not None

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
                raise _Died("decoding it did not end in time", is_slow=True)
            part = os.read(self._output, min(size - len(result), 1 << 20))
            if not part:
                raise self._death()
            result += part
        return bytes(result)

    def _death(self) -> _Died:
        code = self._process.wait()
        if code == -signal.SIGXCPU:
            return _Died("decoding it takes too much computing", is_slow=True)
        if code == -signal.SIGKILL:
            return _Died("its decoder was killed, probably for its memory")
        name = signal.Signals(-code).name if code < 0 else f"exit {code}"
        return _Died(f"its decoder crashed ({name})")


_guard: tuple[int, Guard] | None = None
_lock = threading.Lock()


def shared_guard() -> Guard:
    """The guard of this process; a forked one has its own."""
    global _guard
    with _lock:
        if _guard is None or _guard[0] != os.getpid():
            _guard = (os.getpid(), Guard())
        return _guard[1]
