"""Mixed traffic for soaking a server: every operation over both transports, good, bad, late, left.

What is sent is drawn from a seed. Tests and `make bench TARGET=soak` send the same. The server
serves the bundled models; requests are small, so that many fit into a minute.
"""

import base64
import io
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import Any

import numpy as np

from service.images import levels_to_png
from service.rpc.pb import generation_service_pb2 as pb

SIDE = 28
JSON, NPY, PNG, EVENTS = "application/json", "application/x-npy", "image/png", "text/event-stream"

_POOL = 600
"""Distinct requests: few enough that each is sent again and again, and must be answered alike."""


class Behaviour(Enum):
    """How a client behaves, which says how it may be answered."""

    GOOD = "good"  # waits for its answer
    BAD = "bad"  # asks for what there is not, or sends what is broken
    LATE = "late"  # has a deadline of a few milliseconds
    LEFT = "left"  # leaves before it has its answer


ALLOWED = {
    Behaviour.GOOD: {"200", "OK"},
    Behaviour.BAD: {"400", "404", "405", "406", "415", "422"}
    | {"INVALID_ARGUMENT", "NOT_FOUND", "FAILED_PRECONDITION"},
    # Late work is dropped, or refused at the door.
    Behaviour.LATE: {"200", "504", "429", "OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"},
    Behaviour.LEFT: {"200", "OK", "left"},
}
"""The only answers that are right."""


@dataclass(frozen=True)
class Rest:
    """A request over HTTP, and whether the same bytes must always be answered with the same."""

    verb: str
    path: str
    body: bytes = b""
    content_type: str = JSON
    accept: str = JSON
    repeats: bool = False

    def to_bytes(self) -> bytes:
        """Return all that is written to the connection."""
        head = (
            f"{self.verb} {self.path} HTTP/1.1\r\nHost: genserve\r\nAccept: {self.accept}\r\n"
            f"Content-Type: {self.content_type}\r\nContent-Length: {len(self.body)}\r\n"
            "X-Request-Id: soak\r\n\r\n"
        )
        return head.encode() + self.body


@dataclass(frozen=True)
class Grpc:
    """A call, of one message or, for a feed, of several."""

    method: str
    messages: tuple[bytes, ...]
    streamed: bool = False  # the answer is a stream
    repeats: bool = False


@dataclass(frozen=True)
class Visit:
    """A request, and how its client behaves."""

    request: Rest | Grpc
    behaviour: Behaviour = Behaviour.GOOD
    seconds: float | None = None  # after which the client leaves, or its deadline passes

    @property
    def name(self) -> str:
        """What is asked, for counting."""
        if isinstance(self.request, Rest):
            return f"{self.request.verb} {self.request.path.partition('?')[0]}"
        return f"gRPC {self.request.method}"


def draw_visits(seed: int) -> Iterator[Visit]:
    """Yield visits without end, from a pool of distinct ones."""
    chance = random.Random(seed)
    pool = [_draw(chance) for _ in range(_POOL)]
    while True:
        yield chance.choice(pool)


def _draw(chance: random.Random) -> Visit:
    kind = chance.random()
    if kind < 0.15:
        return Visit(chance.choice(_BAD), Behaviour.BAD)
    body = chance.choice(_BODIES)(chance)
    if kind < 0.20:
        return _late(chance, body)
    request = chance.choice((_rest, _rest, _grpc))(chance, body)
    if kind < 0.25:
        return Visit(request, Behaviour.LEFT, chance.uniform(0.0, 0.02))
    if kind < 0.33:
        return Visit(chance.choice(_WATCHING))
    return Visit(request)


def _late(chance: random.Random, body: "Body") -> Visit:
    """Return a visit whose deadline is the server's to keep, or the client's own."""
    if chance.random() < 0.5:
        fields = {**body.fields, "timeout_ms": chance.randint(1, 20)}
        return Visit(_rest(chance, replace(body, fields=fields)), Behaviour.LATE)
    return Visit(_grpc(chance, body), Behaviour.LATE, chance.uniform(0.001, 0.02))


# What is asked, for either transport. Arrays stay numpy until it is known which.


@dataclass(frozen=True)
class Body:
    """The fields of a request; arrays are images (uint8) or latents (float32)."""

    operation: str
    fields: dict[str, Any]
    streamed: bool = False
    pictured: bool = True  # the answer is images


def _sample(chance: random.Random) -> Body:
    model = chance.choice(("mnist-dcgan", "mnist-dcgan", "mnist-vae", "mnist-vae-2d"))
    count = chance.choice((1, 1, 2, 4, 8, 32))
    return Body("sample", {"model": model, "count": count, "seed": chance.randrange(2**53)})


def _sample_class(chance: random.Random) -> Body:
    fields = {"model": "mnist-dcgan", "class_label": chance.randrange(10), "truncation": 1.5}
    return Body("sample", {**fields, "count": 2, "seed": chance.randrange(2**53)})


