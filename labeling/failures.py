"""Why a row has no label, and which errors are not the row's but those of a device or a process."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from dataclasses import dataclass

from labeling.labeler import RowError
from model.inputs import WorkFailed, one_line

LONGEST_REASON = 500  # characters of a reason in a shard
_ADDRESS = re.compile(r"\b0x[0-9a-fA-F]{6,}\b")  # differs from run to run
_NO_HOST_MEMORY = re.compile(r"DefaultCPUAllocator: can't allocate memory|not enough memory: you tried to allocate")
_NO_DEVICE_MEMORY = re.compile(
    r"(CUDA|HIP|XPU|MPS|[Aa]ccelerator)[\w ]*out of memory|(CUDA|HIP) error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
    r"|CUDNN_STATUS_ALLOC_FAILED|(cuda|hip)ErrorMemoryAllocation|CUDA_ERROR_OUT_OF_MEMORY|BFCArena.*Failed to allocate"
)
_DEVICE = re.compile(
    r"CUDA (driver |unknown |runtime )?(error|failure)|device-side assert|HIP error|hipError\w+|cuda(Error|_ERROR)\w+"
    r"|CUDA_ERROR_\w+|cuDNN (error|failure)|CUDNN_STATUS_\w+|CUDNN failure|CUBLAS_STATUS_\w+|CUBLAS failure"
    r"|CUSPARSE_STATUS_\w+|CUSOLVER_STATUS_\w+|cusolver error|cuFFT error|CUFFT_\w+|NCCL (error|failure)|nccl\w+Error"
    r"|miopenStatus\w+|MIOpen|rocblas_status\w+|[Tt]riton Error \[(CUDA|HIP)\]|No (CUDA|HIP) GPUs are available"
    r"|no kernel image is available|unspecified launch failure|misaligned address"
)


@dataclass(frozen=True)
class Failure:
    """What stands where a row's label would: the reason that its `error` column gets.

    expected: whether the labeler said so by RowError, so that nothing is wrong with the labeler or its model.
    """

    reason: str
    expected: bool = False

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure of a row for which a labeler raised `error`."""
        if isinstance(error, RowError):
            return cls(one_line(error, LONGEST_REASON), expected=True)
        text = one_line(error)
        name = type(error).__name__
        text = name if text in ("", name) else f"{name}: {text}"
        return cls(one_line(_ADDRESS.sub("0x…", text), LONGEST_REASON))


class DeviceError(WorkFailed):
    """A device has failed, not a row: the process must end, and its rows are to be tried in another one."""


class DeviceMemoryError(DeviceError):
    """The device has too little memory for a call: fewer rows at once may do."""


class ProcessError(WorkFailed):
    """The process of the labelers ended, again and again, for the sake of no row."""


class WorkError(WorkFailed):
    """What work in a supervised process raised, in one line: "TypeName: message (file.py, line 7)".

    traceback: the whole text.
    """

    def __init__(self, line: str, traceback: str = "") -> None:
        super().__init__(line, traceback)
        self.line = line
        self.traceback = traceback

    def __str__(self) -> str:
        return self.line


def device_error(error: BaseException) -> DeviceError | None:
    """The device's failure that an error is or was raised for, None where it is no device's.

    Found by the names that torch gives (OutOfMemoryError, AcceleratorError) and by the words with which torch,
    onnxruntime and Triton report errors of CUDA, HIP and their libraries.
    """
    for one in _with_causes(error):
        if isinstance(one, DeviceError):
            return one
        text = one_line(one, LONGEST_REASON)
        names = {kind.__name__ for kind in type(one).__mro__ if kind.__module__.partition(".")[0] == "torch"}
        if "OutOfMemoryError" in names or _NO_DEVICE_MEMORY.search(text):
            return DeviceMemoryError(text)
        if "AcceleratorError" in names or _DEVICE.search(text):
            return DeviceError(text)
    return None


def is_memory_error(error: BaseException) -> bool:
    """Whether the machine (not a device) had no memory for what a labeler asked for."""
    return any(
        isinstance(one, MemoryError)
        or (isinstance(one, OSError) and one.errno == errno.ENOMEM)
        or _NO_HOST_MEMORY.search(str(one))
        for one in _with_causes(error)
    )


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
