"""REST and gRPC are two wires to one service: the same fields, choices, refusals and bytes."""

import base64
from typing import get_args

import grpc
import httpx
import numpy as np
import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.rpc.error_details_pb2 import ErrorInfo
from grpc_status import rpc_status
from pydantic import BaseModel

from service.api import answers, fields, problems, schemas
from service.core import models, requests
from service.images import levels_to_png
from service.rpc import status
from service.rpc.pb import generation_service_pb2 as pb
from service.rpc.pb.generation_service_pb2_grpc import GenerationServiceStub
from service.rpc.words import to_word
from tests.fakes import LATENT, RASTER_LEVELS, SIDE
from tests.test_streams import events_of

SAME_MEANING = {
    (400, "INVALID_ARGUMENT"),
    (401, "UNAUTHENTICATED"),
    (403, "PERMISSION_DENIED"),
    (404, "NOT_FOUND"),
    (406, "INVALID_ARGUMENT"),
    (413, "RESOURCE_EXHAUSTED"),
    (415, "INVALID_ARGUMENT"),
    (422, "FAILED_PRECONDITION"),
    (422, "INVALID_ARGUMENT"),
    (429, "RESOURCE_EXHAUSTED"),
    (499, "CANCELLED"),
    (500, "INTERNAL"),
    (503, "UNAVAILABLE"),
    (504, "DEADLINE_EXCEEDED"),
}
SCHEMAS = {
    pb.SampleRequest: schemas.SampleBody,
    pb.EncodeRequest: schemas.EncodeBody,
    pb.DecodeRequest: schemas.DecodeBody,
    pb.ReconstructRequest: schemas.ReconstructBody,
    pb.LikelihoodRequest: schemas.LikelihoodBody,
    pb.InterpolateRequest: schemas.InterpolateBody,
    pb.CompleteRequest: schemas.CompleteBody,
    pb.ScoreRequest: schemas.ScoreBody,
    pb.ClassifyRequest: schemas.ClassifyBody,
    pb.Condition: fields.Condition,
    pb.Endpoint: fields.Point,
    pb.Arithmetic: fields.Arithmetic,
}
STREAMS = {
    pb.StreamSampleRequest: (pb.SampleRequest, schemas.StreamSampleBody),
    pb.StreamCompleteRequest: (pb.CompleteRequest, schemas.StreamCompleteBody),
}
CHOICES = {
    pb.Scale: requests.Scale,
    pb.Show: requests.Show,
    pb.InterpolationMode: requests.Mode,
    pb.Binarisation: requests.BinarisationRule,
    pb.HigherMeans: requests.HigherMeans,
    pb.GenerationPart: requests.GenerationPart,
    pb.LikelihoodPart: requests.LikelihoodPart,
    pb.Estimator: requests.Estimator,
    pb.ModelState: models.State,
    pb.ModelChangeKind: models.ChangeKind,
    pb.EncodingPart: requests.EncodePart,
    pb.ImageFormat: schemas.GenerationBody.model_fields["image_format"].annotation,
}


# The contracts


def test_every_error_means_the_same_on_both() -> None:
    assert set(problems.STATUS) == set(status.STATUS_CODES)
    for error, http_status in problems.STATUS.items():
        code = status.STATUS_CODES[error]
        assert (http_status, code.name) in SAME_MEANING, error.reason


@pytest.mark.parametrize(
    ("message", "schema"), SCHEMAS.items(), ids=[schema.__name__ for schema in SCHEMAS.values()]
)
def test_every_request_has_the_same_fields_on_both(message: type, schema: type[BaseModel]) -> None:
    in_json = {field.alias or name for name, field in schema.model_fields.items()}
    assert names_of(message.DESCRIPTOR) == in_json


@pytest.mark.parametrize("message", STREAMS, ids=lambda message: message.DESCRIPTOR.name)
def test_every_stream_takes_the_same_fields_on_both(message: type) -> None:
    request, schema = STREAMS[message]
    own = names_of(message.DESCRIPTOR) - {"request"}
    assert own and message.DESCRIPTOR.fields_by_name["request"].message_type is request.DESCRIPTOR
    assert own | names_of(request.DESCRIPTOR) == set(schema.field_names())


