"""What stands before every route: who may come in, from where, and what browsers may do with the answer.

A middleware and not a dependency of the routes, because it has to cover what has no route too: static files, 404s, other methods. The
answer to somebody who may not come in says nothing about what is there.
"""

import re
from collections.abc import Awaitable, Callable

from fastapi import HTTPException
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Authorize = Callable[[Request], Awaitable[None]]  # raises HTTPException 401 or 403

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; font-src 'self'; form-action 'self'; "
        "base-uri 'none'; frame-ancestors 'self'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-store",
}
_PORT = re.compile(r":\d{1,5}$")
LOOPBACK = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """Security headers on every answer; everything behind `authorize`, where there is one; only `hosts`, where they are given."""

    def __init__(self, app: ASGIApp, authorize: Authorize | None = None, hosts: tuple[str, ...] | None = None) -> None:
        self.app, self.authorize, self.hosts = app, authorize, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request; websockets, of which there are none here, are refused."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":  # the server's own start and end
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        if self.hosts is not None and _host(request) not in self.hosts:
            # A page elsewhere may have pointed its own name at 127.0.0.1 (DNS rebinding).
            refusal = PlainTextResponse("This server only answers to 127.0.0.1 and localhost.", 400)
            await refusal(scope, receive, send_with_headers)
            return
        if self.authorize is not None:
            try:
                await self.authorize(request)
            except HTTPException as error:
                await PlainTextResponse(f"{error.detail}: log in to Airflow first.", error.status_code)(scope, receive, send_with_headers)
                return
        await self.app(scope, receive, send_with_headers)


def is_own_page(request: Request) -> bool:
    """Whether a POST comes from a page of this server: another origin cannot set this header without being asked about it first (CORS)."""
    return request.headers.get("x-bliss-explorer") == "1" and request.headers.get("sec-fetch-site", "same-origin") == "same-origin"


def _host(request: Request) -> str:
    return _PORT.sub("", request.headers.get("host", ""))
