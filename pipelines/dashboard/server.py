"""`onediffusion dashboard`: Dagster's processes, kept running, behind a proxy on loopback."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from model.inputs import InputError, one_line
from pipelines.dashboard.instance import SETTINGS, end_lost_runs, environment
from pipelines.dashboard.processes import end_sessions
from pipelines.dashboard.proxy import LOOPBACK, Proxy, aside
from pipelines.dashboard.sheets import drop_old_pictures
from pipelines.dashboard.snapshots import LOOK_SECONDS, NOT_YET, refresh, shape, snapshots
from pipelines.dashboard.submissions import SUBMISSIONS
from pipelines.dashboard.tokens import Role, load_tokens
from pipelines.dashboard.tracked_assets import (
    POLICIES,
    Kind,
    Policy,
    folder,
    forget,
    place_kind,
    places,
    remember,
    worked_on,
)

PORT = 3000
START_SECONDS, STOP_SECONDS = 90.0, 15.0
MOST_DEATHS, DEATH_SECONDS = 5, 120.0
LOCATION = "onediffusion"
_OWNER = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+|team:\S+")
_RELOAD = """mutation($name: String!) { reloadRepositoryLocation(repositoryLocationName: $name) { __typename
  ... on WorkspaceLocationEntry { locationOrLoadError { __typename ... on PythonError { message } } } } }"""
Say = Callable[[str], None]


def dashboard(
    addresses: Sequence[str],
    host: str = "127.0.0.1",
    port: int = PORT,
    token_file: str | None = None,
    owner: str = "",
    new_pictures: str | None = None,
    forgotten: Sequence[str] = (),
    say: Say = print,
) -> None:
    """Serve the dashboard until Ctrl-C or SIGTERM.

    addresses: datasets and runs to add to those it knows; forgotten: names to take out. owner, new_pictures: of those
    added now (of all, where none are). Raises InputError for what a user can mend; what is out of reach is only said.
    """
    if host not in LOOPBACK and not token_file:
        raise InputError(f"--host {host}: others could steer your jobs from there; name a --token-file as well")
    policy = next((policy for policy in POLICIES if policy == new_pictures), None)
    if new_pictures and policy is None:
        raise InputError(f"--new-pictures {new_pictures}: it is one of {', '.join(POLICIES)}")
    if owner and not _OWNER.fullmatch(owner):
        raise InputError(f"--owner {owner}: give an e-mail address, or team:NAME")
    tokens = load_tokens(token_file, say) if token_file else None
    try:
        with _alone() as note:
            if host not in LOOPBACK:
                say(f"--host {host}: tokens and pages travel there unencrypted; put a proxy that speaks TLS before it")
            _choose(addresses, owner, policy, forgotten)
            _look(say)
            drop_old_pictures()
            roles: tuple[Role, ...] = ("operate", "read") if tokens else ("operate",)
            with tempfile.TemporaryDirectory(prefix="onediffusion-") as sockets:
                processes = Processes(Path(sockets), roles, say)
                proxy = Proxy({role: processes.socket(_WEB[role]) for role in roles}, tokens)
                asyncio.run(_serve(processes, proxy, host, _free_port(host, port, say), note, say))
    except _Served as served:
        if not (addresses or forgotten or owner or policy):
            raise
        _choose(addresses, owner, policy, forgotten)
        say(f"{served}; it shows in some seconds what was changed here, and is otherwise as it was started")


_WEB: dict[Role, str] = {"operate": "web", "read": "read"}


class _Served(InputError):
    """Another process serves the dashboard."""


def _choose(addresses: Sequence[str], owner: str, policy: Policy | None, forgotten: Sequence[str]) -> None:
    """Add places and take others out. Raises InputError before anything is changed."""
    found = [(_kind(address), address) for address in addresses]
    forget(forgotten)
    remember(found or [(place.kind, place.address) for place in places()], owner, policy, asked=True)


def _kind(address: str) -> Kind:
    found: list[Kind | Exception] = []

    def ask() -> None:
        try:
            found.append(place_kind(address))
        except Exception as error:  # raised where it is asked for
            found.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(LOOK_SECONDS)
    kind = found[0] if found else "unknown"
    if not isinstance(kind, Exception):
        return kind
    said = str(kind)
    if not isinstance(kind, InputError) or "neither a dataset nor a run" in said or "only local paths" in said:
        raise kind
    return "unknown"  # out of reach: its reason is said with those of the others


def _look(say: Say) -> None:
    """Look at all places, with those that jobs were sent to work on and those that runs read."""
    remember(worked_on())
    refresh()
    remember(("dataset", address) for snapshot in snapshots() for address, _ in snapshot.reads)
    refresh([one.place.name for one in snapshots() if one.trouble == NOT_YET])
    for snapshot in snapshots():
        if snapshot.trouble:
            say(f"{snapshot.place.address}: {snapshot.trouble}")


@contextmanager
def _alone() -> Iterator[Callable[[str], None]]:
    """Hold the dashboard's folder; yields what notes the address. Raises _Served when another process holds it."""
    with (folder() / "served").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise _Served(f"the dashboard is served already, at {file.read().strip() or 'another port'}") from None

        def note(address: str) -> None:
            file.seek(0)
            file.truncate()
            file.write(address)
            file.flush()

        yield note
        note("")


