"""Labelers that do something wrong on one row, or everywhere; tests name them bad_labelers:CLASS."""

from __future__ import annotations

import ctypes
import mmap
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa

from labeling.labeler import Labeler, Parameters, Prepared, Row, RowError
from model.inputs import InputError


def rows(count: int = 8) -> list[dict[str, Any]]:
    """Rows "r0", "r1", … whose pictures have the gray value of their number."""
    return [{"id": f"r{n}", "images.image": np.full((2, 2, 3), n, np.uint8)} for n in range(count)]


class BadParameters(Parameters):
    """what: what goes wrong; row: id of the row for which it does, "" for every row; file: where calls are counted."""

    what: str = ""
    row: str = ""
    file: str = ""


class Bad(Labeler):
    """Mean gray value of a picture, but for what it does wrong on one row."""

    name: ClassVar[str] = "bad"
    version: ClassVar[int] = 1
    schema: ClassVar[pa.Schema] = pa.schema([("value", pa.float32())])
    Parameters: ClassVar[type[Parameters]] = BadParameters
    batch_size = 4

    def load(self) -> None:
        if self.parameters.what == "load":
            raise RuntimeError("the weights\nare not there")
        if self.parameters.what == "load-input":
            raise InputError("bad.what: no such weights; take others")
        if self.parameters.what == "load-crash":
            os.abort()

    def label_row(self, row: Row) -> Row:
        value = {"value": float(row["images.image"].mean())}
        if self.parameters.row in (row["id"], ""):
            return getattr(self, "_" + (self.parameters.what or "right").replace("-", "_"))(value)
        return value

    def _right(self, value: Row) -> Row:
        return value

    _load = _load_input = _load_crash = _together = _right

    def _abort(self, value: Row) -> None:
        os.abort()

    def _segfault(self, value: Row) -> None:
        ctypes.string_at(0)

    def _exit(self, value: Row) -> None:
        os._exit(3)

    def _system_exit(self, value: Row) -> None:
        sys.exit("I am\ndone")

    def _interrupt(self, value: Row) -> None:
        raise KeyboardInterrupt

    def _hang(self, value: Row) -> None:
        while True:
            pass

    def _hang_outside_python(self, value: Row) -> None:
        ctypes.PyDLL(None).sleep(10**6)  # holds the interpreter's lock, so that no thread of it can run

    def _memory(self, value: Row) -> None:
        held = b"x" * (30 << 30)
        del held

    def _shared_memory(self, value: Row) -> None:
        """Memory that no limit of the process counts, taken until somebody stops it."""
        held = mmap.mmap(-1, 3 << 30)
        while True:
            held.write(bytes(50 << 20))
            time.sleep(0.02)

    def _memory_error(self, value: Row) -> None:
        bytearray(1 << 60)

    def _raise(self, value: Row) -> None:
        raise ValueError("not this one,\nat 0x7f3b12345678")

    def _row_error(self, value: Row) -> None:
        raise RowError("too dark")

    def _type(self, value: Row) -> Row:
        return {"value": "bright"}

    def _key(self, value: Row) -> Row:
        return {"brightness": 1.0}

    def _missing_key(self, value: Row) -> Row:
        return {}

    def _more_keys(self, value: Row) -> Row:
        return {**value, "valve": 1}

    def _none(self, value: Row) -> None:
        return None

    def _print(self, value: Row) -> Row:
        for stream in (1, 2):
            os.write(stream, b"x" * 5_000_000 + b"\n")
        return value

    def _once(self, value: Row) -> Row:
        """Abort in the first process that gets here."""
        if count_call(self.parameters.file) == 1:
            os.abort()
        return value

    def _processes(self, value: Row) -> None:
        """Leave processes behind: a child, one in a session of its own, and a thread; then die."""
        pids = [subprocess.Popen(["sleep", "1000"], start_new_session=new).pid for new in (False, True)]
        threading.Thread(target=time.sleep, args=(1000,)).start()
        with Path(self.parameters.file).open("a") as file:
            file.write("".join(f"{pid}\n" for pid in pids))
        os.abort()


