"""Every operation over REST, in every format that it reads and answers."""

import base64
import io
import json
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from service.api.app import create_app
from service.core.engine import Engine
from service.images import array_to_npy, levels_to_png, png_to_levels
from service.metrics import Metrics
from tests.fakes import LATENT, PIXELS, SIDE

JSON, PNG, NPY = "application/json", "image/png", "application/x-npy"


def pictures(count: int, seed: int = 0) -> np.ndarray:
    """Random grey levels [count, SIDE, SIDE, 1]."""
    levels = np.random.default_rng(seed).integers(0, 256, (count, SIDE, SIDE, 1))
    return levels.astype(np.uint8)


def black_and_white(count: int) -> np.ndarray:
    return np.where(pictures(count) > 127, 255, 0).astype(np.uint8)


def base64_png(image: np.ndarray) -> str:
    return base64.b64encode(levels_to_png(image, 256)).decode()


def images_of(answer: httpx.Response) -> np.ndarray:
    """Return the images of a JSON answer that holds PNGs."""
    files = [base64.b64decode(text, validate=True) for text in answer.json()["images"]]
    return np.stack([png_to_levels(file, 256) for file in files])


def array_of(answer: httpx.Response) -> np.ndarray:
    assert answer.headers["content-type"] == NPY
    return np.load(io.BytesIO(answer.content), allow_pickle=False)


async def post(client: httpx.AsyncClient, path: str, accept: str = JSON, **kwargs: Any):
    answer = await client.post(path, headers={"Accept": accept}, **kwargs)
    assert answer.status_code == 200, answer.text
    return answer


async def test_an_answer_says_what_made_it(client: httpx.AsyncClient) -> None:
    answer = await post(client, "/sample", json={"count": 2, "seed": 7, "class_label": 1})
    said = answer.json()
    assert said["model"] == "toy-gan@1"
    assert said["artifact_digest"].startswith("sha256:")
    assert said["request_id"] == answer.headers["x-request-id"]
    assert said["noise_scheme"] == "philox4x32-10/1"
    assert said["reproducible"] == "bitwise"
    assert said["seed"] == 7
    assert said["class_label"] == [1, 1]
    assert said["class_weights"] == [[0, 1, 0]] * 2
    assert len(said["images"]) == 2 and "latents" not in said


async def test_a_request_may_say_nothing(client: httpx.AsyncClient) -> None:
    assert images_of(await post(client, "/sample")).shape == (1, SIDE, SIDE, 1)
    assert images_of(await post(client, "/sample", json={})).shape == (1, SIDE, SIDE, 1)


async def test_a_drawn_seed_is_returned_and_repeats_the_images(client: httpx.AsyncClient) -> None:
    first = await post(client, "/sample", json={"count": 3})
    again = await post(client, "/sample", json={"count": 3, "seed": first.json()["seed"]})
    assert again.json()["images"] == first.json()["images"]


async def test_images_are_the_same_in_every_format(client: httpx.AsyncClient) -> None:
    fields = {"count": 4, "seed": 5, "class_label": [0, 1, 2, 0]}
    images = images_of(await post(client, "/sample", json=fields))
    listed = await post(client, "/sample", json={**fields, "image_format": "array"})
    assert np.array_equal(listed.json()["images"], images)
    array = array_of(await post(client, "/sample", NPY, json=fields))
    assert array.dtype == np.uint8 and np.array_equal(array, images)
    one = await post(client, "/sample", PNG, json=fields)
    rows = [np.concatenate(list(images[at : at + 2]), axis=1) for at in (0, 2)]
    assert np.array_equal(png_to_levels(one.content, 256), np.concatenate(rows))


async def test_an_image_is_the_same_for_any_count(client: httpx.AsyncClient) -> None:
    many = images_of(await post(client, "/sample", json={"count": 9, "seed": 3}))
    for count in (1, 2, 5):
        few = images_of(await post(client, "/sample", json={"count": count, "seed": 3}))
        assert np.array_equal(few, many[:count])


