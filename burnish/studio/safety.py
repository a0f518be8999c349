"""The conditions on a request, before anything answers it, and on what a browser may do.

    Host        names this server: otherwise a site could point its own name at it (DNS rebinding)
    key         on another address than 127.0.0.1, by ?key=... once and then by a cookie
    Origin      of a POST: a page of this server, not of another one
    token       of a POST: one of this start, which only pages of this server know
    body        of a POST: at most 64 kB

Only GET, HEAD and POST exist, and GET changes nothing.
"""

from __future__ import annotations

import hmac
import ipaddress
import secrets
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

LARGEST_BODY = 64_000
COOKIE = "burnish-studio"
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self'; connect-src 'self'; form-action 'self'; base-uri 'none'; "
        "frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


def new_token() -> str:
    """Return a text that nobody can guess."""
    return secrets.token_urlsafe(24)


@dataclass(frozen=True)
class Access:
    """Who may ask for what.

    Args:
        host: the address on which the server listens.
        key: which lets somebody in from elsewhere; "" on 127.0.0.1, where none is needed.
        token: of this start, in every form.
    """

    host: str = "127.0.0.1"
    key: str = ""
    token: str = field(default_factory=new_token)

    def __post_init__(self) -> None:
        """Refuse to be open to a network.

        Raises:
            ValueError: another address than 127.0.0.1 has no key.
        """
        if self.host not in LOOPBACK and not self.key:
            raise ValueError(f"{self.host} can be reached by others, so it needs a key")

    def knows_host(self, host: str) -> bool:
        """Return whether the Host of a request, with or without a port, is this server."""
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        if name in LOOPBACK:
            return True
        if self.host in LOOPBACK:
            return False

        own = {self.host.lower(), socket.gethostname().lower(), socket.getfqdn().lower()}
        return name in own or is_address(name)

    def admits(self, headers: Headers) -> bool:
        """Return whether a request comes from somebody who has the key."""
        if not self.key:
            return True
        try:
            cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        return cookie is not None and is_same(cookie.value, self.key)


def is_address(name: str) -> bool:
    """Return whether a host is a number: to no number can somebody else's name be pointed."""
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_same(given: str, right: str) -> bool:
    """Return whether a secret is the right one, in the same time whatever was given."""
    return hmac.compare_digest(given.encode("utf-8", "replace"), right.encode())


def has_own_origin(headers: Headers) -> bool:
    """Return whether a POST comes from a page of the server it is sent to."""
    origin = headers.get("origin")
    if origin is None:
        return headers.get("sec-fetch-site") == "same-origin"
    return urlsplit(origin).netloc == headers.get("host") and origin != "null"


class Guard:
    """Answers what must not pass, and gives the rest to the application."""

    def __init__(self, application: Application, access: Access) -> None:
        self.application = application
        self.access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.application(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        refused = self.refuse(scope) or await self.refuse_form(scope, receive)
        await (refused or self.application)(scope, receive, send_safely)

    def refuse(self, scope: Scope) -> Response | None:
        """Return the answer to a request that must not pass; None if it may."""
        headers = Headers(scope=scope)
        if not self.access.knows_host(headers.get("host", "")):
            return PlainTextResponse("This is not the address of the studio.", 421)
        if scope["method"] not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("Only GET and POST.", 405)

        query = parse_qs(scope["query_string"].decode("latin-1"))
        if self.access.key and is_same(query.get("key", [""])[0], self.access.key):
            return self.welcome()
        if not self.access.admits(headers):
            return PlainTextResponse(
                "The studio needs its key: open the address that burnish studio has printed.", 401
            )
        if scope["method"] == "POST" and not has_own_origin(headers):
            return PlainTextResponse("A form of another site was refused.", 403)
        return None

    def welcome(self) -> Response:
        """Return the answer to somebody who has the key: a cookie, and the list of runs."""
        answer = RedirectResponse("/", 303)
        answer.set_cookie(COOKIE, self.access.key, httponly=True, samesite="strict")
        return answer

    async def refuse_form(self, scope: Scope, receive: Receive) -> Response | None:
        """Return the answer to a form without this start's token; None if it has it.

        The fields of the form, by name, are in `scope["state"]["form"]` then.
        """
        if scope["method"] != "POST":
            return None

        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > LARGEST_BODY:
                return PlainTextResponse("The form is too long.", 413)

        try:
            fields = parse_qs(body.decode(), keep_blank_values=True, max_num_fields=50)
        except ValueError:
            return PlainTextResponse("This is no form.", 400)
        if not is_same(fields.get("token", [""])[0], self.access.token):
            return PlainTextResponse(
                "The studio was started anew since this page was opened. Go back, load it again.",
                403,
            )

        scope.setdefault("state", {})["form"] = {name: values[0] for name, values in fields.items()}
        return None
