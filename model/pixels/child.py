"""The process that `guard` starts: reads files on standard input, writes what became of them on standard output.

    python -m model.pixels.child CPU_SECONDS MEMORY

A file may take so many seconds of CPU (then the kernel ends the process), and all of it so many bytes of memory.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

from model.pixels import profiles
from model.pixels.convert import convert
from model.pixels.decode import prepare_pillow
from model.pixels.guard import ANSWER, HEAD, READY
from model.pixels.keep import keep
from model.pixels.outcome import EncodedImage, Rejected


def main(cpu_seconds: int, memory: int) -> None:
    """Answer until standard input ends, which it does with the process that started this one."""
    answers = os.fdopen(os.dup(1), "wb")
    prepare_pillow()
    warnings.simplefilter("ignore")
    _limit(memory)
    answers.write(READY)
    answers.flush()
    # Decoders write what they think of a file to both.
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    files = sys.stdin.buffer
    while head := files.read(HEAD.size):
        length, max_pixels, min_side, exact = HEAD.unpack(head)
        raw = files.read(length)
        if len(raw) < length:
            return
        used = resource.getrusage(resource.RUSAGE_SELF)
        limit = int(used.ru_utime + used.ru_stime) + cpu_seconds
        resource.setrlimit(resource.RLIMIT_CPU, (limit, resource.RLIM_INFINITY))
        _answer(answers, raw, max_pixels, min_side, exact)


def _limit(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError, ValueError):  # where the system knows no such limit
        resource.setrlimit(resource.RLIMIT_DATA, (memory, memory))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
        score.write("1000")  # of all processes it is the one to end where memory runs out


def _answer(answers: BinaryIO, raw: bytes, max_pixels: int, min_side: int, exact: bool) -> None:
    known: dict[str, str | bool] = {}

    def is_srgb(profile: bytes) -> bool:
        known.update(profile=profile.hex(), srgb=profiles.is_srgb(profile))
        return bool(known["srgb"])

    encoded = b""
    try:
        image = _make(raw, max_pixels, min_side, exact, is_srgb)
        report = {"width": image.width, "height": image.height, **known}
        encoded = b"" if image.encoded is raw else image.encoded
    except Rejected as error:
        report = {"reason": str(error), **known}
    except MemoryError:
        report = {"reason": "broken: decoding it needs too much memory"}
    description = json.dumps(report).encode()
    answers.write(ANSWER.pack(len(description), len(encoded)) + description + encoded)
    answers.flush()


def _make(raw: bytes, max_pixels: int, min_side: int, exact: bool, is_srgb: Callable[[bytes], bool]) -> EncodedImage:
    return keep(raw, max_pixels, min_side, is_srgb, is_guarded=True) or convert(raw, max_pixels, min_side, exact)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