class BadBatches(Bad):
    """The same, labeled in batches; its values depend on how many rows are in one."""

    name: ClassVar[str] = "batches"

    def label(self, rows: list[Row]) -> list[Row]:
        if self.parameters.what in ("few", "many", "no-list") and any(row["id"] == self.parameters.row for row in rows):
            few = [{"value": 0.0}] * (len(rows) - 1)
            return {"few": few, "many": [*few] * 3, "no-list": None}[self.parameters.what]  # type: ignore[return-value]
        if self.parameters.what == "together" and len(rows) > 1:
            os.abort()
        results = [self.label_row(row) for row in rows]
        for result in results:
            if isinstance(result, dict) and isinstance(result.get("value"), float):
                result["value"] += len(rows)
        return results


class BadOnManyParameters(Parameters):
    """rows: by id, what goes wrong."""

    rows: dict[str, str]


class BadOnMany(Bad):
    """The same, doing several things wrong."""

    name: ClassVar[str] = "many"
    Parameters: ClassVar[type[Parameters]] = BadOnManyParameters

    def load(self) -> None:
        pass

    def label_row(self, row: Row) -> Row:
        what = self.parameters.rows.get(row["id"], "right")
        return Bad("bad", BadParameters(what=what, row=row["id"])).label_row(row)


class Leaking(Bad):
    """The same, but it never lets go of what it takes for a row."""

    name: ClassVar[str] = "leaking"

    def load(self) -> None:
        self.held: list[Any] = []

    def label_row(self, row: Row) -> Row:
        self.held.append(np.empty(1_500_000_000, np.uint8))
        return super().label_row(row)


class BadDevice(Labeler):
    """Three steps, the second on a device that fails as CUDA does: once it has, every later call fails too."""

    name: ClassVar[str] = "device"
    version: ClassVar[int] = 1
    schema: ClassVar[pa.Schema] = pa.schema([("value", pa.float32())])
    Parameters: ClassVar[type[Parameters]] = BadParameters
    batch_size = 4

    def load(self) -> None:
        self.poisoned = False
        if self.parameters.what == "load":
            raise RuntimeError("No CUDA GPUs are available")

    def prepare(self, row: Row) -> Prepared:
        if self.parameters.what == "prepare" and row["id"] == self.parameters.row:
            raise RowError("nothing to prepare")
        return Prepared((row["id"], np.float32(row["images.image"].mean())), row["id"])

    def infer(self, inputs: Sequence[Any]) -> list[Any]:
        what, rows = self.parameters.what, [row for row, _ in inputs]
        asked = self.parameters.row in (*rows, "")
        if self.parameters.file:
            count_call(self.parameters.file)
        if what == "small" and len(inputs) > 1:
            import torch

            raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        if what == "too-large" and asked:
            raise RuntimeError("CUDA error: out of memory")
        if what == "assert" and (asked or self.poisoned):
            self.poisoned = True
            raise RuntimeError("CUDA error: device-side assert triggered\nCompile with `TORCH_USE_CUDA_DSA`")
        if what == "once" and asked and count_call(self.parameters.file + ".once") == 1:
            raise RuntimeError("CUDA error: unspecified launch failure")
        if what == "infer" and asked:
            raise ValueError("no such shape")
        if what == "infer-abort" and asked:
            os.abort()
        return [value for _, value in inputs]

    def finish(self, output: Any, context: Any) -> Row:
        if self.parameters.what == "finish" and context == self.parameters.row:
            raise ValueError("nothing to finish")
        return {"value": output}


def count_call(file: str) -> int:
    """How often this was called with a file, in all processes."""
    with Path(file).open("ab") as counted:
        counted.write(b".")
    return Path(file).stat().st_size