@pytest.mark.parametrize("step", [pb.StreamSampleResponse, pb.StreamCompleteResponse])
def test_every_step_of_a_stream_is_an_event_of_the_same_name(step: type) -> None:
    progress = set(answers.ProgressEvent.model_fields)
    assert {field.name for field in step.DESCRIPTOR.fields} == {"rows", "preview", "result"}
    for name, event in {"Rows": answers.RowsEvent, "Preview": answers.PreviewEvent}.items():
        fields_of_step = {field.name for field in getattr(pb, name).DESCRIPTOR.fields}
        assert progress <= fields_of_step and progress < set(event.model_fields)
    assert names_of(pb.Preview.DESCRIPTOR) == set(answers.PreviewEvent.model_fields)


def names_of(message: Descriptor) -> set[str]:
    """The names of the fields, as JSON has them where a keyword kept the proto from it."""
    return {field.json_name if is_renamed(field) else field.name for field in message.fields}


def is_renamed(field: FieldDescriptor) -> bool:
    first, *rest = field.name.split("_")
    return field.json_name != first + "".join(word.capitalize() for word in rest)


@pytest.mark.parametrize(
    ("enum", "words"), CHOICES.items(), ids=[enum.DESCRIPTOR.name for enum in CHOICES]
)
def test_every_choice_has_the_same_words_on_both(enum: object, words: object) -> None:
    numbers = [number for number in enum.values() if number]
    assert {to_word(enum.DESCRIPTOR, number) for number in numbers} == set(get_args(words))


# The bytes

LEVELS = np.random.default_rng(0).integers(0, 256, (3, SIDE, SIDE, 1), np.uint8)
BINARY = np.where(LEVELS > 127, 255, 0).astype(np.uint8)
LATENTS = np.random.default_rng(1).normal(size=(3, LATENT)).astype(np.float32)
BOTH = {"return": ["images", "latents"]}
BOTH_PARTS = [pb.GENERATION_PART_IMAGES, pb.GENERATION_PART_LATENTS]


def levels_of(images: np.ndarray) -> pb.Images:
    count, height, width, channels = images.shape
    content = images.tobytes()
    return pb.Images(count=count, height=height, width=width, channels=channels, levels=content)


def rows_of(latents: np.ndarray) -> pb.Latents:
    count, size = latents.shape
    return pb.Latents(count=count, size=size, values=latents.ravel())


GENERATED = {
    "sample": (
        {"count": 5, "seed": 7, "class_label": 2, "temperature": 0.7, "truncation": 1.5},
        pb.SampleRequest(count=5, seed=7, class_label=[2], temperature=0.7, truncation=1.5),
    ),
    "sample with weights": (
        {"count": 2, "seed": 7, "condition": {"class_weights": [0.25, 0.25, 0.5]}},
        pb.SampleRequest(
            count=2,
            seed=7,
            condition=pb.Condition(
                class_weights=pb.ClassWeights(count=1, size=3, values=[0.25, 0.25, 0.5])
            ),
        ),
    ),
    "sample of drawn classes": (
        {"count": 6, "seed": 9, "timeout_ms": 600_000},
        pb.SampleRequest(count=6, seed=9, timeout_ms=600_000),
    ),
    "decode": (
        {"latents": LATENTS.tolist(), "class_label": [0, 1, 2], "seed": 1},
        pb.DecodeRequest(latents=rows_of(LATENTS), class_label=[0, 1, 2], seed=1),
    ),
    "reconstruct": (
        {"model": "toy-vae", "images": LEVELS.tolist(), "binarisation": "stochastic", "seed": 3},
        pb.ReconstructRequest(
            model="toy-vae",
            images=levels_of(LEVELS),
            binarisation=pb.BINARISATION_STOCHASTIC,
            seed=3,
        ),
    ),
    "interpolate": (
        {
            "model": "toy-vae",
            "start": {"latent": LATENTS[0].tolist()},
            "end": {"image": LEVELS[0].tolist()},
            "steps": 4,
            "mode": "lerp",
            "seed": 2,
        },
        pb.InterpolateRequest(
            model="toy-vae",
            start=pb.Endpoint(latent=rows_of(LATENTS[:1])),
            end=pb.Endpoint(image=levels_of(LEVELS[:1])),
            steps=4,
            mode=pb.INTERPOLATION_MODE_LERP,
            seed=2,
        ),
    ),
    "interpolate between corners": (
        {"corners": [{"seed": seed} for seed in range(4)], "steps": 3, "class_label": 1, "seed": 3},
        pb.InterpolateRequest(
            corners=[pb.Endpoint(seed=seed) for seed in range(4)], steps=3, class_label=[1], seed=3
        ),
    ),
    "interpolate by arithmetic": (
        {"arithmetic": {"plus": [{"seed": 1}, {"seed": 2}], "minus": [{"seed": 3}]}, "seed": 4},
        pb.InterpolateRequest(
            arithmetic=pb.Arithmetic(
                plus=[pb.Endpoint(seed=1), pb.Endpoint(seed=2)], minus=[pb.Endpoint(seed=3)]
            ),
            seed=4,
        ),
    ),
}


