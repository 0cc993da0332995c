"""Addresses fetched from a real server: what comes of each, how politely, and from where never."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from picture_server import Answer, PictureServer, silent_port

from labeling.sources.addresses.fetch import Failure, Fetcher, is_transient
from labeling.sources.addresses.network import AddressCheck, PrivateAddress
from labeling.sources.addresses.policy import FetchPolicy, check_networks
from labeling.sources.addresses.robots import forbidding
from labeling.sources.addresses.urls import public_form
from model.inputs import InputError

LOCAL = FetchPolicy(networks=("127.0.0.1/32",), connect_seconds=30, read_seconds=30, retries=0)
HASTY = replace(LOCAL, read_seconds=0.5, total_seconds=1.5)
JPEG = b"\xff\xd8\xff\xe0 stands for a picture"


@pytest.fixture
def server() -> Iterator[PictureServer]:
    with PictureServer() as running:
        running.answers["/ok"] = Answer(JPEG)
        yield running


def fetch(urls: list[str], policy: FetchPolicy = LOCAL) -> list[Any]:
    """Bytes, or the reason why there are none."""
    results = Fetcher(policy).fetch_all(urls, lambda index, raw: raw)
    return [result.reason if isinstance(result, Failure) else result for result in results]


def fetch_one(url: str, policy: FetchPolicy = LOCAL) -> Any:
    (result,) = fetch([url], policy)
    return result


def test_address_cannot_smuggle_lines_into_a_request(server: PictureServer) -> None:
    server.answers["/ok%0D%0AX-Smuggled:%201"] = Answer(JPEG)
    server.answers["/ok%20a"] = server.answers["/%C3%A9"] = Answer(JPEG)
    results = fetch([server.url(path) for path in ("/ok\r\nX-Smuggled: 1", "/ok a", "/é", "/\ud800")])
    assert results[1:3] == [JPEG, JPEG]
    assert isinstance(results[3], str)
    assert not any("X-Smuggled" in headers for headers in server.headers)


def test_results_come_in_the_order_of_the_addresses(server: PictureServer) -> None:
    for number in range(30):
        server.answers[f"/{number}"] = Answer(b"%d" % number, wait=0.05 if number % 7 == 0 else 0)
    urls = [server.url(f"/{number}?size=large") for number in range(30)]
    results = Fetcher(LOCAL).fetch_all(urls, lambda index, raw: (index, raw))
    assert results == [(number, b"%d" % number) for number in range(30)]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (Answer(status=404), "HTTP 404"),
        (Answer(status=410), "HTTP 410"),
        (Answer(status=204), "HTTP 204"),
        (Answer(JPEG, headers=[("X-Robots-Tag", "noai")]), "X-Robots-Tag: noai"),
        (Answer(b"<html>gone", headers=[("Content-Type", "text/html; charset=utf-8")]), "text/html, not a picture"),
        (Answer(b'{"gone": 1}', headers=[("Content-Type", "application/json")]), "application/json, not a picture"),
        (Answer(JPEG, headers=[("Content-Type", "text/html")]), JPEG),
        (Answer(JPEG, claimed=100), f"cut off after {len(JPEG)} bytes"),
        (Answer(JPEG, wait=1), "timed out after 0.5 s without a byte"),
        (Answer(b"drops" * 10, drip=0.1), "timed out after 1.5 s"),
        (Answer(status=302, headers=[("Location", "/ok")]), JPEG),
        (Answer(status=302), "HTTP 302, and it redirects to no address of http or https"),
        (
            Answer(status=301, headers=[("Location", "file:///etc/passwd")]),
            "HTTP 301, and it redirects to no address of http or https",
        ),
        (Answer(status=307, headers=[("Location", "/it")]), "more than 5 redirects"),
        (
            Answer(status=302, headers=[("Location", "http://169.254.169.254/latest/meta-data/")]),
            "private address 169.254.169.254: allow with --allow-private 169.254.169.254",
        ),
    ],
)
def test_answer_gives_a_picture_or_its_reason(answer: Answer, reason: Any, server: PictureServer) -> None:
    server.answers["/it"] = answer
    assert fetch_one(server.url("/it"), HASTY if answer.wait or answer.drip else LOCAL) == reason


def test_unfetchable_address_has_a_reason() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        closed = probe.getsockname()[1]
    none = "not an address of http or https"
    urls = {
        "": none,
        "ftp://pictures.test/1.jpg": none,
        "http://[broken/": none,
        "http://pictures.test:99999/": none,
        "http://pictures.test/" + "x" * 9000: none,
        f"http://127.0.0.1:{closed}/": "no connection: connection refused",
        "http://name.invalid/": "name not found: name.invalid",
    }
    assert dict(zip(urls, fetch(list(urls)), strict=True)) == urls


def test_silent_server_is_given_up() -> None:
    with silent_port() as port:
        began = time.monotonic()
        results = fetch([f"http://127.0.0.1:{port}/{number}" for number in range(200)], HASTY)
    assert time.monotonic() - began < 12  # what it takes to wait for each, by eight connections
    assert set(results) == {
        "timed out after 0.5 s without a byte",
        "host 127.0.0.1 failed 20 times in a row and was not asked further",
    }
    assert all(map(is_transient, results))


def test_list_is_given_up_after_its_time(server: PictureServer) -> None:
    server.answers["/slow"] = Answer(JPEG, wait=20)
    results = fetch([server.url("/ok"), *[server.url("/slow")] * 3], replace(LOCAL, shard_seconds=2))
    assert results == [JPEG, *["given up: its shard was not fetched within 2 s"] * 3]
    assert is_transient(results[-1])


def test_overload_is_waited_for_and_other_answers_are_final(server: PictureServer) -> None:
    server.answers["/busy"] = Answer(
        JPEG, first=[Answer(status=503), Answer(status=429, headers=[("Retry-After", "1")])]
    )
    server.answers["/cut"] = Answer(JPEG, first=[Answer(JPEG, claimed=100)])
    server.answers["/broken"] = Answer(status=500)
    server.answers["/full"] = Answer(status=429, headers=[("Retry-After", "3600")])
    began = time.monotonic()
    paths = ["/busy", "/cut", "/broken", "/none"]
    assert fetch([server.url(path) for path in paths], replace(LOCAL, retries=2)) == [
        JPEG,
        JPEG,
        "HTTP 500",
        "HTTP 404",
    ]
    assert time.monotonic() - began > 1.4  # half a second at least, and the second that was asked for
    assert [server.requests[path] for path in paths] == [3, 2, 3, 1]
    assert fetch_one(server.url("/full"), replace(LOCAL, retries=2)) == "HTTP 429"
    assert server.requests["/full"] == 1


def test_too_large_file_is_not_read_to_its_end(server: PictureServer) -> None:
    small = replace(LOCAL, max_bytes=1 << 20)
    server.answers["/said"] = Answer(b"", claimed=1 << 40)
    server.answers["/chunks"] = Answer(b"x" * (4 << 20), headers=[("Content-Encoding", "identity")])
    assert fetch([server.url("/said"), server.url("/chunks")], small) == ["larger than 1 MiB"] * 2


def test_host_is_asked_by_few_connections_and_at_a_pace(server: PictureServer) -> None:
    server.answers["/ok"] = Answer(JPEG, wait=0.05)
    fetch([server.url("/ok")] * 20, replace(LOCAL, host_connections=3))
    assert server.most == 3
    server.times.clear()
    fetch([server.url("/ok")] * 6, replace(LOCAL, host_rate=20.0))
    assert server.times[-1] - server.times[0] > 5 / 20 - 0.1  # the server's clock begins when it gets round to it


def test_server_is_told_who_asks(server: PictureServer) -> None:
    assert fetch_one(server.url("/ok"), replace(LOCAL, contact="pictures@lab.test")) == JPEG
    assert server.headers[-1]["User-Agent"] == "onediffusion/1 (pictures@lab.test)"


def test_directives_are_respected_where_they_are_meant_for_this_program(server: PictureServer) -> None:
    refused = ("noai", "noindex")
    assert forbidding(["noai"], refused, "onediffusion") == "noai"
    assert forbidding(["all", "nofollow, NoIndex"], refused, "onediffusion") == "noindex"
    assert forbidding(["none"], refused, "onediffusion") == "none"
    assert forbidding(["otherbot: noai, noindex"], refused, "onediffusion") is None
    assert forbidding(["OneDiffusion: noai"], refused, "onediffusion") == "noai"
    assert forbidding(["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], refused, "onediffusion") == "noai"
    assert forbidding(["unavailable_after: 25 Jun 2010 15:00:00 PST", "index"], refused, "onediffusion") is None
    server.answers["/tagged"] = Answer(JPEG, headers=[("X-Robots-Tag", "all"), ("X-Robots-Tag", "lab: noai")])
    assert fetch_one(server.url("/tagged")) == JPEG
    assert fetch_one(server.url("/tagged"), replace(LOCAL, token="lab")) == "X-Robots-Tag: noai"
    assert fetch_one(server.url("/tagged"), replace(LOCAL, token="lab", directives=())) == JPEG


@pytest.mark.parametrize(
    "address",
    [
        *(
            "127.0.0.1",
            "127.8.9.10",
            "10.0.0.1",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
        ),
        *(
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fe80::1%eth0",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
        ),
        *("::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::10.0.0.1", "2002:7f00:1::"),
    ],
)
def test_addresses_that_are_not_public_are_refused(address: str) -> None:
    with pytest.raises(PrivateAddress, match=r"^private address .*: allow with --allow-private "):
        AddressCheck()(address)
    AddressCheck(["0.0.0.0/0", "::/0"])(address)


def test_public_addresses_are_taken() -> None:
    for address in ("93.184.216.34", "2606:2800:220:1::1", "::ffff:93.184.216.34", "64:ff9b::93.184.216.34"):
        AddressCheck()(address)


def test_only_the_networks_named_are_open(server: PictureServer) -> None:
    assert fetch_one(server.url("/ok"), replace(LOCAL, networks=())) == (
        "private address 127.0.0.1: allow with --allow-private 127.0.0.1"
    )
    assert fetch_one(server.url("/ok"), replace(LOCAL, networks=check_networks(["127.0.0.1/8"]))) == JPEG
    assert fetch_one(server.url("/ok"), replace(LOCAL, networks=check_networks(["10.0.0.0/8"]))) != JPEG
    assert "InvalidUrl" in fetch_one("http://2130706433/")  # 127.0.0.1 as a number
    with pytest.raises(InputError, match="--allow-private lab: give an address or a network"):
        check_networks(["lab"])


def test_name_is_refused_for_any_private_address_and_looked_up_once(
    server: PictureServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address that is checked is the one that is connected to, whatever the name stands for a moment later."""
    looked_up: list[str] = []
    known = {"two.test": ["93.184.216.34", "10.0.0.1"], "here.test": ["127.0.0.1"]}
    real = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *arguments: Any, **options: Any) -> Any:
        if host not in known:
            return real(host, port, *arguments, **options)
        looked_up.append(host)
        addresses = known[host] if looked_up.count(host) == 1 else ["127.0.0.2"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    assert (
        fetch_one(f"http://two.test:{server.port}/ok")
        == "private address 10.0.0.1: allow with --allow-private 10.0.0.1"
    )
    assert fetch([f"http://here.test:{server.port}/ok"] * 3) == [JPEG] * 3
    assert looked_up == ["two.test", "here.test"]


def test_stored_addresses_hold_no_secret() -> None:
    plain = "https://pictures.test/a%20b.jpg?width=100&v=2"
    assert public_form(plain) == plain
    assert public_form("https://me:word@pictures.test/a.jpg#part") == "https://pictures.test/a.jpg"
    signed = {
        "X-Amz-Algorithm=A&X-Amz-Credential=B&X-Amz-Signature=C&x-id=GetObject": "x-id=GetObject",
        "Expires=1&Signature=2&Key-Pair-Id=3&w=4": "w=4",
        "sv=2022&se=1&sp=r&sig=abc&w=4": "w=4",
        "se=1&w=4": "se=1&w=4",
        "access_token=abc&id=7": "id=7",
        "apikey=1&api_key=2": "",
    }
    for query, left in signed.items():
        assert public_form(f"https://pictures.test/a.jpg?{query}") == "https://pictures.test/a.jpg" + (
            "?" + left if left else ""
        )
    for bad in ("https://me:word@[pictures/a.jpg?token=1", "//me:word@[x#t"):
        assert not any(secret in public_form(bad) for secret in ("me:", "word", "token"))
        assert "@" not in public_form(bad)


@pytest.mark.parametrize("address", ["168.63.129.16", "fec0::1", "::ffff:168.63.129.16"])
def test_addresses_inside_of_clouds_and_sites_are_private(address: str) -> None:
    with pytest.raises(PrivateAddress):
        AddressCheck()(address)
    AddressCheck(["168.63.129.16/32", "fec0::/10"])(address)
