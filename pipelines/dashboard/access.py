"""Who may use the dashboard: tokens and the sessions opened with them; and requests of other sites, which are refused.

Without tokens, whoever uses this machine may do everything. A page of another site, opened in the same browser, must
not: its requests are recognized by their Host and Origin.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from html import escape
from urllib.parse import urlsplit

from aiohttp import web

from pipelines.dashboard.tokens import SESSION_SECONDS, Role, Tokens

LOOPBACK = ("127.0.0.1", "localhost", "[::1]", "::1")
COOKIE = "onediffusion_session"
WRONG_SECONDS = 1.0  # before a wrong token is answered
HEADERS = {"X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "same-origin"}
ROLE = "role"  # the key in an admitted request under which its role is stored
_LOGIN = "/login"
_OTHER_SITE = (
    "requests of other sites are refused; should this be the dashboard's own page, then a proxy in front changes the "
    "Host of requests: have it pass on the browser's (nginx: proxy_set_header Host $http_host)"
)
_PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>OneDiffusion dashboard</title>
<meta name="viewport" content="width=device-width">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:26rem;margin:18vh auto;padding:0 1rem;color:#1b1d22}}
input,button{{font:inherit;padding:.5rem .7rem;width:100%;box-sizing:border-box;margin:.3rem 0}}p{{color:#5c626d}}
.wrong{{color:#b3372b}}</style><h1>OneDiffusion</h1>{message}
<form method="post" action="/login"><label>Token<input type="password" name="token" autocomplete="current-password"
autofocus required></label><button>Sign in</button></form></html>"""


@dataclass
class Access:
    """Decides which requests an application serves, and with which role.

    tokens: None where everyone on this machine may do everything.
    """

    tokens: Tokens | None

    def protect(self, app: web.Application) -> None:
        """Make an application refuse all other requests and store a request's role as request[ROLE]; add the login."""
        app.middlewares.append(self._middleware())
        app.router.add_route("*", _LOGIN, self._login)
        app.router.add_post("/logout", self._logout)

    def _middleware(self) -> Callable[..., Awaitable[web.StreamResponse]]:
        @web.middleware
        async def admit(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            reason = self._refusal(request)
            if reason:
                raise web.HTTPForbidden(text=f"{reason}\n")
            if request.path != _LOGIN:
                request[ROLE] = await self._admitted_role(request)
            return await handler(request)

        return admit

    def role(self, request: web.Request) -> Role | None:
        """The role of a request now: by its token, or by a session that may have ended since the request came in."""
        if self.tokens is None:
            return "operate"
        kind, _, token = request.headers.get("Authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return self.tokens.role_of(token.strip())
        return self.tokens.session_role(request.cookies.get(COOKIE, ""))

    async def _admitted_role(self, request: web.Request) -> Role:
        """The role of a request. Raises web.HTTPException where it has none."""
        role = self.role(request)
        if role is None:
            if "Authorization" in request.headers:
                await asyncio.sleep(WRONG_SECONDS)
            if request.method == "GET" and "text/html" in request.headers.get("Accept", ""):
                raise web.HTTPSeeOther(_LOGIN)
            raise web.HTTPUnauthorized(text="sign in at /login, or send `Authorization: Bearer TOKEN`\n")
        return role

    def _refusal(self, request: web.Request) -> str:
        """Why a request may come from another site's page, "" if it may not.

        Such a page may send requests with its own Origin, or make its own name point to this machine (a strange Host).
        It may also embed pictures and scripts of any address without an Origin, and Dagster takes mutations by GET:
        since Dagster's own pages send theirs by POST, those by GET are refused.
        """
        if not {".", ".."}.isdisjoint(request.path.split("/")):
            return "write the address without dots"
        if request.method in ("GET", "HEAD") and request.path.endswith("/graphql") and "query" in request.query:
            return "send queries by POST"
        is_visit = request.method == "GET" and request.headers.get("Sec-Fetch-Mode") == "navigate"
        if request.headers.get("Sec-Fetch-Site", "none") not in ("same-origin", "none") and not is_visit:
            return "requests of other sites are refused"
        host = request.headers.get("Host", "")
        if self.tokens is None and _host_name(host) not in LOOPBACK:
            return "open the dashboard by its address on this machine"
        origin = request.headers.get("Origin")
        changes = request.method not in ("GET", "HEAD") or request.headers.get("Upgrade", "").lower() == "websocket"
        if changes and origin and origin.partition("://")[2] != host:
            return _OTHER_SITE
        return ""

    async def _login(self, request: web.Request) -> web.StreamResponse:
        """Show the form; exchange the token that it sends for the cookie of a session."""
        if self.tokens is None:
            raise web.HTTPSeeOther("/")
        if request.method != "POST":
            return _form("")
        try:
            token = (await request.post()).get("token", "")
        except (ValueError, LookupError):  # the body is not in the encoding that it states
            token = ""
        token = token if isinstance(token, str) else ""
        if self.tokens.role_of(token) is None:
            await asyncio.sleep(WRONG_SECONDS)
            return _form("This token is not known.", 403)
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(
            COOKIE,
            self.tokens.open_session(token),
            max_age=int(SESSION_SECONDS),
            httponly=True,
            samesite="Strict",
            secure=request.secure or request.headers.get("X-Forwarded-Proto") == "https",
            path="/",
        )
        return response

    async def _logout(self, request: web.Request) -> web.StreamResponse:
        if self.tokens is not None:
            self.tokens.close_session(request.cookies.get(COOKIE, ""))
        response = web.Response(status=303, headers={"Location": _LOGIN})
        response.del_cookie(COOKIE, path="/")
        return response


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; "" where the header is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _form(message: str, status: int = 200) -> web.Response:
    text = f'<p class="wrong">{escape(message)}</p>' if message else "<p>A token opens the dashboard.</p>"
    policy = "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"
    headers = {**HEADERS, "Cache-Control": "no-store", "Content-Security-Policy": policy}
    return web.Response(status=status, text=_PAGE.format(message=text), content_type="text/html", headers=headers)
