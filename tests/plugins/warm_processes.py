"""`onediffusion` and workers of Ray for tests that start many: processes of their own, forked from one that has
imported all.

A command takes one to five seconds of a core to import what it needs, a worker of Ray half a second, and five where it
trains. Cold ones are run by tests/test_journey.py, tests/pipelines/test_output.py, and wherever a test starts a Ray of
its own.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

MODULES = (
    "ray.data",
    "ray.train.v2.api.data_parallel_trainer",
    "model.pipeline",
    "model.codecs",
    "model.text",
    "pipelines.label",
    "pipelines.labeling_job.label_process",
    "pipelines.labeling_job.shard_writer",
    "pipelines.train",
    "pipelines.evaluate",
    "pipelines.views",
    "training.worker",
    "training.checkpoint.saving",
    "training.checkpoint.state",
    "accelerate",
)
# What packages read when they are imported, and where Python finds them: with others of these a process starts cold.
READ_AT_IMPORT = ("PYTHONPATH", "OMP_NUM_THREADS", "HF_", "TRANSFORMERS_", "TORCH")
MOST_BYTES = 1 << 20  # of a command with its environment
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = {{"kind": {kind!r}, "arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
sys.exit((server.recv(1) or b"\\1")[0])
"""


@dataclass(frozen=True)
class Warm:
    """A folder for PATH that has the command, and the script that stands for `cluster.ray_worker`."""

    commands: Path
    worker_start: Path


@contextmanager
def warm_processes(environment: Mapping[str, str]) -> Iterator[Warm]:
    """A process that others are forked from. environment: what is imported is imported with this."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        address = Path(folder, "socket")
        warm = Warm(Path(folder), Path(folder, "ray_worker.py"))
        for kind, path in (("command", warm.commands / "onediffusion"), ("worker", warm.worker_start)):
            path.write_text(CLIENT.format(python=sys.executable, address=str(address), kind=kind))
            path.chmod(0o755)
        server = subprocess.Popen([sys.executable, __file__, address], env=dict(environment), start_new_session=True)
        deadline = time.monotonic() + 400
        while not address.exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        try:
            yield warm
        finally:
            server.kill()
            server.wait()


class _Server:
    """Forks a process for every client, and tells it the exit code; a client that goes away takes its process along."""

    def __init__(self, address: str) -> None:
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.selector = selectors.DefaultSelector()
        self.clients: dict[int, socket.socket] = {}  # by the process
        self.wake = socket.socketpair()
        for end in self.wake:
            end.setblocking(False)
        self.listener.bind(address)
        self.listener.listen(64)

    def serve(self) -> NoReturn:
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self.wake[1].fileno(), warn_on_full_buffer=False)
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.wake[0], selectors.EVENT_READ, self.reap)
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)

    def accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        message, files, _, _ = socket.recv_fds(client, MOST_BYTES, 3)
        if not message:
            client.close()
            return
        child = os.fork()
        if child == 0:
            self.leave(client)
            run(json.loads(message), files)
        for file in files:
            os.close(file)
        self.clients[child] = client
        self.selector.register(client, selectors.EVENT_READ, self.end)

    def leave(self, client: socket.socket) -> None:
        """Forget the server, in a process that was forked from it."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.selector.close()
        for one in (self.listener, client, *self.wake, *self.clients.values()):
            one.close()

    def end(self, client: socket.socket) -> None:
        """A client that says something has ended. It may have been told of its process's end a moment ago."""
        for child, one in self.clients.items():
            if one is client:
                self.selector.unregister(client)
                with suppress(ProcessLookupError):
                    os.kill(child, signal.SIGTERM)

    def reap(self, wake: socket.socket) -> None:
        with suppress(BlockingIOError):
            wake.recv(4096)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                client = self.clients.pop(ended[0])
                with suppress(KeyError, ValueError):
                    self.selector.unregister(client)
                with suppress(OSError):
                    client.send(bytes([os.waitstatus_to_exitcode(ended[1]) % 256]))
                client.close()


def run(request: Mapping[str, Any], files: list[int]) -> NoReturn:
    """Become what a client asks for, in a process group of its own: Ray ends the group of a worker that it ends."""
    os.setpgid(0, 0)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    before = read_at_import()
    os.environ.clear()
    os.environ.update(request["environment"])
    {"command": run_command, "worker": run_worker}[request["kind"]](request["arguments"], before)


def read_at_import() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name.startswith(READ_AT_IMPORT)}


def run_command(arguments: list[str], imported_with: Mapping[str, str]) -> NoReturn:
    if read_at_import() != imported_with:
        os.execv(sys.executable, [sys.executable, "-m", "pipelines", *arguments])
    from pipelines.cli import main

    sys.argv = [str(Path(sys.executable).with_name("onediffusion")), *arguments]
    run_to_end(main)


def run_worker(arguments: list[str], imported_with: Mapping[str, str]) -> NoReturn:
    from cluster.ray_worker import worker_command

    command = worker_command(arguments)
    if read_at_import() != imported_with:  # as where Ray has unpacked the code of a job
        os.execv(sys.executable, [sys.executable, *command])
    while command[0].startswith("-"):  # of the interpreter
        del command[0]
    sys.argv = command
    sys.path.insert(0, str(Path(command[0]).parent))
    run_to_end(lambda: runpy.run_path(command[0], run_name="__main__"))


def run_to_end(main: Callable[[], object]) -> NoReturn:
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
        code = 1
    # What Python does at its end, but for taking all modules apart, which takes longer than a command.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def serve(address: str) -> None:
    """Run what clients ask for until this process is killed."""
    import importlib

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from cluster.ray_environment import prepare_ray

    prepare_ray()  # Ray reads it when it is imported
    for module in MODULES:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    _Server(address).serve()


if __name__ == "__main__":
    serve(sys.argv[1])