async def test_the_unit_scale_goes_with_arrays(client: httpx.AsyncClient) -> None:
    fields = {"count": 2, "seed": 1, "scale": "unit"}
    array = array_of(await post(client, "/sample", NPY, json=fields))
    listed = await post(client, "/sample", json={**fields, "image_format": "array"})
    assert array.dtype == np.float32 and 0 <= array.min() <= array.max() <= 1
    assert np.array_equal(np.array(listed.json()["images"], np.float32), array)


async def test_answers_that_are_not_json_say_the_rest_in_headers(
    client: httpx.AsyncClient,
) -> None:
    fields = {"count": 2, "seed": 1, "class_label": [2, 0]}
    said = (await post(client, "/sample", json=fields)).json()
    for accept in (PNG, NPY):
        headers = (await post(client, "/sample", accept, json=fields)).headers
        assert headers["x-genserve-model"] == said["model"]
        assert headers["x-genserve-artifact-digest"] == said["artifact_digest"]
        assert headers["x-genserve-noise-scheme"] == said["noise_scheme"]
        assert headers["x-genserve-reproducible"] == said["reproducible"]
        assert headers["x-genserve-seed"] == "1"
        assert headers["x-genserve-class-label"] == "2,0"


async def test_conditions_are_classes_or_weights(client: httpx.AsyncClient) -> None:
    async def images(condition: dict[str, Any]) -> list[str]:
        fields = {"count": 2, "seed": 4, **condition}
        return (await post(client, "/sample", json=fields)).json()["images"]

    short = await images({"class_label": 2})
    assert await images({"condition": {"class": 2}}) == short
    assert await images({"condition": {"class": [2, 2]}}) == short
    assert await images({"condition": {"class_weights": [0, 0, 1]}}) == short
    assert await images({"condition": {"class_weights": [[0, 0, 1.0]] * 2}}) == short
    assert await images({"class_label": 0}) != short


async def test_mixed_weights_have_no_class_label(client: httpx.AsyncClient) -> None:
    fields = {"condition": {"class_weights": [0.5, 0.5, 0]}}
    said = (await post(client, "/sample", json=fields)).json()
    assert "class_label" not in said and said["class_weights"] == [[0.5, 0.5, 0]]


async def test_controls_reach_the_model(client: httpx.AsyncClient) -> None:
    cold = {"count": 3, "temperature": 0, "class_label": 0, "return": "latents"}
    assert np.all(np.array((await post(client, "/sample", json=cold)).json()["latents"]) == 0)
    cut = {"count": 32, "truncation": 0.5, "return": ["latents"]}
    latents = np.array((await post(client, "/sample", json=cut)).json()["latents"])
    assert 0 < np.abs(latents).max() <= 0.5


async def test_sampled_latents_decode_to_the_same_images(client: httpx.AsyncClient) -> None:
    fields = {"count": 3, "seed": 8, "class_label": 1, "return": ["images", "latents"]}
    sampled = (await post(client, "/sample", json=fields)).json()
    decoded = await post(
        client,
        "/decode",
        json={
            "latents": sampled["latents"],
            "latent_space": sampled["latent_space"],
            "class_label": 1,
        },
    )
    assert decoded.json()["images"] == sampled["images"]


async def test_decode_reads_npy_with_fields_in_the_query(client: httpx.AsyncClient) -> None:
    latents = np.random.default_rng(0).standard_normal((3, LATENT)).astype(np.float32)
    listed = await post(
        client, "/decode", json={"latents": latents.tolist(), "class_label": [0, 1, 2]}
    )
    for query in ("class_label=[0,1,2]", "class_label=0&class_label=1&class_label=2"):
        raw = await client.post(
            f"/decode?{query}", content=array_to_npy(latents), headers={"Content-Type": NPY}
        )
        assert raw.json()["images"] == listed.json()["images"]
    array = array_of(
        await post(
            client, "/decode", NPY, json={"latents": latents.tolist(), "class_label": [0, 1, 2]}
        )
    )
    assert np.array_equal(array, images_of(listed))


