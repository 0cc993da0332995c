"""Who may use a dashboard with tokens, and what each role may do."""

from __future__ import annotations

import asyncio
import json
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import psutil
import pytest
from aiohttp import ClientSession, WSMsgType
from dashboard_process import ASSETS, LAUNCH, STOP_NOTHING, Dashboard, command, descendants, served, tokens_in

from pipelines.dashboard.dagster_internals import STATIC_PATH

pytestmark = [pytest.mark.slow, pytest.mark.long]


def connections(process: psutil.Process, kind: str) -> list[Any]:
    """Its sockets; of one that has just ended, none."""
    with suppress(psutil.NoSuchProcess):
        return list(process.net_connections(kind))
    return []


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, pictures_original: Path) -> Iterator[Dashboard]:
    """A dashboard with tokens."""
    data = tmp_path_factory.mktemp("guarded")
    with served(data, str(pictures_original), "--token-file", str(data / "tokens")) as running:
        yield running


@pytest.fixture(scope="module")
def tokens(guarded: Dashboard) -> dict[str, str]:
    return tokens_in(guarded.data / "tokens")


def test_requests_without_token_are_refused(guarded: Dashboard) -> None:
    for path in ("/graphql", "/server_info", "/pictures/a.jpg", "/logs/a", "/"):
        assert guarded.request(path)[0] == 401
    for wrong in ("operate", "\xff"):
        assert guarded.request("/graphql", bearer(wrong), b"{}")[0] == 401
    status, headers, _ = guarded.request("/", {"Accept": "text/html"})
    assert (status, headers["Location"]) == (303, "/login")


def test_answers_without_body_leave_the_connection_usable(guarded: Dashboard, tokens: dict[str, str]) -> None:
    """A browser asks again on the same connection, and shows a blank page where it meets bytes of no answer."""
    connection = HTTPConnection(guarded.address.removeprefix("http://"), timeout=60)

    def ask(method: str, path: str, **headers: str) -> HTTPResponse:
        connection.request(
            method, path, headers={"Accept-Encoding": "gzip, deflate", **bearer(tokens["read"]), **headers}
        )
        return connection.getresponse()

    [script, *_] = re.findall(rb'src="(/_next/static/[^"]+)"', guarded.request("/assets", bearer(tokens["read"]))[2])
    answer = ask("GET", script.decode())
    assert answer.status == 200 and answer.read()
    assert script.decode().startswith(STATIC_PATH) and "immutable" in answer.headers["Cache-Control"]
    sock = connection.sock
    passed = "/vendor/graphiql/graphiql.min.css"  # to the server behind the proxy, which answers scripts itself
    for path in (script.decode(), passed):
        answer = ask("GET", path)
        assert answer.status == 200 and answer.read()
        for method, status in (("GET", 304), ("HEAD", 200), ("GET", 304)):
            tag = {"If-None-Match": answer.headers["ETag"]} if status == 304 else {}
            other = ask(method, path, **tag)
            assert (other.status, other.read(), other.headers["Content-Encoding"]) == (status, b"", None)
    outside = ask("GET", f"{STATIC_PATH}%2e%2e/%2e%2e/index.html")
    assert outside.status == 403 and outside.read()
    for name in ("chunks", "/etc/hostname", "%00", "x" * 5000):
        absent = ask("GET", f"{STATIC_PATH}{name}")
        assert absent.status == 404 and absent.read(), name
    assert connection.sock is sock
    connection.close()


def test_login_form_exchanges_token_for_cookie(guarded: Dashboard, tokens: dict[str, str]) -> None:
    assert b'type="password"' in guarded.request("/login")[2]
    assert guarded.request("/login", body=urlencode({"token": "wrong"}).encode())[0] == 403
    status, headers, _ = guarded.request("/login", body=urlencode({"token": tokens["read"]}).encode())
    assert (status, headers["Location"]) == (303, "/")
    cookie = headers["Set-Cookie"]
    assert tokens["read"] not in cookie and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    session = {"Cookie": cookie.partition(";")[0]}
    status, headers, _ = guarded.request("/", {**session, "Accept": "text/html"})
    assert (status, headers["Location"]) == (302, "/assets")
    assert guarded.ask(ASSETS, session)["assetNodes"]
    assert guarded.request("/logout", session, b"")[0] == 303
    assert guarded.request("/server_info", session)[0] == 401


