"""The id of a call: the client's where it is sane, or a new one."""

import re
import secrets
from typing import Any

import grpc

REQUEST_ID = "x-request-id"

_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def request_id_of(context: grpc.aio.ServicerContext) -> str:
    """Return the id that a call is known by in the log."""
    metadata: Any = context.invocation_metadata() or ()
    for key, value in metadata:
        if key == REQUEST_ID and _SANE_ID.fullmatch(value):
            return str(value)
    return secrets.token_hex(16)
