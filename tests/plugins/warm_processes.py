"""`onediffusion`, workers of Ray, and what labels below them, for tests that start many: processes of their own, forked
from one that has imported all.

A command takes one to five seconds of a core to import what it needs, a worker of Ray half a second, and five where it
trains or makes latents. What differs from a process that starts cold: all is imported already, so that a forgotten
import does not show; strings have the hashes, and so sets the order, of the process that is forked; the process is its
child, and has its command line and environment in /proc. So what is about a process's start, its signals, or about two
processes that give the same bytes, starts cold: tests/test_journey.py, tests/pipelines/test_output.py,
tests/pipelines/test_kill.py, jobs that are submitted, and wherever a test starts a Ray of its own. A process whose
environment has other values of what was read while all was imported starts cold too.
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

# All but Ray, which reads its settings and the job of a worker when it is imported: it takes half a second after these.
MODULES = (
    "boto3",
    "cv2",
    "duckdb",
    "pandas",
    "accelerate",
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
)
# Read at import, but not through os.environ: by the interpreter, the C library and native code. What Python code reads
# is noted while it is imported.
READ_BY_NATIVE_CODE = ("PYTHON", "LD_", "LANG", "LC_", "TZ", "MALLOC_", "OMP_", "MKL_", "OPENBLAS_", "KMP_", "GRPC_")
READ_AGAIN = {"COLUMNS", "LINES", "PYTHONBREAKPOINT"}  # whenever they are needed; Ray sets the last
MOST_BYTES, MOST_FILES = 1 << 20, 16  # of a command with its environment
CLIENT = """#!{python} -IS
import json, os, signal, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = {{"kind": {kind!r}, "arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
files = [0, 1, 2, *map(int, {more})]
socket.send_fds(server, [json.dumps(request).encode()], files)
for file in files[3:]:
    os.close(file)
answer = server.recv(9)
if not answer:
    sys.exit("the process that forks commands told no exit code")
code = int(answer)
if code < 0:  # a signal ended it
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
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
            path.write_text(CLIENT.format(python=sys.executable, address=str(address), kind=kind, more="()"))
            path.chmod(0o755)
        command = [sys.executable, __file__, address]
        server = subprocess.Popen(command, stdin=subprocess.PIPE, env=dict(environment), start_new_session=True)
        deadline = time.monotonic() + 400
        while not address.exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        try:
            yield warm
        finally:
            server.kill()
            server.communicate()


class _ImportedWith:
    """The environment that all was imported with."""

    def __init__(self) -> None:
        self.states = [dict(os.environ)]  # before and after
        self.names: set[str] = set()

    @contextmanager
    def noted(self) -> Iterator[None]:
        """Within, names are noted that are looked up in os.environ. What reads all of it is not: it copies it."""
        environment = os.environ
        usual, names = type(environment), self.names

        class OfAll(str):
            """A name that is not asked for by itself."""

        class Noting(usual):  # type: ignore[misc, valid-type]
            def __getitem__(self, name: str) -> str:
                if not isinstance(name, OfAll):
                    names.add(name)
                return str(super().__getitem__(name))

            def __contains__(self, name: object) -> bool:
                names.add(str(name))
                return bool(super().__contains__(name))

            def __iter__(self) -> Iterator[str]:
                return map(OfAll, super().__iter__())

        environment.__class__ = Noting
        try:
            yield
        finally:
            environment.__class__ = usual
        self.states.append(dict(environment))

    def same(self) -> bool:
        """Whether what was read has the same values in this process."""
        now = {*os.environ, *self.states[0]}
        names = (self.names | {name for name in now if name.startswith(READ_BY_NATIVE_CODE)}) - READ_AGAIN
        return all(os.environ.get(name) in [state.get(name) for state in self.states] for name in names)

    def complete(self) -> None:
        """Do what else imports would have done here: set variables, and seed NumPy's own numbers."""
        import numpy as np

        for name, value in self.states[-1].items():
            if self.states[0].get(name) != value:
                os.environ.setdefault(name, value)
        np.random.seed()


class _Server:
    """Forks a process for every client, and tells it the exit code; a client that goes away takes its process along."""

    def __init__(self, address: str, imported: _ImportedWith) -> None:
        self.address = address
        self.imported = imported
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
        # A pipe from the tests, which breaks when they end, however they do. A signal at the parent's death would come
        # when the thread of the tests ends that needed this process first.
        self.selector.register(sys.stdin, selectors.EVENT_READ, lambda _: os._exit(0))
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.selector.register(self.wake[0], selectors.EVENT_READ, self.reap)
        while True:
            for key, _ in self.selector.select():
                key.data(key.fileobj)

    def accept(self, listener: socket.socket) -> None:
        client, _ = listener.accept()
        message, files, _, _ = socket.recv_fds(client, MOST_BYTES, MOST_FILES)
        if not message:
            client.close()
            return
        child = os.fork()
        if child == 0:
            self.leave(client)
            _Forked(json.loads(message), files, self.imported, self.address).run()
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
                    client.send(b"%d" % os.waitstatus_to_exitcode(ended[1]))
                client.close()


class _Forked:
    """A process that was forked for a client, with what it asks for and its files."""

    def __init__(self, request: Mapping[str, Any], files: list[int], imported: _ImportedWith, address: str) -> None:
        self.request, self.files = request, files
        self.imported, self.address = imported, address
        self.arguments: list[str] = request["arguments"]

    def run(self) -> NoReturn:
        """Become what the client asks for."""
        os.setsid()  # in a process group of its own: Ray ends the group of a worker that it ends
        for number in range(3):
            os.dup2(self.files[number], number)
            os.close(self.files[number])
        sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())  # type: ignore[union-attr]
        os.chdir(self.request["folder"])
        os.environ.clear()
        os.environ.update(self.request["environment"])
        {"command": self.command, "worker": self.worker, "label": self.label}[self.request["kind"]]()
        os._exit(0)

    def start_cold_if_unlike(self, *command: str) -> None:
        """Become a cold process where the environment is not the one that all was imported with."""
        if not self.imported.same():
            os.execv(sys.executable, [sys.executable, *command])
        self.imported.complete()

    def command(self) -> None:
        """A command line."""
        self.start_cold_if_unlike("-m", "pipelines", *self.arguments)
        from pipelines.cli import main

        sys.argv = [str(Path(sys.executable).with_name("onediffusion")), *self.arguments]
        run_to_end(main)

    def worker(self) -> None:
        """A worker of Ray. The processes that label for it are forked too."""
        from cluster.ray_worker import worker_command
        from labeling.supervision import worker_handle

        command = worker_command(self.arguments)
        self.start_cold_if_unlike(*command)  # as where Ray has unpacked the code of a job
        assert worker_handle._STARTS
        worker_handle._STARTS = CLIENT.format(python="", address=self.address, kind="label", more="sys.argv[2:6]")
        while command[0].startswith("-"):  # of the interpreter
            del command[0]
        sys.argv = command
        sys.path.insert(0, str(Path(command[0]).parent))
        run_to_end(lambda: runpy.run_path(command[0], run_name="__main__"))

    def label(self) -> None:
        """The processes below a supervisor of labels."""
        from labeling.supervision.worker_handle import _STARTS
        from labeling.supervision.worker_main import main

        path, *arguments = self.arguments
        given = self.files[3:]
        arguments[: len(given)] = map(str, given)
        for file in given:
            os.set_inheritable(file, True)
        self.start_cold_if_unlike("-P", "-c", _STARTS, path, *arguments)
        sys.path[:] = json.loads(path)
        main(arguments)


def run_to_end(main: Callable[[], object]) -> NoReturn:
    code: Any = 0
    try:
        main()
    except SystemExit as end:
        code = end.code
        if not isinstance(code, int | None):
            print(code, file=sys.stderr)
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
    """Run what clients ask for until this process is killed or its standard input ends."""
    import importlib

    sys.path[0] = str(Path(__file__).parents[2])  # in the place of this script's folder
    imported = _ImportedWith()
    with imported.noted():
        for module in MODULES:
            importlib.import_module(module)
    assert "ray" not in sys.modules
    gc.collect()
    gc.freeze()
    _Server(address, imported).serve()


if __name__ == "__main__":
    serve(sys.argv[1])