def test_reader_sees_and_operator_launches(guarded: Dashboard, tokens: dict[str, str]) -> None:
    reader, operator = bearer(tokens["read"]), bearer(tokens["operate"])
    names = {node["assetKey"]["path"][1] for node in guarded.ask(ASSETS, reader)["assetNodes"]}
    assert names == {"images", "latents-64", "latents-64-edges", "latents-64-segmentation", "segmentation", "text"}
    refused = guarded.ask(LAUNCH, reader, p=STOP_NOTHING)
    assert refused["launchRun"]["__typename"] == "UnauthorizedError"
    event = b'{"asset_key": ["pictures", "text"]}'
    for kind in ("materialization", "check", "observation"):
        assert guarded.request(f"/report_asset_{kind}/pictures/text", reader, event)[0] == 403
    for role in (reader, operator):
        assert guarded.request("/notebook?path=/etc/passwd", role)[0] == 403
    run = guarded.ask(LAUNCH, operator, p=STOP_NOTHING)["launchRun"]["run"]["runId"]
    query = "query($r: ID!) { runOrError(runId: $r) { ... on Run { status } } }"
    guarded.until(lambda: guarded.ask(query, reader, r=run)["runOrError"]["status"] == "FAILURE")


def test_requests_of_other_sites_are_refused(guarded: Dashboard, tokens: dict[str, str]) -> None:
    operator = bearer(tokens["operate"])
    body = json.dumps({"query": ASSETS}).encode()
    for origin, expected in (("https://elsewhere.example", 403), ("null", 403), (guarded.address, 200)):
        headers = {**operator, "Content-Type": "application/json", "Origin": origin}
        assert guarded.request("/graphql", headers, body)[0] == expected
    # A picture or a script of any page may ask for an address here, and does not say where it is from.
    mutation = urlencode({"query": LAUNCH, "variables": json.dumps({"p": STOP_NOTHING})})
    assert guarded.request(f"/graphql?{mutation}", operator)[0] == 403
    assert guarded.request(f"/x/../graphql?{mutation}", operator)[0] == 403
    assert guarded.request(f"/x/%2e%2e/graphql?{mutation}", operator)[0] == 403
    for site, expected in (("cross-site", 403), ("same-site", 403), ("same-origin", 200), ("none", 200)):
        assert guarded.request("/server_info", {**operator, "Sec-Fetch-Site": site})[0] == expected
    assert guarded.request("/server_info", {**operator, "Host": "[", "X-Strange": "\xff"})[0] == 200
    rewritten = {**operator, "Origin": "https://lab.example", "Host": "127.0.0.1:3000"}
    assert b"proxy_set_header Host $http_host" in guarded.request("/graphql", rewritten, body)[2]
    visit = {**operator, "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"}
    assert guarded.request("/server_info", visit)[0] == 200, "a link on another page may lead here"


def test_proxy_passes_subscriptions(guarded: Dashboard, tokens: dict[str, str]) -> None:
    async def listen(headers: dict[str, str], query: str, variables: dict[str, Any]) -> list[dict[str, Any]]:
        async with (
            ClientSession() as session,
            session.ws_connect(f"{guarded.address}/graphql", protocols=["graphql-ws"], headers=headers) as ws,
        ):
            await ws.send_json({"type": "connection_init", "payload": {}})
            await ws.send_json({"type": "start", "id": "1", "payload": {"query": query, "variables": variables}})
            messages: list[dict[str, Any]] = []
            while not messages or messages[-1]["type"] not in ("data", "error", "complete", "connection_error"):
                message = await ws.receive(timeout=60)
                assert message.type == WSMsgType.TEXT, messages
                messages.append(message.json())
            return messages

    # The first run there is: its log comes as it was written, up to its end.
    run = guarded.ask(LAUNCH, bearer(tokens["operate"]), p=STOP_NOTHING)["launchRun"]["run"]["runId"]
    subscription = """subscription($r: ID!) { pipelineRunLogs(runId: $r) { ... on PipelineRunLogsSubscriptionSuccess {
        messages { ... on MessageEvent { runId } } } } }"""
    messages = asyncio.run(listen(bearer(tokens["read"]), subscription, {"r": run}))
    assert [one["type"] for one in messages] == ["connection_ack", "data"]
    assert run in json.dumps(messages[-1])
    messages = asyncio.run(listen(bearer(tokens["read"]), LAUNCH, {"p": STOP_NOTHING}))
    assert "runId" not in json.dumps(messages), "the read role launches nothing over a socket either"
    with pytest.raises(Exception, match="401"):
        asyncio.run(listen({}, subscription, {"r": run}))
    with pytest.raises(Exception, match="403"):
        asyncio.run(
            listen({**bearer(tokens["operate"]), "Origin": "https://elsewhere.example"}, subscription, {"r": run})
        )


