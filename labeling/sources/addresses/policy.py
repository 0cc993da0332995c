"""How addresses are fetched: limits, politeness, and what is not fetched."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from model.inputs import InputError

USER_AGENT = "onediffusion"
DIRECTIVES = ("noai", "noimageai", "noindex", "noimageindex")  # those that img2dataset respects
CONNECTIONS = 64
HOST_CONNECTIONS = 8
RETRIES = 2
SECONDS = 10.0
TOTAL = 6  # times as long for a whole file
MAX_MIB = 32.0


@dataclass(frozen=True)
class FetchPolicy:
    """What the fetching of a list keeps to.

    connections: at once in each process; host_connections: at once to one host, of all processes of an ingest together;
    host_rate: requests per second to one host of all together, 0 for no limit; connect_seconds, read_seconds: without
    a connection, without a byte; total_seconds: of one try; retries: further tries after a transient failure;
    max_bytes: of one file; directives: of X-Robots-Tag that refuse a file; token: the name under which such headers may
    address this program; contact: mail or web address, told to the servers; networks: private ones that may be fetched
    from, as 10.1.0.0/16; shard_seconds: after which what is left of a shard is given up.
    """

    connections: int = CONNECTIONS
    host_connections: int = HOST_CONNECTIONS
    host_rate: float = 0.0
    connect_seconds: float = SECONDS
    read_seconds: float = SECONDS
    total_seconds: float = TOTAL * SECONDS
    retries: int = RETRIES
    max_bytes: int = int(MAX_MIB * (1 << 20))
    directives: tuple[str, ...] = DIRECTIVES
    token: str = USER_AGENT
    contact: str = ""
    networks: tuple[str, ...] = ()
    shard_seconds: float = 900.0

    @classmethod
    def of(
        cls,
        connections: int = CONNECTIONS,
        host_connections: int = HOST_CONNECTIONS,
        host_rate: float = 0.0,
        timeout: float = SECONDS,
        retries: int = RETRIES,
        max_mb: float = MAX_MIB,
        contact: str = "",
        robots_name: str = USER_AGENT,
        directives: str = ",".join(DIRECTIVES),
        allow_private: Sequence[str] = (),
    ) -> FetchPolicy:
        """The policy that the options of the command line and of job files of these names make.

        Raises InputError for what is no network, or what cannot stand in a header.
        """
        for option, text in (("contact", contact), ("robots-name", robots_name)):
            if not text.isascii() or not text.isprintable():
                raise InputError(f"--{option} {text!r}: only printable ASCII can be told to servers")
        if not robots_name:
            raise InputError("--robots-name: give a name")
        return cls(
            connections,
            host_connections,
            host_rate,
            timeout,
            timeout,
            TOTAL * timeout,
            retries,
            int(max_mb * (1 << 20)),
            tuple(word.strip().lower() for word in directives.split(",") if word.strip()),
            robots_name,
            contact,
            check_networks(allow_private),
        )

    @cached_property
    def user_agent(self) -> str:
        """The User-Agent that servers are told."""
        return f"{self.token}/1 ({self.contact})" if self.contact else f"{self.token}/1"


def check_networks(texts: Sequence[str]) -> tuple[str, ...]:
    """Networks or addresses in their usual form. Raises InputError for a text that is neither."""
    networks = []
    for text in texts:
        try:
            networks.append(str(ipaddress.ip_network(text, strict=False)))
        except ValueError:
            raise InputError(f"--allow-private {text}: give an address or a network, as 10.1.0.0/16") from None
    return tuple(networks)
