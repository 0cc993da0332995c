"""`onediffusion dashboard`: Dagster's processes, kept running, behind a proxy on loopback."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from model.inputs import InputError, WorkFailed, one_line
from pipelines.dashboard.access import LOOPBACK
from pipelines.dashboard.background import at_low_priority, in_background
from pipelines.dashboard.graphql import FAILED, LOADED, DagsterClient
from pipelines.dashboard.instance import environment
from pipelines.dashboard.jobs_page import JOBS_PATH
from pipelines.dashboard.picture_files import drop_old_pictures
from pipelines.dashboard.proxy import Proxy
from pipelines.dashboard.snapshots import ANSWER_SECONDS, NOT_READ, refresh, snapshots, snapshots_digest
from pipelines.dashboard.supervisor import Supervisor
from pipelines.dashboard.tokens import ROLES, Tokens, load_tokens
from pipelines.dashboard.tracked_assets import (
    POLICIES,
    Kind,
    Policy,
    assets_of_jobs,
    kind_at,
    state_folder,
    track,
    tracked_assets,
    untrack,
)

PORT = 3000
START_SECONDS = 90.0
FIRST_REPORT_SECONDS = 15.0  # a lab's takes all of it, before pages can be opened; sensors report the rest
LOADING_PAUSE = 5.0  # between two loadings of the definitions, as a multiple of what one takes: a lab's take seconds
LONGEST_PAUSE = 20.0  # a new run has its page soon where a busy machine takes long for one, which then does little else
_OWNER = re.compile(r"[^@\s]+@[^@\s]+\.[^@\s]+|team:\S+")
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

    addresses: datasets and runs to add to those it shows; forgotten: names to take out; owner, new_pictures: of those
    added now (of all, where none are added). A dataset or run that is out of reach is only reported by `say`. Raises
    InputError for what a user can correct.
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
        with _only_server() as publish_address:
            if host not in LOOPBACK:
                say(f"--host {host}: tokens and pages travel there unencrypted; put a proxy that speaks TLS before it")
            _change_tracked(addresses, owner, policy, forgotten)
            _read_all(say)
            drop_old_pictures()
            with _listen(host, port, say) as listener:
                address = address_of(host, listener.getsockname()[1])
                asyncio.run(_serve(listener, address, tokens, publish_address, say))
    except _AlreadyServed as served:
        if not (addresses or forgotten or owner or policy):
            raise
        _change_tracked(addresses, owner, policy, forgotten)
        say(f"{served}; it shows in some seconds what was changed here, and is otherwise as it was started")


class _AlreadyServed(InputError):
    """Another process serves the dashboard."""


def _change_tracked(addresses: Sequence[str], owner: str, policy: Policy | None, forgotten: Sequence[str]) -> None:
    """Add datasets and runs and take others out. Raises InputError before anything is changed."""
    additions = [(_kind(address), address) for address in addresses]
    untrack(forgotten)
    everything = [(asset.kind, asset.address) for asset in tracked_assets()]
    track(additions or everything, owner, policy, by_person=True)


def _kind(address: str) -> Kind:
    """The kind of what lies there; "unknown" where it does not answer, which `_read_all` reports with its reason."""
    try:
        return in_background(lambda: kind_at(address)).result(ANSWER_SECONDS)
    except (TimeoutError, WorkFailed):
        return "unknown"
    except InputError as error:
        if "neither a dataset nor a run" in str(error) or "only local paths" in str(error):
            raise
        return "unknown"


def _read_all(say: Say) -> None:
    """Read all datasets and runs, with those that jobs were sent to work on and those that runs read."""
    track(assets_of_jobs())
    refresh()
    track(("dataset", address) for snapshot in snapshots() for address, _ in snapshot.reads)
    refresh([snapshot.tracked.name for snapshot in snapshots() if snapshot.trouble == NOT_READ])
    for snapshot in snapshots():
        if snapshot.trouble:
            say(f"{snapshot.tracked.address}: {snapshot.trouble}")


@contextmanager
def _only_server() -> Iterator[Say]:
    """Lock the dashboard's folder; yields a function that writes the address there. Raises _AlreadyServed if locked."""
    with (state_folder() / "served").open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            address = file.read().strip() or "another port"
            raise _AlreadyServed(f"the dashboard is served already, at {address}") from None

        def publish(address: str) -> None:
            file.seek(0)
            file.truncate()
            file.write(address)
            file.flush()

        yield publish
        publish("")


