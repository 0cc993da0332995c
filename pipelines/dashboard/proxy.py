"""What a browser talks to: a proxy that lets in who may, and hands the rest to Dagster's own web servers.

Those listen on sockets in a folder of this user alone, so there is no way around the proxy. Without tokens it serves
whoever uses this machine; pages of other sites are kept out by the Host and Origin of a request.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import ClientSession, ClientTimeout, ClientWebSocketResponse, UnixConnector, WSMsgType, web
from aiohttp.client_exceptions import ClientConnectionError

from model.inputs import InputError
from pipelines.dashboard.sheets import CURVES, PICTURES, live_curves, picture_folder
from pipelines.dashboard.submissions import SUBMISSIONS, submissions_page
from pipelines.dashboard.tokens import SESSION_SECONDS, Role, Tokens
from pipelines.dashboard.tracked_assets import find_place

COOKIE = "onediffusion_session"
CURVE_SECONDS = 3.0  # that curves, and pages of jobs, are drawn for everyone who looks
ANSWER_SECONDS = 10.0  # that a place may take for them, before its last ones are shown
REST_SECONDS = 2.0  # that a connection to Dagster may rest: web servers close them after some time, and not politely
WRONG_SECONDS = 1.0  # before a wrong token is answered
MOST_BYTES = 64 << 20
LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
# Hop by hop, or to be set anew.
_NOT_PASSED = frozenset(
    {
        *("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"),
        *("cookie", "authorization", "proxy-authorization", "proxy-authenticate", "content-encoding"),
        "accept-encoding",
    }
)
_PICTURE_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_NOT_SERVED = ("/notebook", "/dagit/notebook")  # would read files of this machine
_CHANGES = ("/report_asset_materialization", "/report_asset_check", "/report_asset_observation")
_OTHER_SITE = (
    "requests of other sites are refused; should this be the dashboard's own page, then a proxy in front changes the "
    "Host of requests: have it pass on the browser's (nginx: proxy_set_header Host $http_host)\n"
)
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>OneDiffusion dashboard</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:26rem;margin:18vh auto;padding:0 1rem;color:#1b1d22}}
input,button{{font:inherit;padding:.5rem .7rem;width:100%;box-sizing:border-box;margin:.3rem 0}}p{{color:#5c626d}}
.wrong{{color:#b3372b}}</style><h1>OneDiffusion</h1>{said}
<form method="post" action="/login"><label>Token<input type="password" name="token" autocomplete="current-password"
autofocus required></label><button>Sign in</button></form></html>"""
_HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "same-origin"}


