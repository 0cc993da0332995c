"""What a browser talks to: a proxy that admits requests and passes them to Dagster's own web servers.

Those listen on socket files in a folder of this user alone, so there is no way around the proxy. It also serves what
Dagster has no page for: pictures, live curves and the page of jobs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import ClientSession, ClientTimeout, ClientWebSocketResponse, UnixConnector, WSMsgType, web
from aiohttp.client_exceptions import ClientConnectionError

from model.inputs import InputError, WorkFailed
from pipelines.dashboard.access import HEADERS, ROLE, Access
from pipelines.dashboard.background import ANSWER_SECONDS, SharedResults, T
from pipelines.dashboard.charts import CURVES, live_curves
from pipelines.dashboard.dagster_internals import FILE_PATHS, REPORT_PATHS, STATIC_PATH, static_folder
from pipelines.dashboard.jobs_page import FIRST_STEPS, JOBS_PATH, render_jobs_page
from pipelines.dashboard.picture_files import PICTURES, picture_folder
from pipelines.dashboard.tokens import Role, Tokens
from pipelines.dashboard.tracked_assets import find_tracked, tracked_assets

IDLE_SECONDS = 2.0  # that an idle connection to Dagster is kept; a web server closes them later, and without notice
MAX_BYTES = 64 << 20
# Headers of one hop, and those that are set anew.
_NOT_PASSED = frozenset(
    {
        *("connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "host", "content-length"),
        *("cookie", "authorization", "proxy-authorization", "proxy-authenticate", "content-encoding"),
        "accept-encoding",
    }
)
_OWN_PAGE = {**HEADERS, "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"}
_NO_STORE = {"Cache-Control": "no-store"}
_FOREVER = "private, max-age=31536000, immutable"  # of what is named by its content; a page has 50 such files
_STARTING = "the dashboard is starting; try again\n"


@dataclass
class Proxy:
    """Admits requests and passes them on.

    sockets: what the web server of each role listens on; tokens: None where everyone on this machine may do everything.
    """

    sockets: Mapping[Role, Path]
    tokens: Tokens | None = None
    _clients: dict[Role, ClientSession] = field(default_factory=dict)
    _results: SharedResults = field(default_factory=SharedResults)

    def application(self) -> web.Application:
        """The proxy as an application of aiohttp's."""
        app = web.Application(client_max_size=MAX_BYTES)
        self._access = Access(self.tokens)
        self._access.protect(app)
        app.router.add_get(f"/{PICTURES}/{{name}}", self._picture)
        app.router.add_get(f"/{CURVES}/{{name}}.svg", self._curves)
        app.router.add_get(f"{STATIC_PATH}{{path:.+}}", self._script)
        app.router.add_get("/", self._start)
        app.router.add_get(f"/{JOBS_PATH}", self._jobs)
        app.router.add_get(f"/{JOBS_PATH}/{{name}}", self._jobs)
        app.router.add_route("*", "/{path:.*}", self._pass)
        app.on_startup.append(self._open)
        app.on_cleanup.append(self._close)
        return app

    async def _open(self, app: web.Application) -> None:
        for role, path in self.sockets.items():
            self._clients[role] = ClientSession(
                connector=UnixConnector(path=str(path), limit=0, keepalive_timeout=IDLE_SECONDS),
                timeout=ClientTimeout(total=None, sock_connect=10),
                auto_decompress=False,
            )

    async def _close(self, app: web.Application) -> None:
        for client in self._clients.values():
            await client.close()

    async def _start(self, request: web.Request) -> web.StreamResponse:
        """The assets, which Dagster would show after its timeline of runs; where there are none, what to do first."""
        if not await self._shared(("anything",), tracked_assets):
            return web.Response(text=FIRST_STEPS, content_type="text/html", headers={**_OWN_PAGE, **_NO_STORE})
        raise web.HTTPFound("/assets")

    async def _picture(self, request: web.Request) -> web.StreamResponse:
        """A picture of an asset page. Its name is the digest of its content, so browsers may keep it."""
        name = request.match_info["name"]
        path = picture_folder() / name
        if "/" in name or name.startswith(".") or not path.is_file():
            raise web.HTTPNotFound(text="this picture is no longer kept\n")
        return web.FileResponse(path, headers={**_OWN_PAGE, "Cache-Control": _FOREVER})

    async def _script(self, request: web.Request) -> web.StreamResponse:
        """A script of Dagster's pages, from its file: a page waits for fifty, which Dagster would send through here.

        They are not compressed, which would take longer than the rest: a distant browser waits once, and keeps them.
        """
        parts = request.match_info["path"].split("/")
        path = static_folder().joinpath(*parts)
        try:
            is_file = ".." not in parts and path.is_file()
        except (ValueError, OSError):  # no name of a file
            is_file = False
        if not is_file:
            raise web.HTTPNotFound(text="not served here\n")
        return web.FileResponse(path, headers={**HEADERS, "Cache-Control": _FOREVER})

    async def _curves(self, request: web.Request) -> web.StreamResponse:
        """A run's loss curves as they are now; an event of Dagster's shows those of its time."""
        name = request.match_info["name"]
        svg = await self._shared(("curves", name), lambda: live_curves(find_tracked(name).address))
        return web.Response(body=svg, content_type="image/svg+xml", headers={**_OWN_PAGE, "Cache-Control": "no-store"})

    async def _jobs(self, request: web.Request) -> web.StreamResponse:
        """The jobs on one dataset or run, or on all: also those that were sent without the dashboard."""
        name, role = request.match_info.get("name"), request[ROLE]
        page = await self._shared(("jobs", name, role), lambda: render_jobs_page(name, role == "operate"))
        return web.Response(text=page, content_type="text/html", headers={**_OWN_PAGE, "Cache-Control": "no-store"})

    async def _shared(self, key: object, make: Callable[[], T]) -> T:
        try:
            return await self._results.get(key, make)
        except InputError as error:
            raise web.HTTPNotFound(text=f"{error}\n") from None
        except WorkFailed as error:
            raise web.HTTPBadGateway(text=f"{error}\n") from None
        except TimeoutError:
            raise web.HTTPGatewayTimeout(text=f"no answer within {ANSWER_SECONDS:.0f} s; try again\n") from None

    async def _pass(self, request: web.Request) -> web.StreamResponse:
        """Pass a request to the web server of its role, and pass its answer back."""
        role: Role = request[ROLE]
        if request.path.startswith(FILE_PATHS) or (role == "read" and request.path.startswith(REPORT_PATHS)):
            raise web.HTTPForbidden(text="not served here\n")
        if request.headers.get("Upgrade", "").lower() == "websocket":
            return await self._pass_socket(request, role)
        # aiohttp sends no header with bytes that are no text.
        headers = {
            name: value
            for name, value in request.headers.items()
            if name.lower() not in _NOT_PASSED and value.isprintable()
        }
        headers["Accept-Encoding"] = "identity"  # the answer is compressed once, here
        body = await request.read() if request.can_read_body else None
        try:
            async with self._clients[role].request(
                request.method, f"http://dagster{request.path_qs}", headers=headers, data=body, allow_redirects=False
            ) as answer:
                passed = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED}
                response = web.StreamResponse(status=answer.status, headers={**passed, **HEADERS})
                if _has_body(request.method, answer.status):  # aiohttp would send a compressed nothing after the others
                    response.enable_compression()
                await response.prepare(request)
                async for part in answer.content.iter_chunked(1 << 16):
                    await response.write(part)
                await response.write_eof()
                return response
        except ClientConnectionError:
            raise web.HTTPServiceUnavailable(text=_STARTING) from None

    async def _pass_socket(self, request: web.Request, role: Role) -> web.StreamResponse:
        """Pass the messages of a WebSocket in both directions, until either side closes it."""
        client = self._clients[role]
        protocols = [name.strip() for name in request.headers.get("Sec-WebSocket-Protocol", "").split(",") if name]
        try:
            inner = await client.ws_connect(f"http://dagster{request.path_qs}", protocols=protocols, max_msg_size=0)
        except ClientConnectionError:
            raise web.HTTPServiceUnavailable(text=_STARTING) from None
        outer = web.WebSocketResponse(protocols=[inner.protocol] if inner.protocol else (), max_msg_size=MAX_BYTES)
        await outer.prepare(request)

        def is_admitted() -> bool:  # no message passes after a sign-out, or after the token was revoked
            return self._access.role(request) == role

        tasks = [
            asyncio.create_task(_pass_messages(outer, inner, is_admitted)),
            asyncio.create_task(_pass_messages(inner, outer, is_admitted)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(inner.close(), outer.close(), *tasks, return_exceptions=True)
        return outer


def _has_body(method: str, status: int) -> bool:
    """Whether an answer has a body (RFC 9110, section 6.4.1): a browser takes what follows one without for the next."""
    return method != "HEAD" and status not in (204, 304)


async def _pass_messages(
    source: web.WebSocketResponse | ClientWebSocketResponse,
    sink: web.WebSocketResponse | ClientWebSocketResponse,
    is_admitted: Callable[[], bool],
) -> None:
    async for message in source:
        if not is_admitted():
            return
        if message.type == WSMsgType.TEXT:
            await sink.send_str(message.data)
        elif message.type == WSMsgType.BINARY:
            await sink.send_bytes(message.data)