def _free_port(host: str, port: int, say: Say) -> int:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host.strip("[]"), port))
            return int(probe.getsockname()[1])
        except PermissionError:
            raise InputError(f"--port {port}: only the system may listen there; take one above 1023") from None
        except OSError:
            pass
    with socket.socket(family) as probe:
        try:
            probe.bind((host.strip("[]"), 0))
        except OSError as error:
            raise InputError(f"--host {host}: cannot listen there ({error.strerror})") from None
        free = int(probe.getsockname()[1])
    say(f"port {port} is taken, so it is {free}")
    return free


@dataclass
class Processes:
    """Dagster's processes: its code server, a web server for each role, its daemon."""

    folder: Path
    roles: Sequence[Role]
    say: Say
    running: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _deaths: dict[str, list[float]] = field(default_factory=dict)
    _asked: set[str] = field(default_factory=set)

    @property
    def names(self) -> list[str]:
        return ["code", *(_WEB[role] for role in self.roles), "daemon"]

    def socket(self, name: str) -> Path:
        """What a process listens on. Short, since such names are limited; in a folder of this user alone."""
        return self.folder / f"{name}.sock"

    @property
    def workspace(self) -> Path:
        return self.folder / "workspace.yaml"

    def prepare(self) -> None:
        """Write what they read."""
        (folder() / "dagster.yaml").write_text(SETTINGS)
        self.workspace.write_text(
            f"load_from:\n  - grpc_server:\n      socket: {self.socket('code')}\n      location_name: {LOCATION}\n"
        )

    def start(self, name: str) -> None:
        """Start one; its output goes to a log in the dashboard's folder."""
        self.socket(name).unlink(missing_ok=True)
        logs = folder() / "logs"
        logs.mkdir(exist_ok=True)
        with (logs / f"{name}.txt").open("ab") as log:
            if log.tell() > 10 << 20:
                log.truncate(0)
            # A session of its own: Ctrl-C is for us, who end them in order. Its standard input closes when we end.
            self.running[name] = subprocess.Popen(  # noqa: S603 - our own interpreter and modules
                [sys.executable, "-m", "pipelines.dashboard.processes", name, self.socket(name), self.workspace],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment()},
                start_new_session=True,
            )

    def restart_dead(self) -> None:
        """Start those anew that died. Raises InputError for one that keeps dying."""
        for name, process in list(self.running.items()):
            if process.poll() is None:
                continue
            now = time.monotonic()
            deaths = [at for at in self._deaths.get(name, []) if now - at < DEATH_SECONDS] + [now]
            self._deaths[name] = deaths
            log = folder() / "logs" / f"{name}.txt"
            if len(deaths) > MOST_DEATHS:
                raise InputError(f"the dashboard's process {name!r} dies again and again; its log is {log}")
            self.say(f"the dashboard's process {name!r} died ({process.returncode}), started again; its log is {log}")
            end_sessions([process.pid], STOP_SECONDS)  # what it started went on without it
            if name == "code":
                try:
                    end_lost_runs("the process that followed it was lost")
                except Exception as error:  # as of a database that is busy: it is no reason to end the dashboard
                    self.say(f"dashboard: runs are left as they are: {one_line(error)}")
            self.start(name)

    def stop(self) -> None:
        """End them all, with what they started."""
        end_sessions([process.pid for process in self.running.values()], STOP_SECONDS)
        for started in self.running.values():
            started.wait()
            assert started.stdin
            started.stdin.close()
        self.running.clear()