@dataclass
class Proxy:
    """sockets: of the web server for each role; tokens: None where whoever is on this machine may come in."""

    sockets: Mapping[Role, Path]
    tokens: Tokens | None = None
    _clients: dict[Role, ClientSession] = field(default_factory=dict)
    _made: dict[Any, tuple[float, Any]] = field(default_factory=dict)
    _making: dict[Any, asyncio.Future[Any]] = field(default_factory=dict)

    def application(self) -> web.Application:
        """The proxy as an application."""
        app = web.Application(client_max_size=MOST_BYTES)
        app.router.add_get(f"/{PICTURES}/{{name}}", self.picture)
        app.router.add_get(f"/{CURVES}/{{name}}.svg", self.curves)
        app.router.add_get(f"/{SUBMISSIONS}", self.submissions)
        app.router.add_get(f"/{SUBMISSIONS}/{{name}}", self.submissions)
        app.router.add_route("*", "/login", self.login)
        app.router.add_post("/logout", self.logout)
        app.router.add_route("*", "/{path:.*}", self.serve)
        app.on_startup.append(self._open)
        app.on_cleanup.append(self._close)
        return app

    async def _open(self, app: web.Application) -> None:
        for role, path in self.sockets.items():
            timeout = ClientTimeout(total=None, sock_connect=10)
            self._clients[role] = ClientSession(
                connector=UnixConnector(path=str(path), limit=0, keepalive_timeout=REST_SECONDS),
                timeout=timeout,
                auto_decompress=False,
            )

    async def _close(self, app: web.Application) -> None:
        for client in self._clients.values():
            await client.close()

    def _role(self, request: web.Request) -> Role | None:
        if self.tokens is None:
            return "operate"
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.tokens.role_of(token.strip())
        return self.tokens.session_role(request.cookies.get(COOKIE, ""))

    def _refusal(self, request: web.Request) -> web.Response | None:
        """What another site's page would send: a strange Host (a name that it points at us), or its own Origin.

        A page may embed pictures and scripts of any address without saying where it is from, and Dagster takes
        mutations by GET as well: its own pages send theirs by POST, so others are refused.
        """
        if not {".", ".."}.isdisjoint(request.path.split("/")):
            return web.Response(status=403, text="write the address without dots\n")
        if request.method in ("GET", "HEAD") and request.path.endswith("/graphql") and "query" in request.query:
            return web.Response(status=403, text="send queries by POST\n")
        visits = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
        if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none") and not visits:
            return web.Response(status=403, text="requests of other sites are refused\n")
        host = request.headers.get("Host", "")
        name = _name(host)
        if self.tokens is None and name not in LOOPBACK:
            return web.Response(status=403, text="open the dashboard by its address on this machine\n")
        origin = request.headers.get("Origin")
        changes = request.method not in ("GET", "HEAD") or request.headers.get("Upgrade", "").lower() == "websocket"
        if changes and origin and origin.partition("://")[2] != host:
            return web.Response(status=403, text=_OTHER_SITE)
        return None

    async def _admit(self, request: web.Request) -> Role:
        """The role of who asks. Raises web.HTTPException where there is none."""
        refusal = self._refusal(request)
        if refusal is not None:
            raise web.HTTPForbidden(text=refusal.text)
        role = self._role(request)
        if role is None:
            if "Authorization" in request.headers:
                await asyncio.sleep(WRONG_SECONDS)
            if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
                raise web.HTTPSeeOther("/login")
            raise web.HTTPUnauthorized(text="sign in at /login, or send `Authorization: Bearer TOKEN`\n")
        return role

    async def login(self, request: web.Request) -> web.StreamResponse:
        """The form, and what it sends: a token in, a cookie out."""
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if self.tokens is None:
            raise web.HTTPSeeOther("/")
        if request.method != "POST":
            return _form("")
        try:
            token = (await request.post()).get("token", "")
        except (ValueError, LookupError):  # not in the encoding that it says
            token = ""
        token = token if isinstance(token, str) else ""
        if self.tokens.role_of(token) is None:
            await asyncio.sleep(WRONG_SECONDS)
            return _form("This token is not known.", 403)
        response = web.Response(status=303, headers={"Location": "/"})
        secure = request.secure or request.headers.get("X-Forwarded-Proto") == "https"
        response.set_cookie(
            COOKIE,
            self.tokens.open_session(token),
            max_age=int(SESSION_SECONDS),
            httponly=True,
            samesite="Strict",
            secure=secure,
            path="/",
        )
        return response

    async def logout(self, request: web.Request) -> web.StreamResponse:
        """End the session."""
        await self._admit(request)
        if self.tokens is not None:
            self.tokens.close_session(request.cookies.get(COOKIE, ""))
        response = web.Response(status=303, headers={"Location": "/login"})
        response.del_cookie(COOKIE, path="/")
        return response

    async def picture(self, request: web.Request) -> web.StreamResponse:
        """A picture of an asset page; its name is its content, so it may be kept for good."""
        await self._admit(request)
        name = request.match_info["name"]
        path = picture_folder() / name
        if "/" in name or name.startswith(".") or not path.is_file():
            raise web.HTTPNotFound(text="this picture is no longer kept\n")
        lasting = "private, max-age=31536000, immutable"
        headers = {**_HEADERS, "Cache-Control": lasting, "Content-Security-Policy": _PICTURE_POLICY}
        return web.FileResponse(path, headers=headers)

    async def curves(self, request: web.Request) -> web.StreamResponse:
        """A run's loss curves as they are now: an event of Dagster's shows those of its time."""
        await self._admit(request)
        name = request.match_info["name"]
        drawn = await self._recent(("curves", name), lambda: live_curves(find_place(name).address))
        headers = {**_HEADERS, "Cache-Control": "no-store", "Content-Security-Policy": _PICTURE_POLICY}
        return web.Response(body=drawn, content_type="image/svg+xml", headers=headers)

    async def submissions(self, request: web.Request) -> web.StreamResponse:
        """The jobs that work on one place, or on all: also those that were sent without the dashboard."""
        role = await self._admit(request)
        name = request.match_info.get("name")
        page = await self._recent(("jobs", name, role), lambda: submissions_page(name, role == "operate"))
        headers = {**_HEADERS, "Cache-Control": "no-store", "Content-Security-Policy": _PICTURE_POLICY}
        return web.Response(text=page, content_type="text/html", headers=headers)

    async def _recent(self, key: Any, make: Callable[[], Any]) -> Any:
        """What `make` gave some seconds ago at the most, once for all who ask; of a place that is slow, the last."""
        since, made = self._made.get(key, (float("-inf"), None))
        if time.monotonic() - since <= CURVE_SECONDS:
            return made
        if key not in self._making:
            self._making[key] = aside(make)
            self._making[key].add_done_callback(lambda _: self._making.pop(key))
        making = self._making[key]
        await asyncio.wait([making], timeout=ANSWER_SECONDS)
        if making.done():
            try:
                made = making.result()
            except InputError as error:
                raise web.HTTPNotFound(text=f"{error}\n") from None
            self._made[key] = (time.monotonic(), made)
        elif made is None:
            raise web.HTTPGatewayTimeout(text=f"no answer within {ANSWER_SECONDS:.0f} s; try again\n")
        return made

    async def serve(self, request: web.Request) -> web.StreamResponse:
        """Everything else is Dagster's, from the web server of the role."""
        role = await self._admit(request)
        if request.path.startswith(_NOT_SERVED) or (role == "read" and request.path.startswith(_CHANGES)):
            raise web.HTTPForbidden(text="not served here\n")
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._pass_socket(request, role)
        given = request.headers.items()  # bytes that are no text have no place in a request of our own
        headers = {name: value for name, value in given if name.lower() not in _NOT_PASSED and value.isprintable()}
        headers["Accept-Encoding"] = "identity"  # compressed once, here
        body = await request.read() if request.can_read_body else None
        try:
            async with self._clients[role].request(
                request.method, f"http://dagster{request.path_qs}", headers=headers, data=body, allow_redirects=False
            ) as answer:
                passed = [(name, value) for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED]
                response = web.StreamResponse(status=answer.status, headers={**dict(passed), **_HEADERS})
                response.enable_compression()
                await response.prepare(request)
                async for part in answer.content.iter_chunked(1 << 16):
                    await response.write(part)
                await response.write_eof()
                return response
        except ClientConnectionError:
            raise web.HTTPServiceUnavailable(text="the dashboard is starting; try again\n") from None

    async def _pass_socket(self, request: web.Request, role: Role) -> web.StreamResponse:
        client = self._clients[role]
        protocols = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if name]
        try:
            inner = await client.ws_connect(f"http://dagster{request.path_qs}", protocols=protocols, max_msg_size=0)
        except ClientConnectionError:
            raise web.HTTPServiceUnavailable(text="the dashboard is starting; try again\n") from None
        outer = web.WebSocketResponse(protocols=[inner.protocol] if inner.protocol else (), max_msg_size=MOST_BYTES)
        await outer.prepare(request)

        def admitted() -> bool:  # who signed out, or whose token was taken back, hears and says nothing more
            return self._role(request) == role

        tasks = [
            asyncio.create_task(_pass_on(outer, inner, admitted)),
            asyncio.create_task(_pass_on(inner, outer, admitted)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(inner.close(), outer.close(), *tasks, return_exceptions=True)
        return outer


def aside(work: Callable[[], Any]) -> asyncio.Future[Any]:
    """Do it on a daemon thread of its own: what waits for a network that is gone takes no other's place, and the end
    of the process does not wait for it."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Any] = loop.create_future()

    def settle(error: Exception | None, result: Any) -> None:
        if not future.done():
            future.set_exception(error) if error else future.set_result(result)

    def run() -> None:
        error, result = None, None
        try:
            result = work()
        except Exception as failure:
            error = failure
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, error, result)

    threading.Thread(target=run, daemon=True).start()
    return future


async def _pass_on(
    source: web.WebSocketResponse | ClientWebSocketResponse,
    sink: web.WebSocketResponse | ClientWebSocketResponse,
    admitted: Callable[[], bool],
) -> None:
    async for message in source:
        if not admitted():
            return
        if message.type == WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await sink.send_bytes(message.data)


def _name(host: str) -> str:
    """The host of a Host header without its port; nothing where it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _form(said: str, status: int = 200) -> web.Response:
    text = _PAGE.format(said=f'<p class="wrong">{escape(said)}</p>' if said else "<p>A token opens the dashboard.</p>")
    policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    headers = {**_HEADERS, "Cache-Control": "no-store", "Content-Security-Policy": policy}
    return web.Response(status=status, text=text, content_type="text/html", headers=headers)