def test_socket_closes_with_its_session(guarded: Dashboard, tokens: dict[str, str]) -> None:
    async def message_type_after(sign_out: bool) -> WSMsgType:
        cookie = guarded.request("/login", body=urlencode({"token": tokens["read"]}).encode())[1]["Set-Cookie"]
        session = {"Cookie": cookie.partition(";")[0]}
        start = {"type": "start", "id": "1", "payload": {"query": ASSETS}}
        async with (
            ClientSession() as client,
            client.ws_connect(f"{guarded.address}/graphql", protocols=["graphql-ws"], headers=session) as ws,
        ):
            await ws.send_json({"type": "connection_init", "payload": {}})
            assert (await ws.receive_json(timeout=60))["type"] == "connection_ack"
            if sign_out:
                assert guarded.request("/logout", session, b"")[0] == 303
            await ws.send_json(start)
            return (await ws.receive(timeout=60)).type

    assert asyncio.run(message_type_after(sign_out=False)) == WSMsgType.TEXT
    assert asyncio.run(message_type_after(sign_out=True)) in (WSMsgType.CLOSE, WSMsgType.CLOSED)


def test_jobs_page_needs_a_token(guarded: Dashboard, tokens: dict[str, str]) -> None:
    for path in ("/submissions", "/submissions/pictures"):
        assert guarded.request(path)[0] == 401
        status, _, page = guarded.request(path, bearer(tokens["read"]))
        assert status == 200 and b"None yet." in page and b"onediffusion stop ID" in page
    assert guarded.request("/submissions/nothing", bearer(tokens["read"]))[0] == 404


def test_pictures_and_no_other_files_are_served(guarded: Dashboard, tokens: dict[str, str]) -> None:
    reader = bearer(tokens["read"])
    query = """{ assetNodeOrError(assetKey: {path: ["pictures", "images"]}) { ... on AssetNode {
        assetMaterializations(limit: 1) { metadataEntries { label ... on MarkdownMetadataEntry { mdStr } } } } } }"""
    entries = guarded.until(
        lambda: guarded.ask(query, reader)["assetNodeOrError"]["assetMaterializations"], seconds=60
    )[0]["metadataEntries"]
    text = next(entry["mdStr"] for entry in entries if entry["label"] == "pictures")
    path = text[text.index("/pictures/") : -1]
    status, headers, content = guarded.request(path, reader)
    assert (
        status == 200 and content.startswith(b"\xff\xd8") and "default-src 'none'" in headers["Content-Security-Policy"]
    )
    for other, expected in (("..%2fplaces.json", 403), ("none.jpg", 404), (".places.1", 404)):
        assert guarded.request(f"/pictures/{other}", reader)[0] == expected


def test_tokens_appear_only_in_their_file(guarded: Dashboard, tokens: dict[str, str]) -> None:
    written = ["\n".join(guarded.lines).encode()]
    for path in guarded.data.rglob("*"):
        with suppress(FileNotFoundError):  # a database's journal comes and goes
            if path.is_file() and path.name != "tokens":
                written.append(path.read_bytes())
    commands = " ".join(" ".join(command(one)) for one in descendants(guarded))
    assert len(written) > 6
    for token in tokens.values():
        assert token.encode() not in b"".join(written) and token not in commands
    assert stat.S_IMODE((guarded.data / "tokens").stat().st_mode) == 0o600


def test_only_loopback_port_and_private_sockets_are_open(guarded: Dashboard) -> None:
    family = [psutil.Process(guarded.process.pid), *descendants(guarded)]
    listening = [
        connection.laddr
        for process in family
        for connection in connections(process, "inet")
        if connection.status == psutil.CONN_LISTEN
    ]
    assert [f"http://{address.ip}:{address.port}" for address in listening] == [guarded.address]
    sockets = [c.laddr for p in family for c in connections(p, "unix") if str(c.laddr).endswith(".sock")]
    assert sockets and all(stat.S_IMODE(Path(name).parent.stat().st_mode) == 0o700 for name in sockets)