def _flow(chance: random.Random) -> Body:
    return Body("sample", {"model": "mnist-realnvp", "count": 1, "seed": chance.randrange(2**53)})


def _encode(chance: random.Random) -> Body:
    fields = {"model": "mnist-vae", "images": _images(chance, chance.randint(1, 4)), "seed": 1}
    return Body("encode", fields, pictured=False)


def _decode(chance: random.Random) -> Body:
    count = chance.randint(1, 8)
    latents = [[chance.gauss(0.0, 1.0) for _ in range(32)] for _ in range(count)]
    return Body("decode", {"model": "mnist-vae", "latents": np.array(latents, np.float32)})


def _reconstruct(chance: random.Random) -> Body:
    fields = {"model": "mnist-vae", "images": _images(chance, chance.randint(1, 4)), "seed": 1}
    return Body("reconstruct", fields)


def _interpolate(chance: random.Random) -> Body:
    points = {name: {"seed": chance.randrange(2**53)} for name in ("start", "end")}
    fields = {"model": "mnist-vae", "steps": chance.randint(2, 12), "seed": 1, **points}
    return Body("interpolate", fields)


def _likelihood(chance: random.Random) -> Body:
    fields = {"model": "mnist-vae-2d", "images": _images(chance, chance.randint(1, 3))}
    fields |= {"samples": chance.randint(1, 3), "binarisation": "threshold"}
    return Body("likelihood", fields, pictured=False)


def _verdict(chance: random.Random) -> Body:
    fields = {"model": "mnist-vae", "images": _images(chance, 1), "binarisation": "threshold"}
    return Body("likelihood", fields, pictured=False)


def _score(chance: random.Random) -> Body:
    fields = {"model": "mnist-dcgan", "images": _images(chance, chance.randint(1, 4))}
    return Body("score", fields | {"class_label": chance.randrange(10)}, pictured=False)


def _judge(chance: random.Random) -> Body:
    """Score images, or now and then classify one, which takes as long as a hundred scores."""
    if chance.random() > 0.05:
        return _score(chance)
    fields = {"model": "mnist-pixelcnn", "images": _images(chance, 1)}
    return Body("classify", fields, pictured=False)


def _complete(chance: random.Random) -> Body:
    fields = {"model": "mnist-pixelcnn", "image": _images(chance, 1)[0], "count": 1}
    rows = {"prefix_rows": chance.randint(SIDE - 4, SIDE), "seed": chance.randrange(2**53)}
    return Body("complete", fields | rows, streamed=chance.random() < 0.5)


def _stream(chance: random.Random) -> Body:
    fields = {"model": chance.choice(("mnist-dcgan", "mnist-vae")), "count": 2, "seed": 1}
    return Body("sample", fields, streamed=True)


_BODIES: Sequence[Callable[[random.Random], Body]] = (
    *(_sample, _sample, _sample, _sample_class, _flow, _encode, _decode, _reconstruct),
    *(_interpolate, _likelihood, _verdict, _complete, _stream, _judge),
)


def _images(chance: random.Random, count: int) -> np.ndarray:
    """Return levels [count, SIDE, SIDE, 1]: random columns, which compress as pictures do."""
    columns = np.frombuffer(chance.randbytes(count * SIDE), np.uint8).reshape(count, 1, SIDE, 1)
    return np.repeat(columns, SIDE, axis=1)


def _rest(chance: random.Random, body: Body) -> Rest:
    path = f"/{body.operation}" + ("/stream" if body.streamed else "")
    if body.streamed:
        return Rest("POST", path, _to_json(body, chance), accept=EVENTS)
    accept = chance.choice((JSON, NPY, PNG)) if body.pictured else chance.choice((JSON, NPY))
    seeded = "seed" in body.fields and "timeout_ms" not in body.fields
    return Rest(
        "POST", path, _to_json(body, chance), accept=accept, repeats=body.pictured and seeded
    )


def _to_json(body: Body, chance: random.Random) -> bytes:
    as_png = chance.random() < 0.5

    def plain(value: Any) -> Any:
        if not isinstance(value, np.ndarray):
            return value
        if value.dtype != np.uint8 or not as_png:
            return value.tolist()
        if value.ndim == 3:
            return base64.b64encode(levels_to_png(value, 256)).decode()
        return [plain(image) for image in value]

    return json.dumps({name: plain(value) for name, value in body.fields.items()}).encode()


