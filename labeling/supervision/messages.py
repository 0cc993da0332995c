"""Python values over a socket: pickled, large buffers beside the pickle so that they are copied once."""

from __future__ import annotations

import pickle
import socket
import struct
from typing import Any

_COUNT = struct.Struct("<Q")


def send(connection: socket.socket, value: Any) -> None:
    """Send a value. What cannot be pickled raises before anything is sent."""
    buffers: list[pickle.PickleBuffer] = []
    data = pickle.dumps(value, protocol=5, buffer_callback=buffers.append)
    views = [buffer.raw() for buffer in buffers]
    sizes = [len(data), *(view.nbytes for view in views)]
    connection.sendall(struct.pack(f"<{len(sizes) + 1}Q", len(sizes), *sizes) + data)
    for view in views:
        connection.sendall(view)


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
