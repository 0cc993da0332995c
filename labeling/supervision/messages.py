"""Python values over a socket: pickled, large buffers beside the pickle so that they are copied once."""

from __future__ import annotations

import pickle
import socket
import struct
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Ahead:
    """A message to a worker that is busy: what a later task needs."""

    value: Any


_COUNT = struct.Struct("<Q")


def send(connection: socket.socket, value: Any, patient: bool = False) -> None:
    """Send a value. What cannot be pickled raises before anything is sent.

    patient: whether to wait for a reader beyond the time-out of the connection: half a message would spoil the next.
    """
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = [len(data), *(view.nbytes for view in views)]
    for view in (memoryview(struct.pack(f"<{len(sizes) + 1}Q", len(sizes), *sizes) + data), *views):
        _put(connection, view, patient)


def _put(connection: socket.socket, view: memoryview, patient: bool) -> None:
    while len(view):
        try:
            view = view[connection.send(view) :]
        except TimeoutError:
            if not patient:
                raise


def receive(connection: socket.socket) -> Any:
    """The next value. Raises EOFError where the other side has ended."""
    count = _COUNT.unpack(_take(connection, _COUNT.size))[0]
    sizes = struct.unpack(f"<{count}Q", _take(connection, _COUNT.size * count))
    data, *buffers = [_take(connection, size) for size in sizes]
    return pickle.loads(data, buffers=buffers)  # noqa: S301 (of our own process)


def _take(connection: socket.socket, size: int) -> bytearray:
    taken = bytearray(size)
    view = memoryview(taken)
    while len(view):
        count = connection.recv_into(view)
        if not count:
            raise EOFError("the other side has ended")
        view = view[count:]
    return taken
