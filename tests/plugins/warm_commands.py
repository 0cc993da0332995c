"""`onediffusion` for tests that type many commands: each a process of its own, forked from one that has imported all.

A command takes one to five seconds of a core to import what it needs; cold ones are run by tests/test_journey.py,
tests/pipelines/test_output.py and others.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

MODULES = ("ray.data", "model.pipeline", "pipelines.label", "pipelines.train", "pipelines.evaluate", "pipelines.views")
MOST_BYTES = 1 << 20  # of a command with its environment
CLIENT = """#!{python} -IS
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
server.connect({address!r})
request = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environment": dict(os.environ)}}
socket.send_fds(server, [json.dumps(request).encode()], [0, 1, 2])
sys.exit(server.recv(1)[0])
"""


@contextmanager
def warm_commands(environment: Mapping[str, str]) -> Iterator[Path]:
    """A folder for PATH that has the command. environment: what is imported is imported with this."""
    with tempfile.TemporaryDirectory(prefix="warm-") as folder:
        address = Path(folder, "socket")
        client = Path(folder, "onediffusion")
        client.write_text(CLIENT.format(python=sys.executable, address=str(address)))
        client.chmod(0o755)
        server = subprocess.Popen([sys.executable, __file__, address], env=dict(environment))
        deadline = time.monotonic() + 120
        while not address.exists():
            assert server.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        try:
            yield client.parent
        finally:
            server.kill()
            server.wait()


def serve(address: str) -> None:
    """Run commands until this process is killed."""
    import importlib

    from cluster.ray_environment import prepare_ray

    prepare_ray()  # Ray reads it when it is imported
    for module in MODULES:
        importlib.import_module(module)
    gc.freeze()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(address)
    listener.listen()
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            listener.close()
            run(connection)
        connection.close()
        reap()


def run(connection: socket.socket) -> NoReturn:
    """Run a command in a child of this process and tell its exit code; both end here."""
    message, files, _, _ = socket.recv_fds(connection, MOST_BYTES, 3)
    child = os.fork()
    if child:
        for file in files:
            os.close(file)
        connection.sendall(bytes([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) % 256]))
        os._exit(0)
    connection.close()
    request = json.loads(message)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.argv = [str(Path(sys.executable).with_name("onediffusion")), *request["arguments"]]
    from pipelines.cli import main

    code: Any = 1
    try:
        main()
    except SystemExit as end:
        code = end.code
    except BaseException:
        traceback.print_exc()
    # What Python does at its end, but for taking all modules apart, which takes longer than the command.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


def reap() -> None:
    """Take note of children that have ended, so that they do not stay as zombies."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass


if __name__ == "__main__":
    serve(sys.argv[1])
