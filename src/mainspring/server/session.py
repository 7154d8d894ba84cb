"""Logging in and out: the token is exchanged for a session cookie. Logging out ends the session on the server too."""

from __future__ import annotations

from urllib.parse import parse_qs

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from mainspring.errors import InvalidInput, MainspringError, SlowRequest, TooLarge, UnsupportedMedia
from mainspring.server.authentication import Sessions
from mainspring.server.gate import COOKIE, cookie_name, session_of

MAX_FORM = 64 * 1024
FORM_S = 30.0
"""How long a form may take to arrive."""

PAGE_HEADERS = {"cache-control": "no-store", "referrer-policy": "same-origin"}
"""Under the gate's ``no-referrer`` a browser would send our own forms with ``Origin: null``, which the gate refuses."""


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a small urlencoded form; the last value of a field counts."""
    media_type = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if media_type != "application/x-www-form-urlencoded":
        raise UnsupportedMedia("this is where a page sends its form", value=media_type or "(none)")
    pieces, received = [], 0
    try:
        with anyio.fail_after(FORM_S):
            async for piece in request.stream():
                received += len(piece)
                if received > MAX_FORM:
                    raise TooLarge("the form is too large", value=f"more than {MAX_FORM} bytes")
                pieces.append(piece)
    except TimeoutError:
        raise SlowRequest(f"the form did not arrive within {FORM_S:g} s") from None
    try:
        fields = parse_qs(
            b"".join(pieces).decode(), keep_blank_values=True, max_num_fields=50, errors="strict"
        )
    except ValueError as error:
        raise InvalidInput(f"not a form: {error}") from None
    return {name: values[-1] for name, values in fields.items()}


def session_routes(sessions: Sessions) -> list[BaseRoute]:
    """``/login`` (open) and ``/logout``."""
    from mainspring.server.pages.text import environment

    template = environment().get_template("login.html")

    def page(status: int, wrong: str = "") -> Response:
        return _page_response(template.render(wrong=wrong), status)

    async def show(_request: Request) -> Response:
        return page(200)

    async def login(request: Request) -> Response:
        try:
            token = (await read_form(request)).get("token", "").strip()
        except MainspringError as error:
            return page(error.status, f"That could not be read: {error.message}.")
        value = await anyio.to_thread.run_sync(sessions.open, token) if token else None
        if value is None:
            return page(401, "That is not this workspace's token." if token else "The token is missing.")
        response = RedirectResponse("/", status_code=303)
        name = cookie_name(request.scope)
        response.set_cookie(name, value, httponly=True, samesite="strict", path="/", secure=name != COOKIE)
        return response

    async def logout(request: Request) -> Response:
        value = session_of(request.scope)
        if value is not None:
            await anyio.to_thread.run_sync(sessions.revoke, value)
        response = RedirectResponse("/login", status_code=303)
        name = cookie_name(request.scope)
        response.delete_cookie(name, httponly=True, samesite="strict", path="/", secure=name != COOKIE)
        return response

    return [
        Route("/login", show, methods=["GET"]),
        Route("/login", login, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
    ]


def _page_response(text: str, status: int) -> Response:
    return Response(text, status_code=status, media_type="text/html", headers=PAGE_HEADERS)