async def test_encode_reads_every_kind_of_body_alike(client: httpx.AsyncClient) -> None:
    images = pictures(2)
    files = [levels_to_png(image, 256) for image in images]
    fields = {"model": "toy-vae", "return": ["latents", "deviations"]}
    expected = (await post(client, "/encode", json={**fields, "images": images.tolist()})).json()
    assert np.array(expected["latents"]).shape == (2, LATENT)
    assert expected["latent_space"].startswith("toy-vae/")

    texts = [base64_png(image) for image in images]
    answers = [
        await post(client, "/encode", json={**fields, "images": texts}),
        await post(client, "/encode", files=[("images", file) for file in files], data=fields),
        await post(client, "/encode", files=[("file", file) for file in files], data=fields),
        await client.post(
            "/encode?model=toy-vae&return=latents&return=deviations",
            content=array_to_npy(images),
            headers={"Content-Type": NPY},
        ),
    ]
    for answer in answers:
        assert answer.json()["latents"] == expected["latents"]
        assert answer.json()["deviations"] == expected["deviations"]


async def test_encode_reads_one_raw_png_like_one_string(client: httpx.AsyncClient) -> None:
    (image,) = pictures(1)
    text = await post(client, "/encode", json={"images": base64_png(image), "model": "toy-vae"})
    raw = await client.post(
        "/encode?model=toy-vae",
        content=levels_to_png(image, 256),
        headers={"Content-Type": "image/PNG; name=x"},
    )
    assert raw.json()["latents"] == text.json()["latents"]


async def test_encode_answers_npy_of_the_one_part_asked_for(client: httpx.AsyncClient) -> None:
    fields = {"model": "toy-vae", "images": pictures(2).tolist(), "seed": 3}
    for part in ("latents", "deviations", "draws"):
        listed = (await post(client, "/encode", json={**fields, "return": part})).json()
        answer = await post(client, "/encode", NPY, json={**fields, "return": [part]})
        array = array_of(answer)
        assert array.shape == (2, LATENT)
        assert np.array_equal(np.array(listed[part], np.float32), array)
        assert answer.headers["x-genserve-latent-space"] == listed["latent_space"]


async def test_a_flow_has_no_deviations(client: httpx.AsyncClient) -> None:
    fields = {"model": "toy-flow", "images": pictures(1).tolist(), "return": ["deviations"]}
    assert (await post(client, "/encode", json=fields)).json()["deviations"] is None
    refused = await client.post("/encode", json=fields, headers={"Accept": NPY})
    assert refused.status_code == 422 and "ask for latents" in refused.json()["detail"]


async def test_reconstruct_keeps_an_invertible_model_s_images(client: httpx.AsyncClient) -> None:
    images = pictures(3)
    fields = {"model": "toy-flow", "images": images.tolist()}
    assert np.array_equal(images_of(await post(client, "/reconstruct", json=fields)), images)
    assert np.array_equal(array_of(await post(client, "/reconstruct", NPY, json=fields)), images)
    form = await post(
        client, "/reconstruct", files=[("images", levels_to_png(image, 256)) for image in images]
    )
    assert form.json()["model"] == "toy-flow@1"
    assert np.array_equal(images_of(form), images)


async def test_reconstruct_reads_and_answers_the_unit_scale(client: httpx.AsyncClient) -> None:
    unit = pictures(2) / 255
    fields = {"images": unit.tolist(), "scale": "unit", "image_format": "array"}
    answer = (await post(client, "/reconstruct", json=fields)).json()
    assert np.allclose(answer["images"], unit, atol=1e-4)


