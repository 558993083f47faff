"""Who may call REST, and how much of it is held at once: decided before a body is read."""

from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.admission import Admission, too_many
from service.api.openapi import PROBLEMS
from service.api.problems import inference_error_of, problem_of
from service.api.studio import PATHS
from service.errors import GenserveError
from service.keys import Keys
from service.metrics import Metrics

PROBES = ("/healthz", "/readyz", "/v2/health/live", "/v2/health/ready")
"""Answered whatever happens: an orchestrator has no key, and must not end a server for its load."""
OPEN = (*PROBES, *PATHS, "/docs", "/docs/oauth2-redirect", "/redoc", "/openapi.json")
"""What needs no key: probes, the page, which holds no data, and the contract, which is public."""
CROWDED = "crowded"
"""In the state of a connection's requests: there are more connections than there may be."""

_SCHEME = "api_key"


class Guard:
    """Middleware that refuses who has no key, where keys are set, and what is beyond the bounds.

    Around the routes, and inside of what gives an exchange its id and its CORS headers.
    """

    def __init__(
        self, app: ASGIApp, *, metrics: Metrics, admission: Admission, keys: Keys | None
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._admission = admission
        self._keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one exchange; other scopes than HTTP pass through."""
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
            self._admission.enter()
        except GenserveError as error:
            self._metrics.count_refusal("", error)
            if scope["path"].startswith("/v2"):
                response = inference_error_of(error)
            else:
                response = problem_of(error, scope["state"]["request_id"])
            if scope["state"].get(CROWDED):  # the client's next connection may be welcome
                response.headers["Connection"] = "close"
            await response(scope, receive, send)
            return
        held = 0

        async def receive_and_hold() -> Message:
            nonlocal held
            message = await receive()
            if size := len(message.get("body", b"")):
                self._admission.take(size)
                held += size
            return message

        try:
            await self._app(scope, receive_and_hold, send)
        finally:
            self._admission.leave(held)

    def _check(self, scope: Scope) -> None:
        if self._keys is not None and scope["path"] not in OPEN:
            self._keys.check(Headers(scope=scope).get("authorization"))
        if scope["state"].get(CROWDED):
            raise too_many("the server has as many open connections as it takes: close idle ones")


def describe_keys(document: dict[str, Any]) -> dict[str, Any]:
    """Return an OpenAPI document that says which paths need a key."""
    for path, operations in document["paths"].items():
        for operation in operations.values():
            operation["security"] = [] if path in OPEN else [{_SCHEME: []}]
            if path not in OPEN:
                operation["responses"].setdefault("4XX", PROBLEMS["4XX"])
    scheme = {"type": "http", "scheme": "bearer", "description": "An API key of this server."}
    document["components"]["securitySchemes"] = {_SCHEME: scheme}
    return document
