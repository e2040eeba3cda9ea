"""Who may ask the server for what, and the headers that keep its page to itself.

Without a token only pages of this server, under a name of this machine, may use it: other web sites that are open in
the same browser could otherwise send requests to it, directly or under a name that they make point to this machine
("DNS rebinding"). With a token, a cookie or an ``Authorization`` header has to carry it.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from urllib.parse import parse_qs, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from repmode_cl.serve.settings import ServeSettings, is_loopback

__all__ = ["CONTENT_SECURITY_POLICY", "Access"]

#: Nothing is loaded from elsewhere, no script or style stands in the page itself, and no other page frames it.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)

_HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # Not no-referrer, which would take a form's Origin away, by which it is known to be of this server.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}

# What a visitor without the token may see: the form that asks for it.
_OPEN = ("/sign-in", "/static/")

_READING = frozenset({"GET", "HEAD"})


class Access:
    """Middleware that refuses requests, and adds headers to every answer.

    Parameters
    ----------
    app
        What is behind it.
    settings
        Of the server.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app, self._settings = app, settings
        key = secrets.token_bytes(32)
        token = settings.token
        # The cookie is no token: it is worthless once the server has ended.
        self._session = None if token is None else hmac.new(key, token.encode(), hashlib.sha256).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    headers[name] = value
            await send(message)

        refusal = self._refuse(scope, Headers(scope=scope))
        await (refusal or self._app)(scope, receive, send_with_headers)

    def signed_in(self, token: str) -> Response | None:
        """Return an answer that signs a visitor in and leads to the page; None if the token is another."""
        if self._session is None or self._settings.token is None:
            return RedirectResponse("/", 303)
        if not hmac.compare_digest(token.encode(), self._settings.token.encode()):
            return None
        response = RedirectResponse("/", 303)
        # Without Secure: the server itself speaks no TLS. Strict keeps other sites from using it.
        response.set_cookie(self._cookie, self._session, httponly=True, samesite="strict", path="/")
        return response

    @property
    def _cookie(self) -> str:
        # Cookies belong to a host whatever the port: two servers of one machine need two names.
        return f"repmode-cl-{self._settings.port}"

    def _refuse(self, scope: Scope, headers: Headers) -> Response | None:
        host = headers.get("host", "")
        if scope["method"] not in _READING and not _same_site(headers, host):
            return _error(403, "this request comes from another web site, and is refused")
        if self._session is None:
            name = _host_name(host)
            if not is_loopback(name):
                return _error(
                    403,
                    f"this server was asked for as {name[:100]!r}; without a token it only answers as localhost "
                    "(start it with --token-file to use another name)",
                )
            return None
        if scope["path"].startswith(_OPEN) or self._knows_token(scope, headers):
            return None
        if scope["path"] != "/":
            return _error(401, "this server asks for a token; open its page and enter it")
        given = parse_qs(scope.get("query_string", b"").decode("ascii", "replace")).get("token", [""])[0]
        return (self.signed_in(given) if given else None) or RedirectResponse(
            "/sign-in?wrong=1" if given else "/sign-in", 303
        )

    def _knows_token(self, scope: Scope, headers: Headers) -> bool:
        assert self._session is not None
        assert self._settings.token is not None
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer":
            return hmac.compare_digest(bearer.encode(), self._settings.token.encode())
        session = HTTPConnection(scope).cookies.get(self._cookie, "")
        return hmac.compare_digest(session.encode(), self._session.encode())


def _same_site(headers: Headers, host: str) -> bool:
    """Tell whether a browser's request comes from a page of this server; other programs do not say."""
    if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("origin")
    return origin is None or origin.partition("://")[2] == host


def _host_name(host: str) -> str:
    """Return a Host header without its port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets that do not fit
        return host


def _error(status: int, text: str) -> Response:
    return JSONResponse({"error": text}, status)
