"""Fetches many addresses at once, each to its bytes or to the reason why not."""

from __future__ import annotations

import asyncio
import random
import secrets
import socket
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from time import time
from typing import Any, TypeVar

from labeling.sources.addresses.hosts import DeadHost, DeadHosts, Host
from labeling.sources.addresses.network import AddressCheck, PrivateAddress, resolve
from labeling.sources.addresses.policy import FetchPolicy
from labeling.sources.addresses.robots import forbidding
from labeling.sources.addresses.sharing import HostShares, Shares
from labeling.sources.addresses.urls import SCHEMES
from model.inputs import one_line

REDIRECTS = 5
LONGEST_WAIT = 30.0  # seconds that a Retry-After may ask for; who asks for more is not asked again
LONGEST_URL = 8192
PACE = 0.05  # seconds between two exchanges of connections to hosts
HEARD_SECONDS = 10.0  # after which a process says that it lives
MOST = 256  # hosts that are asked for at once
NAME_THREADS = 32  # that look up names, which blocks
_CHUNK = 1 << 16
_REDIRECTED = (301, 302, 303, 307, 308)
_FINAL = (501, 505)  # answers of a server that do not change when asked again
_TRANSIENT = (
    "timed out",
    "no connection",
    "HTTP 408",
    "HTTP 425",
    "HTTP 429",
    "HTTP 5",
    "cut off",
    "host ",
    "given up",
)

T = TypeVar("T")


@dataclass(frozen=True)
class Failure:
    """Why an address gave no picture, in words for a person; size: bytes received, where that is known."""

    reason: str
    size: int = 0


class _Refused(Exception):
    """This address gives nothing, however often it is asked; the message is the reason."""


class _Unanswered(Exception):
    """A failure that may pass. wait: seconds before the next try, None to choose it; again: whether to try now."""

    def __init__(self, reason: str, wait: float | None = None, again: bool = True) -> None:
        super().__init__(reason)
        self.wait, self.again = wait, again


def is_transient(reason: str) -> bool:
    """Whether the reason of a failure may pass by itself: time-outs, overload, faults of a server or connection."""
    return reason.startswith(_TRANSIENT) and not reason.startswith(tuple(f"HTTP {status}" for status in _FINAL))


class Fetcher:
    """Fetches lists of addresses by a policy; it remembers hosts that do not answer from one list to the next."""

    def __init__(self, policy: FetchPolicy, shares: Shares | None = None) -> None:
        """shares: of connections to hosts, where others fetch at the same time."""
        self.policy = policy
        self._dead = DeadHosts()
        self._shares = shares or HostShares(policy.host_connections)

    def fetch_all(self, urls: Sequence[str], take: Callable[[int, bytes], T], threads: int = 1) -> list[T | Failure]:
        """What `take` makes of the bytes of each address, or why there are none; in the order of `urls`.

        take: called with the position and the bytes, in one of some threads. Bodies that wait for it are at most as
        many as connections, so a slow `take` slows the fetching down instead of filling the memory.
        """
        return asyncio.run(_Run(self.policy, self._dead, self._shares, urls, take, threads).all())


