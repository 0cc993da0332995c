"""Which machines may be connected to: names are resolved here, and each address is checked before it is used.

A list of addresses comes from strangers. Without the check it could make a cluster fetch from its own network, such as
the metadata service of a cloud (169.254.169.254), which hands out credentials. A name is resolved once and the checked
address is the one that is connected to, so a name that changes its address in between (DNS rebinding) gains nothing.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from concurrent.futures import Executor
from typing import Any

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_COMPATIBLE = ipaddress.ip_network("::/96")
# Public by their numbers: the address where Azure's machines find their host, and the former private ones of IPv6.
_INSIDE = (ipaddress.ip_network("168.63.129.16/32"), ipaddress.ip_network("fec0::/10"))


class PrivateAddress(Exception):
    """A name stands for a machine that is not on the public internet; the message is the reason for a person."""


class AddressCheck:
    """Refuses addresses that are not public and not in `networks` (as "10.1.0.0/16")."""

    def __init__(self, networks: Sequence[str] = ()) -> None:
        self._networks = [ipaddress.ip_network(network) for network in networks]

    def __call__(self, text: str) -> None:
        """Raises PrivateAddress for an address that must not be connected to."""
        address = ipaddress.ip_address(text.partition("%")[0])
        real = _embedded(address)
        inside = any(real in network for network in _INSIDE)
        if real.is_global and not real.is_multicast and not real.is_reserved and not inside:
            return
        if not any(one in network for network in self._networks for one in {address, real}):
            raise PrivateAddress(f"private address {real}: allow with --allow-private {real}")

    def open_socket(self, info: tuple[Any, ...]) -> socket.socket:
        """The socket for a connection, as aiohttp asks for it: the last place where an address can be refused."""
        family, kind, protocol, _, address = info
        self(address[0])
        return socket.socket(family, kind, protocol)


def _embedded(address: Address) -> Address:
    """The IPv4 address that an IPv6 address leads to, or the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return address.ipv4_mapped
        if address.sixtofour:
            return address.sixtofour
        if address.teredo:
            return address.teredo[1]
        if address in _NAT64 or (address in _COMPATIBLE and int(address) > 0xFFFF):
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address


async def resolve(host: str, port: int, check: AddressCheck, threads: Executor) -> list[dict[str, Any]]:
    """Addresses of a host in the form that aiohttp's connector takes.

    Raises PrivateAddress when any of them must not be connected to, OSError (socket.gaierror) when there is none.
    """
    loop = asyncio.get_running_loop()
    addresses = await loop.run_in_executor(
        threads, lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    )
    for *_, address in addresses:
        check(str(address[0]))
    return [
        {
            "hostname": host,
            "host": address[0],
            "port": port,
            "family": family,
            "proto": protocol,
            "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
        }
        for family, _, protocol, _, address in addresses
    ]