async def _serve(processes: Processes, proxy: Proxy, host: str, port: int, note: Say, say: Say) -> None:
    from aiohttp import web

    over = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, over.set)
    runner = web.AppRunner(proxy.application(), access_log=None, shutdown_timeout=2.0)
    processes.prepare()
    _prepare_instance(say)
    loaded = shape()
    try:
        await runner.setup()
        await web.TCPSite(runner, host.strip("[]"), port).start()
        first = aside(lambda: _first_look(say))
        for name in processes.names:
            processes.start(name)
            while name == "code" and not processes.socket(name).exists() and not over.is_set():
                # The others look for it once, and then not again for a minute.
                await asyncio.to_thread(processes.restart_dead)
                await asyncio.sleep(0.1)
        if await _until_ready(processes, proxy, over):
            await _either(first, over)
            address = address_of(host, port)
            note(address)
            say(f"dashboard: {address}")
            say(f"  datasets and runs: {address}/asset-groups  jobs: {address}/{SUBMISSIONS}")
        while not over.is_set():
            await asyncio.to_thread(processes.restart_dead)
            now = await asyncio.to_thread(shape)
            if now != loaded:
                problem = await _reload(proxy)
                if problem:
                    say(f"dashboard: the definitions do not load: {problem}")
                loaded = now
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), 2.0)
        say("dashboard: ends; jobs that were sent go on")
    finally:
        await runner.cleanup()
        await asyncio.to_thread(processes.stop)


def address_of(host: str, port: int) -> str:
    """What a browser is given; an address of IPv6 is written in brackets."""
    name = host.strip("[]")
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


async def _either(first: asyncio.Future[Any], over: asyncio.Event) -> None:
    waiting = asyncio.create_task(over.wait())
    both: list[asyncio.Future[Any]] = [first, waiting]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _prepare_instance(say: Say) -> None:
    """Make Dagster's databases, where there are none, while no other process does: two at once leave broken ones."""
    try:
        end_lost_runs("the dashboard was closed")
    except Exception as error:  # it ends what is left over, and without that the dashboard works
        say(f"dashboard: runs are left as they are: {one_line(error)}")


def _first_look(say: Say) -> None:
    """Have something to show from the start; what does not fit into the time, the sensor tells."""
    os.environ.update(environment())
    from dagster import DagsterInstance

    from pipelines.dashboard.follower import Follower

    with DagsterInstance.get() as instance:
        try:
            Follower(instance).follow(30.0)
        except Exception as error:
            say(f"dashboard: {one_line(error)}")


async def _until_ready(processes: Processes, proxy: Proxy, over: asyncio.Event) -> bool:
    """Wait for the definitions to be loaded. Raises InputError when that takes too long, or fails."""
    deadline, problem = time.monotonic() + START_SECONDS, ""
    query = "{ workspaceOrError { ... on Workspace { locationEntries { locationOrLoadError { __typename } } } } }"
    while not over.is_set():
        answers = [await _ask(proxy, role, query) for role in processes.roles]
        states = [_loaded(answer) for answer in answers]
        if all(state == "RepositoryLocation" for state in states):
            return True
        if time.monotonic() > deadline:
            said = f" ({problem})" if problem else ""
            raise InputError(
                f"the dashboard does not start within {START_SECONDS:.0f} s{said}; see {folder() / 'logs'}"
            )
        await asyncio.to_thread(processes.restart_dead)
        if "PythonError" in states:
            problem = await _reload(proxy)
        await asyncio.sleep(0.3)
    return False


def _loaded(answer: dict[str, Any] | None) -> str:
    entries = ((answer or {}).get("workspaceOrError") or {}).get("locationEntries") or []
    states = [str((entry.get("locationOrLoadError") or {}).get("__typename", "")) for entry in entries]
    return states[0] if states else ""


async def _reload(proxy: Proxy) -> str:
    """Have the definitions loaded anew; what is wrong, in a line, where that was not possible."""
    entry = ((await _ask(proxy, "operate", _RELOAD, {"name": LOCATION})) or {}).get("reloadRepositoryLocation") or {}
    problem = (entry.get("locationOrLoadError") or {}).get("message") or ("" if entry else "no answer")
    return one_line(problem)


async def _ask(proxy: Proxy, role: Role, query: str, variables: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """Ask a web server's GraphQL; None where it does not answer."""
    from aiohttp import ClientError, ClientSession, ClientTimeout, UnixConnector

    connector = UnixConnector(path=str(proxy.sockets[role]))
    try:
        async with (
            ClientSession(connector=connector, timeout=ClientTimeout(total=60)) as session,
            session.post("http://dagster/graphql", json={"query": query, "variables": variables or {}}) as answer,
        ):
            return (await answer.json()).get("data")
    except (ClientError, OSError, TimeoutError):
        return None