# The same numbers are no images at both scales, so requests with images have one of them.
SCALED = [
    (name, scale)
    for name, (body, _) in GENERATED.items()
    for scale in ("levels", "unit")
    if scale == "levels" or "image" not in str(body)
]


@pytest.mark.parametrize(("name", "scale"), SCALED)
async def test_generated_images_are_the_same_bytes(
    name: str, scale: str, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body, request = GENERATED[name]
    over_rest = await post(client, name, {**body, **BOTH, "image_format": "array", "scale": scale})
    asked = type(request)()
    asked.CopyFrom(request)
    asked.returns.extend(BOTH_PARTS)
    asked.scale = f"SCALE_{scale.upper()}"
    over_grpc = await getattr(stub, method_of(name))(asked)
    assert_same_origin(over_rest, over_grpc)
    assert_same_images(over_rest["images"], over_grpc.images, scale)
    assert_same_rows(over_rest["latents"], over_grpc.latents)
    assert over_rest["latent_space"] == over_grpc.latent_space
    assert_same_rows(over_rest.get("class_weights"), over_grpc.class_weights)
    assert (over_rest.get("class_label") or []) == list(over_grpc.class_label)


async def test_png_files_are_the_same_bytes(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    over_rest = await post(client, "sample", {"count": 3, "seed": 1, "image_format": "png"})
    request = pb.SampleRequest(count=3, seed=1, image_format=pb.IMAGE_FORMAT_PNG)
    over_grpc = await stub.Sample(request)
    files = [base64.b64decode(text) for text in over_rest["images"]]
    assert files == over_grpc.images.png.files


async def test_encodings_are_the_same_bytes(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    files = [levels_to_png(image, 256) for image in LEVELS]
    text = [base64.b64encode(content).decode() for content in files]
    parts = ["latents", "deviations", "draws"]
    body = {"model": "toy-vae", "images": text, "seed": 5, "return": parts}
    request = pb.EncodeRequest(
        model="toy-vae",
        images=pb.Images(png=pb.PngFiles(files=files)),
        seed=5,
        returns=[f"ENCODING_PART_{part.upper()}" for part in parts],
    )
    over_rest, over_grpc = await post(client, "encode", body), await stub.Encode(request)
    assert_same_origin(over_rest, over_grpc)
    for part in parts:
        assert_same_rows(over_rest[part], getattr(over_grpc, part))


async def test_a_model_without_deviations_has_none_on_both(
    client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body = {"model": "toy-flow", "images": LEVELS.tolist(), "return": ["deviations"]}
    request = pb.EncodeRequest(
        model="toy-flow", images=levels_of(LEVELS), returns=["ENCODING_PART_DEVIATIONS"]
    )
    over_rest, over_grpc = await post(client, "encode", body), await stub.Encode(request)
    assert over_rest["deviations"] is None and "latents" not in over_rest
    assert not over_grpc.HasField("deviations") and not over_grpc.HasField("latents")


@pytest.mark.parametrize("samples", [None, 1, 5])
async def test_scores_are_the_same_bytes(
    samples: int | None, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body = {"model": "toy-vae", "images": BINARY.tolist(), "seed": 2}
    if samples:
        body["samples"] = samples
    request = pb.LikelihoodRequest(
        model="toy-vae", images=levels_of(BINARY), seed=2, samples=samples
    )
    over_rest, over_grpc = await post(client, "likelihood", body), await stub.Likelihood(request)
    assert_same_origin(over_rest, over_grpc)
    assert over_rest["results"] == results(over_grpc)


STREAMED = {"every_rows": SIDE, "show": "rows"}, {"every_rows": 2, "show": "preview"}


@pytest.mark.parametrize("shown", STREAMED, ids=["rows", "preview"])
@pytest.mark.parametrize("operation", ["sample", "complete"])
async def test_the_last_steps_of_a_stream_are_the_same_bytes(
    shown: dict[str, object],
    operation: str,
    client: httpx.AsyncClient,
    stub: GenerationServiceStub,
) -> None:
    body: dict[str, object] = {"model": "toy-raster", "seed": 5, "class_label": 1}
    asked = {**body, "class_label": [1]}
    if operation == "complete":
        image = LEVELS[:1] % RASTER_LEVELS
        known = np.arange(SIDE * SIDE).reshape(SIDE, SIDE) % 3 == 0
        body |= {"image": image[0].tolist(), "known": known.tolist()}
        asked |= {"image": levels_of(image), "known": known.tobytes()}
    over_rest = await client.post(f"/{operation}/stream", json={**body, **shown})
    *_, (name, event), _ = events_of(over_rest.text)
    step = getattr(pb, f"Stream{operation.capitalize()}Request")(
        request=getattr(pb, f"{operation.capitalize()}Request")(**asked),
        every_rows=shown["every_rows"],
        show=f"SHOW_{str(shown['show']).upper()}",
    )
    *_, last, _ = [m async for m in getattr(stub, f"Stream{operation.capitalize()}")(step)]
    assert name == last.WhichOneof("event") == shown["show"]
    sent = getattr(last, name)
    for field in ("rows_done", "rows_total", "resume_token"):
        assert event[field] == getattr(sent, field), field
    if name == "preview":
        assert base64.b64decode(event["png"]) == sent.png
    else:
        assert bytes(np.array(event["rows"], np.uint8)) == sent.levels
        assert (event["image"], event["first_row"]) == (sent.image, sent.first_row)


REFUSED = {
    "sample of nothing": ({"count": 0}, pb.SampleRequest(count=0)),
    "sample of no class": ({"class_label": 3}, pb.SampleRequest(class_label=[3])),
    "sample at once": ({"timeout_ms": 0}, pb.SampleRequest(timeout_ms=0)),
    "sample of two conditions": (
        {"class_label": 1, "condition": {"class": 1}},
        pb.SampleRequest(class_label=[1], condition=pb.Condition(classes=[1])),
    ),
    "sample of no model": ({"model": "none"}, pb.SampleRequest(model="none")),
    "sample for ever": ({"timeout_ms": 600_001}, pb.SampleRequest(timeout_ms=600_001)),
    "encode without an encoder": (
        {"model": "toy-gan", "images": LEVELS.tolist()},
        pb.EncodeRequest(model="toy-gan", images=levels_of(LEVELS)),
    ),
    "score without a discriminator": (
        {"model": "toy-gan", "images": LEVELS.tolist()},
        pb.ScoreRequest(model="toy-gan", images=levels_of(LEVELS)),
    ),
    "classify without classes": (
        {"model": "toy-gan", "images": LEVELS.tolist()},
        pb.ClassifyRequest(model="toy-gan", images=levels_of(LEVELS)),
    ),
    "likelihood of grey": (
        {"model": "toy-vae", "images": LEVELS.tolist()},
        pb.LikelihoodRequest(model="toy-vae", images=levels_of(LEVELS)),
    ),
    "decode of another size": (
        {"latents": LATENTS[:, :2].tolist()},
        pb.DecodeRequest(latents=rows_of(LATENTS[:, :2])),
    ),
    "encode draws without deviations": (
        {"model": "toy-flow", "images": LEVELS.tolist(), "return": "draws"},
        pb.EncodeRequest(
            model="toy-flow", images=levels_of(LEVELS), returns=["ENCODING_PART_DRAWS"]
        ),
    ),
    "sample of too many classes": (
        {"class_label": [1] * 4097},
        pb.SampleRequest(class_label=[1] * 4097),
    ),
    "interpolate nothing": ({}, pb.InterpolateRequest()),
    "interpolate too many corners": (
        {"corners": [{"seed": 1}] * 5},
        pb.InterpolateRequest(corners=[pb.Endpoint(seed=1)] * 5),
    ),
    "interpolate too many points": (
        {"arithmetic": {"plus": [{"seed": 1}] * 65}},
        pb.InterpolateRequest(arithmetic=pb.Arithmetic(plus=[pb.Endpoint(seed=1)] * 65)),
    ),
    "interpolate from another space": (
        {"start": {"latent": [0] * LATENT, "latent_space": "other/1"}, "end": {"seed": 1}},
        pb.InterpolateRequest(
            start=pb.Endpoint(latent=rows_of(LATENTS[:1]), latent_space="other/1"),
            end=pb.Endpoint(seed=1),
        ),
    ),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_the_same_mistake_has_the_same_reason(
    name: str, client: httpx.AsyncClient, stub: GenerationServiceStub
) -> None:
    body, request = REFUSED[name]
    over_rest = await client.post(f"/{name.split()[0]}", json=body)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await getattr(stub, method_of(name))(request)
    info = ErrorInfo()
    assert rpc_status.from_call(refused.value).details[0].Unpack(info)
    assert over_rest.json()["reason"] == info.reason
    assert (over_rest.status_code, refused.value.code().name) in SAME_MEANING


def method_of(name: str) -> str:
    return name.split()[0].capitalize()


async def post(client: httpx.AsyncClient, name: str, body: dict[str, object]) -> dict[str, object]:
    answer = await client.post(f"/{name.split()[0]}", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def assert_same_origin(over_rest: dict[str, object], over_grpc: pb.SampleResponse) -> None:
    for name in ("model", "artifact_digest", "noise_scheme", "seed"):
        assert over_rest[name] == getattr(over_grpc, name), name
    word = to_word(pb.Reproducibility.DESCRIPTOR, over_grpc.reproducible)
    assert over_rest["reproducible"] == word


def assert_same_images(in_json: list[object], images: pb.Images, scale: str) -> None:
    expected = np.array(in_json, np.uint8 if scale == "levels" else "<f4")
    assert (images.count, images.height, images.width, images.channels) == expected.shape
    content = images.levels if scale == "levels" else images.unit_values
    assert content == expected.tobytes()


def assert_same_rows(in_json: list[list[float]] | None, rows: pb.Latents) -> None:
    expected = np.array(in_json or np.empty((0, 0)), np.float32)
    assert (rows.count, rows.size) == expected.shape
    assert np.array(rows.values, np.float32).tobytes() == expected.tobytes()


def results(scores: pb.LikelihoodResponse) -> list[dict[str, object]]:
    """The columns of an answer as the rows that JSON has, with their meaning in each."""
    names = ("quantity", "kind", "base_measure", "estimator", "conditioning", "draws")
    meaning = {name: getattr(scores, name) for name in names}
    for name, field in scores.DESCRIPTOR.fields_by_name.items():
        if name in meaning and field.enum_type:
            meaning[name] = to_word(field.enum_type, meaning[name])
    columns = ("log_likelihood", "standard_error", "bits_per_dim")
    meaning |= dict.fromkeys(("scores", "p_value", "percentile", "q_value", "anomalous"))
    return [
        {name: (getattr(scores, name) or [None] * len(BINARY))[index] for name in columns} | meaning
        for index in range(len(BINARY))
    ]