async def test_likelihood_says_what_its_numbers_mean(client: httpx.AsyncClient) -> None:
    fields = {"model": "toy-vae", "images": black_and_white(3).tolist()}
    answer = (await post(client, "/likelihood", json=fields)).json()
    assert answer["binarisation"] is None and len(answer["results"]) == 3
    for result in answer["results"]:
        assert result["log_likelihood"] < 0 and result["standard_error"] > 0
        assert np.isclose(result["bits_per_dim"], -result["log_likelihood"] / (PIXELS * np.log(2)))
        assert result["quantity"] == "probability" and result["kind"] == "lower_bound"
        assert result["base_measure"] == "counting" and result["conditioning"] == "none"
        assert result["estimator"] == "elbo" and result["draws"] == 4


async def test_likelihood_reads_every_kind_of_body_alike(client: httpx.AsyncClient) -> None:
    images = black_and_white(2)
    files = [levels_to_png(image, 256) for image in images]
    fields = {"model": "toy-vae", "samples": 8, "binarisation": "threshold"}
    expected = (
        await post(client, "/likelihood", json={**fields, "images": images.tolist()})
    ).json()
    assert expected["results"][0]["estimator"] == "iwae"
    assert expected["binarisation"] == "threshold"
    query = "/likelihood?model=toy-vae&samples=8&binarisation=threshold"
    npy, form, png = [
        await client.post(query, content=array_to_npy(images), headers={"Content-Type": NPY}),
        await client.post("/likelihood", files=[("images", file) for file in files], data=fields),
        await client.post(query, content=files[1], headers={"Content-Type": PNG}),
    ]
    assert npy.json()["results"] == expected["results"]
    assert form.json()["results"] == expected["results"]
    assert png.json()["results"] == expected["results"][1:], "wherever it stands in a request"


async def test_likelihood_answers_npy(client: httpx.AsyncClient) -> None:
    fields = {"model": "toy-flow", "images": pictures(3).tolist(), "seed": 4}
    listed = (await post(client, "/likelihood", json=fields)).json()
    answer = await post(client, "/likelihood", NPY, json=fields)
    scores = array_of(answer)
    assert scores.dtype == np.float64
    assert scores.tolist() == [result["log_likelihood"] for result in listed["results"]]
    assert answer.headers["x-genserve-kind"] == "lower_bound"
    assert answer.headers["x-genserve-base-measure"] == "counting"
    assert answer.headers["x-genserve-draws"] == "4"


async def test_one_draw_has_no_standard_error(client: httpx.AsyncClient) -> None:
    fields = {"model": "toy-vae", "images": black_and_white(1).tolist(), "samples": 1}
    (result,) = (await post(client, "/likelihood", json=fields)).json()["results"]
    assert result["standard_error"] is None


@pytest.mark.parametrize("mode", ["slerp", "lerp"])
async def test_a_path_starts_and_ends_at_its_points(client: httpx.AsyncClient, mode: str) -> None:
    fields = {
        "start": {"seed": 1},
        "end": {"latent": [1, 0.5, 0, -1]},
        "steps": 5,
        "mode": mode,
        "class_label": 0,
        "return": ["images", "latents"],
    }
    path = (await post(client, "/interpolate", json=fields)).json()
    first = (await post(client, "/sample", json={"seed": 1, "class_label": 0})).json()
    assert len(path["images"]) == 5
    assert path["images"][0] == first["images"][0]
    assert path["latents"][-1] == [1, 0.5, 0, -1]


async def test_a_path_is_one_row_and_a_grid_is_square(client: httpx.AsyncClient) -> None:
    points = [{"seed": seed} for seed in range(4)]
    path = {"start": points[0], "end": points[1], "steps": 7}
    grid = {"corners": points, "steps": 3}
    for fields, columns, rows in ((path, 7, 1), (grid, 3, 3)):
        answer = await post(client, "/interpolate", PNG, json=fields)
        assert Image.open(io.BytesIO(answer.content)).size == (columns * SIDE, rows * SIDE)


