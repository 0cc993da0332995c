"""Watching over the Ray that was started here: when it ends, its C++ code soon ends this process, without a word."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from cluster.ray_internals import own_node
from model.inputs import WorkFailed

AGAIN = "started again, it goes on"
SIGNAL = signal.SIGUSR2  # not SIGINT, which processes in the background may ignore
LOOK_SECONDS = 0.5
LAST_SECONDS = 6.0  # that this process may take to end in good order; Ray's C++ code takes it down after about ten


class RayEnded(KeyboardInterrupt):
    """Raised in the main thread when Ray has ended. While it waits in Ray's C++ code, it gets no other exceptions."""


class NodeLost(WorkFailed):
    """Work failed because a machine, or Ray on it, went away. Nothing is wrong with it, and it can be started again."""


class OwnRay:
    """The processes of a Ray that was started here. ended: which of them has died, "" while all live."""

    def __init__(self) -> None:
        node = own_node()  # a cluster's own node is none of this process's
        self.ended = ""
        self._node = node
        self._processes = {
            name: info.process for name in ("raylet", "gcs_server") for info in node.all_processes.get(name, [])
        }

    def loss(self) -> NodeLost:
        """What a person is told."""
        return NodeLost(f"Ray on this machine has ended (its {self.ended} died: killed, or out of memory?); {AGAIN}")

    def shut_down(self) -> None:
        """End it in good order, and then what is left of its workers.

        One that hangs in Ray's C++ code while it exits would stay, and keep its memory, until someone finds it.
        """
        import psutil
        import ray

        workers = []
        with suppress(psutil.NoSuchProcess):
            workers = psutil.Process(self._processes["raylet"].pid).children(recursive=True)
        ray.shutdown()
        for worker in workers:
            with suppress(psutil.NoSuchProcess):
                worker.kill()

    def end(self) -> None:
        """End what is left of it, without waiting for an answer."""
        self._node.kill_all_processes(check_alive=False, allow_graceful=False)

    def watch(self, over: threading.Event) -> None:
        """Interrupt this process as soon as one of the processes has ended, until `over`."""
        while not over.wait(LOOK_SECONDS):
            self.ended = next((name for name, one in self._processes.items() if one.poll() is not None), "")
            if self.ended:
                if signal.getsignal(SIGNAL) is _raise:
                    os.kill(os.getpid(), SIGNAL)
                if not over.wait(LAST_SECONDS):  # the main thread waits for what cannot come
                    print(f"onediffusion: {self.loss()}", file=sys.stderr, flush=True)
                    self.end()
                    os._exit(1)


@contextmanager
def watched(own: OwnRay) -> Iterator[None]:
    """Raise NodeLost where the Ray ends meanwhile, in the place of whatever came of it."""
    over = threading.Event()
    before = signal.getsignal(SIGNAL)
    in_main = threading.current_thread() is threading.main_thread()
    if in_main:
        signal.signal(SIGNAL, _raise)
    watching = threading.Thread(target=own.watch, args=(over,), daemon=True)
    watching.start()
    try:
        yield
    except BaseException as error:
        if own.ended:
            raise own.loss() from error
        raise
    finally:
        over.set()
        if in_main:
            signal.signal(SIGNAL, before)


def _raise(signal_number: int, frame: FrameType | None) -> None:
    raise RayEnded