def _listen(host: str, port: int, say: Say) -> socket.socket:
    """A socket that listens on the port, or on a free one where that is taken. Raises InputError."""
    address, family = host.strip("[]"), socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((address, port), family=family)
    except PermissionError:
        raise InputError(f"--port {port}: only the system may listen there; take one above 1023") from None
    except OSError:
        pass
    try:
        listener = socket.create_server((address, 0), family=family)
    except OSError as error:
        raise InputError(f"--host {host}: cannot listen there ({error.strerror})") from None
    say(f"port {port} is taken, so it is {listener.getsockname()[1]}")
    return listener


def address_of(host: str, port: int) -> str:
    """The address that a browser opens; an IPv6 address is written in brackets."""
    name = host.strip("[]")
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


async def _serve(listener: socket.socket, address: str, tokens: Tokens | None, publish_address: Say, say: Say) -> None:
    from aiohttp import web

    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    with tempfile.TemporaryDirectory(prefix="onediffusion-") as folder:
        supervisor = Supervisor(Path(folder), ROLES if tokens else ("operate",), say)
        dagster = DagsterClient(supervisor.web_sockets)
        proxy = Proxy(supervisor.web_sockets, tokens)
        runner = web.AppRunner(proxy.application(), access_log=None, shutdown_timeout=2.0)
        supervisor.prepare()
        # This also makes Dagster's databases, while no other process does: two at once leave broken ones.
        supervisor.fail_lost_runs("the dashboard was closed")
        loaded = snapshots_digest()
        try:
            await runner.setup()
            await web.SockSite(runner, listener).start()
            first_report = asyncio.wrap_future(in_background(lambda: at_low_priority(lambda: _report_first(say))))
            for name in supervisor.names:
                supervisor.start(name)
            if await _until_loaded(supervisor, dagster, ended):
                await dagster.prepare()
                await _first_of(first_report, ended)
                publish_address(address)
                say(f"dashboard: {address}")
                say(f"  datasets and runs: {address}/asset-groups  jobs: {address}/{JOBS_PATH}")
            load_time = 0.0
            while not ended.is_set():
                await asyncio.to_thread(supervisor.restart_dead)
                now = await asyncio.to_thread(snapshots_digest)
                if now != loaded and time.monotonic() > load_time:
                    began = time.monotonic()
                    problem = await dagster.reload()
                    load_time = time.monotonic() + min(LOADING_PAUSE * (time.monotonic() - began), LONGEST_PAUSE)
                    if problem:
                        say(f"dashboard: the definitions do not load: {problem}")
                    loaded = now
                with suppress(TimeoutError):
                    await asyncio.wait_for(ended.wait(), 2.0)
            say("dashboard: ends; jobs that were sent go on")
        finally:
            await runner.cleanup()
            await asyncio.to_thread(supervisor.stop)


async def _first_of(future: asyncio.Future[None], event: asyncio.Event) -> None:
    """Wait until the future is done or the event is set."""
    waiting = asyncio.create_task(event.wait())
    both: list[asyncio.Future[Any]] = [future, waiting]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()


def _report_first(say: Say) -> None:
    """Report the present state to Dagster, so that pages show it from the start; the sensor reports the rest."""
    os.environ.update(environment())
    from dagster import DagsterInstance

    from pipelines.dashboard.follower import Follower

    with DagsterInstance.get() as instance:
        try:
            Follower(instance).follow(FIRST_REPORT_SECONDS)
        except Exception as error:
            say(f"dashboard: {one_line(error)}")


async def _until_loaded(supervisor: Supervisor, dagster: DagsterClient, ended: asyncio.Event) -> bool:
    """Wait until the definitions are loaded, or the dashboard ends. Raises InputError when that takes too long."""
    deadline, problem = time.monotonic() + START_SECONDS, ""
    while not ended.is_set():
        states = await dagster.states()
        if all(state == LOADED for state in states):
            return True
        if time.monotonic() > deadline:
            reason = f" ({problem})" if problem else ""
            logs = state_folder() / "logs"
            raise InputError(f"the dashboard does not start within {START_SECONDS:.0f} s{reason}; see {logs}")
        await asyncio.to_thread(supervisor.restart_dead)
        if FAILED in states:
            problem = await dagster.reload()
        await asyncio.sleep(0.3)
    return False