class _Run:
    """One list being fetched, on one event loop."""

    def __init__(
        self,
        policy: FetchPolicy,
        dead: DeadHosts,
        shares: Shares,
        urls: Sequence[str],
        take: Callable[[int, bytes], Any],
        threads: int,
    ) -> None:
        self.policy, self.urls, self.take, self.dead, self.threads = policy, urls, take, dead, threads
        self.shares = shares
        self.check = AddressCheck(policy.networks)
        self.hosts: dict[str, Host] = {}
        self.bodies = asyncio.Semaphore(policy.connections)  # each holds at most one body
        self.trading = asyncio.Event()  # whether there is something to ask for, or to give back
        self.over = False
        self.name = secrets.token_hex(8)
        self.session: Any = None
        self.decoders: ThreadPoolExecutor | None = None

    async def all(self) -> list[Any]:
        import aiohttp
        from aiohttp.abc import AbstractResolver

        check = self.check

        class CheckedResolver(AbstractResolver):
            async def resolve(self, host: str, port: int = 0, family: Any = 0) -> Any:
                return await resolve(host, port, check, names)

            async def close(self) -> None:
                pass

        policy = self.policy
        names = ThreadPoolExecutor(min(NAME_THREADS, policy.connections))
        self.decoders = ThreadPoolExecutor(self.threads + 1)  # while some decode, one hands over
        try:
            connector = aiohttp.TCPConnector(
                limit=0,  # the connections of the hosts and the bodies of this run are the limits
                resolver=CheckedResolver(),
                ttl_dns_cache=60,
                socket_factory=check.open_socket,
            )
            timeout = aiohttp.ClientTimeout(
                total=policy.total_seconds, sock_connect=policy.connect_seconds, sock_read=policy.read_seconds
            )
            async with aiohttp.ClientSession(
                connector=connector,
                timeout=timeout,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": policy.user_agent, "Accept": "image/*,*/*;q=0.5", "Accept-Encoding": "identity"},
            ) as self.session:
                return await self._all_within(self._shard_seconds())
        finally:
            names.shutdown(wait=False, cancel_futures=True)
            self.decoders.shutdown()

    def _shard_seconds(self) -> float:
        """Seconds for the whole list: more where the pace asked for at one host takes longer."""
        if not self.policy.host_rate:
            return self.policy.shard_seconds
        most = max(Counter(url.partition("://")[2].partition("/")[0] for url in self.urls).values(), default=0)
        return max(self.policy.shard_seconds, 2 * most / self.policy.host_rate)

    async def _trade(self) -> None:
        """Ask for connections to hosts, and give them back, until the list is fetched."""
        loop = asyncio.get_running_loop()
        waiting: list[str] = []  # hosts that more connections are wanted to; those asked in vain are the last
        try:
            while not self.over:
                with suppress(TimeoutError):
                    wanting = any(host.wanted for host in self.hosts.values())
                    await asyncio.wait_for(self.trading.wait(), PACE if wanting else HEARD_SECONDS)
                self.trading.clear()
                for host in self.hosts.values():
                    host.give_back()
                wanting_now = {name for name, host in self.hosts.items() if host.wanted}
                waiting = [name for name in waiting if name in wanting_now]
                waiting += sorted(wanting_now.difference(waiting))
                held = {name: host.held for name, host in self.hosts.items() if host.held}
                room = self.policy.connections - sum(held.values())
                asked = {name: min(self.hosts[name].wanted, self.policy.host_connections) for name in waiting[:MOST]}
                grant = await loop.run_in_executor(None, self.shares.exchange, self.name, held, asked, room)
                for name, host in self.hosts.items():
                    host.contested = name in grant.contested
                    if name in grant.connections:
                        host.grant(grant.connections[name])
                waiting = [*waiting[MOST:], *waiting[:MOST]]
                await asyncio.sleep(PACE)
        finally:
            self.shares.exchange(self.name, {}, {}, 0)

    async def _all_within(self, seconds: float) -> list[Any]:
        trade = asyncio.create_task(self._trade())
        try:
            return await self._fetched_within(seconds, trade)
        finally:
            self.over = True  # and it is not canceled: `wait_for` of Python 3.11 may lose that
            self.trading.set()
            await asyncio.gather(trade, return_exceptions=True)

    async def _fetched_within(self, seconds: float, trade: asyncio.Task[None]) -> list[Any]:
        tasks = [asyncio.create_task(self._one(index, url)) for index, url in enumerate(self.urls)]
        if tasks:
            done = asyncio.ensure_future(asyncio.wait(tasks, timeout=seconds))
            await asyncio.wait({done, trade}, return_when=asyncio.FIRST_COMPLETED)
            if trade.done():  # nobody would get a connection any more
                done.cancel()
                for task in tasks:
                    task.cancel()
                trade.result()
        unfinished = [task for task in tasks if not task.done()]
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*unfinished, return_exceptions=True)
        given_up = Failure(f"given up: its shard was not fetched within {seconds:g} s")
        return [given_up if task.cancelled() else task.result() for task in tasks]

    async def _one(self, index: int, url: str) -> Any:
        """What `take` makes of one address, or a Failure. Tries again what may pass."""
        for tries_left in range(self.policy.retries, -1, -1):
            try:
                return await self._follow(index, url)
            except (_Refused, PrivateAddress, DeadHost) as error:
                return Failure(str(error))
            except _Unanswered as error:
                tried = self.policy.retries - tries_left
                wait = error.wait if error.wait is not None else 2**tried * random.uniform(0.5, 1)  # noqa: S311 no secret
                if not (tries_left and error.again) or wait > LONGEST_WAIT:
                    return Failure(str(error))
                await asyncio.sleep(wait)
            except Exception as error:  # nothing that a list or a server holds may end the job
                return Failure(f"cannot be fetched ({type(error).__name__}: {one_line(error, 200)})")
        raise AssertionError("the last try returns")

    async def _follow(self, index: int, url: str) -> Any:
        """Ask for an address and for those that it redirects to."""
        for _ in range(REDIRECTS + 1):
            parsed = _parsed(url)
            host = self._host(parsed.host.rstrip("."))
            async with host.turn():
                await self.bodies.acquire()
                try:
                    body, location = await self._ask(host, parsed)
                except BaseException:
                    self.bodies.release()
                    raise
            try:
                if location is None:
                    return await asyncio.get_running_loop().run_in_executor(self.decoders, self.take, index, body)
            finally:
                self.bodies.release()
            url = location
        raise _Refused(f"more than {REDIRECTS} redirects")

    def _host(self, name: str) -> Host:
        if name not in self.hosts:
            rate = self.policy.host_rate / self.policy.host_connections
            self.hosts[name] = Host(name, rate, self.dead, self.trading.set)
        return self.hosts[name]

    async def _ask(self, host: Host, url: Any) -> tuple[bytes, str | None]:
        """The body of one answer, or where it redirects to. Raises _Refused, _Unanswered, PrivateAddress."""
        import aiohttp

        received = bytearray()
        try:
            async with self.session.get(url, allow_redirects=False) as response:
                if location := self._judge(host, response):
                    return b"", location
                expected = response.content_length
                if expected is not None and expected > self.policy.max_bytes:
                    raise _Refused(self._too_large())
                async for chunk in response.content.iter_chunked(_CHUNK):
                    if not received and (other := _other_than_picture(response.content_type, chunk)):
                        raise _Refused(other)
                    received += chunk
                    if len(received) > self.policy.max_bytes:
                        raise _Refused(self._too_large())
            return bytes(received), None
        except aiohttp.ConnectionTimeoutError:
            host.failed()
            raise _Unanswered(f"no connection within {self.policy.connect_seconds:g} s") from None
        except aiohttp.SocketTimeoutError:
            host.failed()
            raise _Unanswered(f"timed out after {self.policy.read_seconds:g} s without a byte") from None
        except TimeoutError:
            host.failed()
            raise _Unanswered(f"timed out after {self.policy.total_seconds:g} s") from None
        except aiohttp.ClientConnectorDNSError as error:
            temporary = getattr(error.os_error, "errno", None) == socket.EAI_AGAIN
            if temporary:
                host.failed()
                raise _Unanswered(f"no connection: the name {host.name} could not be looked up") from None
            raise _Refused(f"name not found: {host.name}") from None
        except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientSSLError) as error:
            raise _Refused(f"certificate of {host.name}: {_certificate_fault(error)}") from None
        except aiohttp.ClientConnectorError as error:
            host.failed()
            raise _Unanswered(f"no connection: {_os_fault(error)}", again=False) from None
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientPayloadError, aiohttp.ClientOSError):
            host.failed()
            raise _Unanswered(f"cut off after {len(received):,} bytes") from None
        except (aiohttp.ClientError, ValueError) as error:
            raise _Refused(f"no answer in HTTP: {type(error).__name__}") from None

    def _judge(self, host: Host, response: Any) -> str | None:
        """Where an answer redirects to, None where its body is to be read. Raises _Refused, _Unanswered."""
        status = response.status
        if status in (408, 425, 429) or (status >= 500 and status not in _FINAL):
            host.failed()
            wait = _retry_after(response.headers.get("Retry-After"))
            if wait is not None:
                host.pause(min(wait, LONGEST_WAIT))
            raise _Unanswered(f"HTTP {status}", wait)
        host.answered()
        tags = response.headers.getall("X-Robots-Tag", ())
        if directive := forbidding(tags, self.policy.directives, self.policy.token):
            raise _Refused(f"X-Robots-Tag: {directive}")
        if status in _REDIRECTED:
            return _join(response, response.headers.get("Location", ""))
        if status != 200:
            raise _Refused(f"HTTP {status}")
        return None

    def _too_large(self) -> str:
        return f"larger than {self.policy.max_bytes / (1 << 20):g} MiB"


