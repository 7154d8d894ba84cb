"""Logging in: the token is exchanged for a session cookie, once per browser and server start."""

from __future__ import annotations

from urllib.parse import parse_qs

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import BaseRoute, Route

from mainspring.errors import InvalidInput, TooLarge, UnsupportedMedia
from mainspring.server.gate import COOKIE, Access

MAX_FORM = 64 * 1024

PAGE_HEADERS = {"cache-control": "no-store", "referrer-policy": "same-origin"}
"""Under the gate's ``no-referrer`` a browser sends our own forms with ``Origin: null``, which the gate rightly refuses."""


async def form_of(request: Request) -> dict[str, str]:
    """The fields of a small urlencoded form; the last value of a field counts."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/x-www-form-urlencoded":
        raise UnsupportedMedia("this is where a page sends its form", value=kind or "(none)")
    pieces, seen = [], 0
    async for piece in request.stream():
        seen += len(piece)
        if seen > MAX_FORM:
            raise TooLarge("the form is too large", value=f"more than {MAX_FORM} bytes")
        pieces.append(piece)
    try:
        fields = parse_qs(
            b"".join(pieces).decode(), keep_blank_values=True, max_num_fields=50, errors="strict"
        )
    except ValueError as error:
        raise InvalidInput(f"not a form: {error}") from None
    return {name: values[-1] for name, values in fields.items()}


def session_routes(access: Access) -> list[BaseRoute]:
    """``/login`` (open) and ``/logout``."""
    from mainspring.server.pages.text import environment

    template = environment().get_template("login.html")

    async def show(_request: Request) -> Response:
        return _page(template.render(failed=False), 200)

    async def login(request: Request) -> Response:
        fields = await form_of(request)
        if access.principal(fields.get("token", "").strip()) is None:
            return _page(template.render(failed=True), 401)
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(COOKIE, access.session(), httponly=True, samesite="strict", path="/")
        return response

    async def logout(_request: Request) -> Response:
        response = RedirectResponse("/login", status_code=303)
        response.delete_cookie(COOKIE, httponly=True, samesite="strict", path="/")
        return response

    return [
        Route("/login", show, methods=["GET"]),
        Route("/login", login, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
    ]


def _page(text: str, status: int) -> Response:
    return Response(text, status_code=status, media_type="text/html", headers=PAGE_HEADERS)