def _grpc(chance: random.Random, body: Body) -> Grpc:
    name = body.operation.capitalize()
    message = getattr(pb, f"{name}Request")(**_to_proto(body.fields))
    if body.operation == "likelihood" and chance.random() < 0.3:
        fed = pb.StreamLikelihoodRequest(request=message).SerializeToString()
        return Grpc("StreamLikelihood", (fed,) * chance.randint(1, 4), streamed=True)
    if body.streamed:
        streamed = getattr(pb, f"Stream{name}Request")(request=message)
        return Grpc(f"Stream{name}", (streamed.SerializeToString(),), streamed=True)
    repeats = body.pictured and "seed" in body.fields
    return Grpc(name, (message.SerializeToString(),), repeats=repeats)


def _to_proto(fields: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name, value in fields.items():
        if name in ("image", "images"):
            made[name] = _to_images(value.reshape(-1, SIDE, SIDE, 1))
        elif name == "latents":
            count, size = value.shape
            made[name] = pb.Latents(count=count, size=size, values=value.ravel().tolist())
        elif name == "class_label":
            made[name] = [value]
        elif name == "binarisation":
            made[name] = pb.BINARISATION_THRESHOLD
        elif name in ("start", "end"):
            made[name] = pb.Endpoint(**value)
        else:
            made[name] = value
    return made


def _to_images(levels: np.ndarray) -> pb.Images:
    count, height, width, channels = levels.shape
    return pb.Images(
        count=count, height=height, width=width, channels=channels, levels=levels.tobytes()
    )


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def _bad_json(operation: str, **fields: Any) -> Rest:
    return Rest("POST", f"/{operation}", json.dumps(fields).encode())


def _bad_call(method: str, **fields: Any) -> Grpc:
    return Grpc(method, (getattr(pb, f"{method}Request")(**fields).SerializeToString(),))


_PICTURE = np.zeros((1, SIDE, SIDE, 1), np.uint8)

_BAD: Sequence[Rest | Grpc] = (
    _bad_json("sample", count=0),
    _bad_json("sample", count=10**6),
    _bad_json("sample", count="four"),
    _bad_json("sample", seed=-1),
    _bad_json("sample", model="no-such-model"),
    _bad_json("sample", model="mnist-dcgan", class_label=10),
    _bad_json("sample", model="mnist-dcgan", temperature=1e9),
    _bad_json("sample", colour="red"),
    _bad_json("encode", model="mnist-dcgan", images=_PICTURE.tolist()),
    _bad_json("decode", model="mnist-vae", latents=[[1.0, 2.0]]),
    _bad_json("decode", model="mnist-vae", latents=[[1e39] * 32]),
    _bad_json("likelihood", model="mnist-vae", images=_PICTURE[:, :5].tolist()),
    _bad_json("likelihood", model="mnist-vae", images=["bm90IGEgUE5H"]),
    _bad_json("interpolate", model="mnist-vae", start={"seed": 1}),
    _bad_json("complete", model="mnist-pixelcnn", image=_PICTURE[0].tolist(), prefix_rows=99),
    Rest("POST", "/sample", b'{"model": "mnist-dc'),
    Rest("POST", "/sample", b"\xff\xfe\x00" * 50),
    Rest("POST", "/sample", b"[" * 5000),
    Rest("POST", "/sample", b"count=4", content_type="text/csv"),
    Rest("POST", "/sample", b"{}", accept="video/mp4"),
    Rest("POST", "/likelihood?model=mnist-vae", b"\x93NUMPY\x01\x00", content_type=NPY),
    Rest("POST", "/likelihood?model=mnist-vae", _npy(_PICTURE)[:-9], content_type=NPY),
    Rest("POST", "/encode?model=mnist-vae", b"\x89PNG\r\n\x1a\n" + bytes(40), content_type=PNG),
    Rest("GET", "/no/such/path"),
    Rest("GET", "/sample"),
    Rest("GET", "/models/no-such-model"),
    _bad_call("Sample", count=0),
    _bad_call("Sample", count=10**6),
    _bad_call("Sample", seed=-1),
    _bad_call("Sample", model="no-such-model"),
    _bad_call("Sample", model="mnist-dcgan", class_label=[10]),
    _bad_call("Encode", model="mnist-dcgan", images=_to_images(_PICTURE)),
    _bad_call("Decode", model="mnist-vae", latents=pb.Latents(count=3, size=32, values=[1.0])),
    _bad_call("Likelihood", model="mnist-vae"),
    _bad_call("Reconstruct", model="mnist-vae", images=_to_images(_PICTURE[:, :5])),
    Grpc("Sample", (b"\xff" * 30,)),
    Grpc("StreamSample", (b"\x0a\xff",), streamed=True),
)

_WATCHING: Sequence[Rest | Grpc] = (
    Rest("GET", "/healthz"),
    Rest("GET", "/readyz"),
    Rest("GET", "/models"),
    Rest("GET", "/models/mnist-vae"),
    Rest("GET", "/metrics", accept="*/*"),
    Grpc("ListModels", (b"",)),
    Grpc("GetModel", (pb.GetModelRequest(model="mnist-vae").SerializeToString(),)),
)