def _parsed(url: str) -> Any:
    """The address for a request. Raises _Refused for one that is none of http."""
    from yarl import URL

    try:
        # Signatures cover the address as it was written, so it is not written anew where it need not be.
        parsed = URL(url, encoded=_is_plain(url))
        known = parsed.scheme in SCHEMES and parsed.host and len(url) <= LONGEST_URL
        parsed.port  # noqa: B018 raises ValueError
    except ValueError:
        known = False
    if not known:
        raise _Refused("not an address of http or https")
    return parsed


def _is_plain(url: str) -> bool:
    """Whether an address can stand in a request as it is."""
    return url.isascii() and url.isprintable() and not any(sign in url for sign in ' "<>\\^`{|}')


def _join(response: Any, location: str) -> str:
    from yarl import URL

    try:
        target = str(
            response.url.join(
                URL(location, encoded=location.isascii() and location.isprintable() and " " not in location)
            )
        )
    except ValueError:
        target = ""
    if not location or not target.startswith(tuple(f"{scheme}://" for scheme in SCHEMES)):
        raise _Refused(f"HTTP {response.status}, and it redirects to no address of http or https")
    return target


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, given as seconds or as a date."""
    if not value:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time())
    except ValueError:
        return None


def _other_than_picture(content_type: str, start: bytes) -> str | None:
    """Why an answer is no picture: its type is a text's, and its bytes look like one. Types alone are often wrong."""
    text = content_type.startswith("text/") or content_type.endswith(("json", "xml", "javascript"))
    if text and start.lstrip(b"\xef\xbb\xbf \t\r\n")[:1] in (b"<", b"{", b"[") and content_type != "image/svg+xml":
        return f"{content_type}, not a picture"
    return None


def _certificate_fault(error: Any) -> str:
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return str(getattr(inner, "verify_message", "") or getattr(inner, "reason", "") or type(inner).__name__)


def _os_fault(error: Any) -> str:
    import os

    number = getattr(error.os_error, "errno", None)
    return os.strerror(number).lower() if number else type(error.os_error).__name__