async def test_points_are_images_too(client: httpx.AsyncClient) -> None:
    start, end = pictures(2)
    fields = {
        "model": "toy-flow",
        "start": {"image": start.tolist()},
        "end": {"image": base64_png(end)},
        "steps": 2,
    }
    assert np.array_equal(
        images_of(await post(client, "/interpolate", json=fields)), np.stack([start, end])
    )


async def test_arithmetic_adds_and_subtracts(client: httpx.AsyncClient) -> None:
    latents = np.eye(3, LATENT)
    points = [{"latent": latent.tolist()} for latent in latents]
    fields = {"arithmetic": {"plus": points[:2], "minus": points[2:]}, "return": "latents"}
    answer = (await post(client, "/interpolate", json=fields)).json()
    assert answer["latents"] == [[1, 1, -1, 0]]


async def test_a_query_does_where_there_is_no_body(client: httpx.AsyncClient) -> None:
    fields = {"count": 3, "seed": 2, "condition": {"class": [0, 1, 2]}, "temperature": 0.5}
    expected = (await post(client, "/sample", json=fields)).json()
    query = '/sample?count=3&seed=2&condition={"class":[0,1,2]}&temperature=0.5'
    assert (await post(client, query)).json()["images"] == expected["images"]


async def test_the_body_names_the_model(client: httpx.AsyncClient) -> None:
    for name in ("toy-vae", "toy-vae@1"):
        answer = await post(client, "/sample", json={"model": name, "timeout_ms": 600_000})
        assert answer.json()["model"] == "toy-vae@1"
        assert "class_weights" not in answer.json()


@pytest.mark.parametrize(
    "accept, expected",
    [
        ("*/*", JSON),
        ("", JSON),
        ("image/*", PNG),
        ("application/*", JSON),
        ("application/x-npy;q=0.5, image/png;q=0.6", PNG),
        ("application/json;q=0.1, application/x-npy", NPY),
        ("image/png, */*", PNG),
        ("image/png;q=0, */*;q=0.1", JSON),
        ("application/json;q=0, application/x-npy;q=0, */*", PNG),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        ("IMAGE/PNG; q=1.0", PNG),
    ],
)
async def test_accept_chooses_the_format(
    client: httpx.AsyncClient, accept: str, expected: str
) -> None:
    answer = await post(client, "/sample", accept)
    assert answer.headers["content-type"] == expected


async def test_a_type_that_an_operation_lacks_gives_way_to_the_next(
    client: httpx.AsyncClient,
) -> None:
    fields = {"images": pictures(1).tolist()}
    answer = await post(client, "/encode", "image/png, application/json;q=0.1", json=fields)
    assert answer.headers["content-type"] == JSON


async def test_latents_of_samples_go_out_as_npy(client: httpx.AsyncClient) -> None:
    fields = {"count": 2, "seed": 1, "return": "latents"}
    listed = (await post(client, "/sample", json=fields)).json()["latents"]
    array = array_of(await post(client, "/sample", NPY, json=fields))
    assert np.array_equal(array, np.array(listed, np.float32))


async def test_a_large_body_is_read_like_a_small_one(engine: Engine, metrics: Metrics) -> None:
    app = create_app(
        engine, metrics=metrics, maximum_body_bytes=1_000_000, cors_origins=(), version="1"
    )
    images = pictures(32)
    body = json.dumps({"model": "toy-flow", "images": images.tolist()}).ljust(500_000)
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app), base_url="http://genserve"
    ) as client:
        answer = await client.post("/reconstruct", content=body, headers={"Content-Type": JSON})
        malformed = await client.post(
            "/reconstruct", content=body + "}", headers={"Content-Type": JSON}
        )
    assert np.array_equal(images_of(answer), images)
    assert malformed.status_code == 400
