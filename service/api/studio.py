"""Studio: the files of the page at `/`, which shows in a browser what the models do.

The page holds no data: it asks the REST API like any other client, so it needs no key itself. Its
files are read once, at the start; no request names a file on the disk.
"""

import hashlib
from collections.abc import Awaitable, Callable
from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

FOLDER = Path(__file__).parent.parent / "studio"
PAGE = "index.html"
MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
PATHS = {
    "/" if path.name == PAGE else f"/studio/{path.name}": path
    for path in sorted(FOLDER.iterdir())
    if path.suffix in MEDIA_TYPES
}
"""The paths of the page and of what it is made of, and their files."""

POLICY = "; ".join(
    [
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    ]
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    # Kept, and asked for again by its ETag: a page is never of two versions of the server.
    "Cache-Control": "no-cache",
}


def studio_routes() -> APIRouter:
    """Return the routes of the page; they are no part of the OpenAPI document."""
    router = APIRouter()
    for path, file in PATHS.items():
        router.add_route(path, _serving(file), include_in_schema=False)
    return router


def _serving(file: Path) -> Callable[[Request], Awaitable[Response]]:
    content, media_type = file.read_bytes(), MEDIA_TYPES[file.suffix]
    tag = f'"{hashlib.sha256(content).hexdigest()[:16]}"'
    headers = {**_HEADERS, "ETag": tag}

    async def serve(request: Request) -> Response:
        if tag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        return Response(content, media_type=media_type, headers=headers)

    return serve
