"""Draw the pictures of docs/, through the REST API of a running service.

Start one with `make serve`, then run `make pictures`. Training images, which the sheets of the zoo
show beside samples, come from the data directory.
"""

import io
import json
import urllib.request
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from docs.zoo import read_manifests
from model_zoo.data import load_splits
from model_zoo.sheets import histogram

URL = "http://127.0.0.1:8000"
PICTURES = Path(__file__).parent / "pictures"
ZOO = Path(__file__).parent / "zoo"
FASHION = ("fashion-mnist-pixelcnn", "fashion-mnist-realnvp", "fashion-mnist-vae")
UNPAINTED = 48  # the grey of pixels that are not there yet
SCALE = 2  # pictures are drawn with pixels this large


def main() -> None:
    """Draw every picture."""
    save("samples", ask("sample", model="mnist-dcgan", seed=1, **by_class(10)), columns=10)
    for model in ("mnist-vae", "mnist-realnvp"):
        save(f"samples-{model}", ask("sample", model=model, count=40, seed=1), columns=10)
    save("interpolation", paths(), columns=12)
    pixelcnn = {"model": "mnist-pixelcnn"}
    save("samples-mnist-pixelcnn", ask("sample", **pixelcnn, seed=1, **by_class(4)), columns=10)
    save("growing", growing(ask("sample", **pixelcnn, seed=0, class_label=8)[0]), columns=8)
    save("completions", completions(), columns=9)
    clothes = [ask("sample", model=model, count=20, seed=1) for model in FASHION]
    save("samples-fashion-mnist", np.concatenate(clothes), columns=10)
    save("manifold", ask("decode", model="mnist-vae-2d", latents=plane(16)), columns=16)
    for manifest in read_manifests():
        if "sample" in manifest["operations"]:
            vectors = manifest["event"]["kind"] == "vector"
            pictures = beside_histogram(manifest) if vectors else beside_neighbours(manifest)
            save(manifest["name"], pictures, columns=2 if vectors else 10, folder=ZOO)


def by_class(each: int) -> dict[str, Any]:
    """Ask for one row of digits for each class."""
    return {"count": 10 * each, "class_label": [label for label in range(10) for _ in range(each)]}


def paths() -> NDArray[np.uint8]:
    """Return a spherical path of 12 images for each of three models, [36, H, W, 1]."""
    seeds = {"start": {"seed": 7}, "end": {"seed": 20}, "steps": 12}
    digits = ask("sample", model="mnist-dcgan", count=2, class_label=[4, 9], seed=3)
    start, end = ({"image": digit.tolist()} for digit in digits)
    three = [
        ask("interpolate", model="mnist-dcgan", class_label=8, **seeds),
        ask("interpolate", model="mnist-vae", **seeds),
        ask("interpolate", model="mnist-realnvp", start=start, end=end, steps=12),
    ]
    return np.concatenate(three)


def growing(digit: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a digit [H, W, 1] after every fourth row, [8, H, W, 1]."""
    stages = np.full((8, *digit.shape), UNPAINTED, np.uint8)
    for index, stage in enumerate(stages):
        stage[: 4 * index] = digit[: 4 * index]
    return stages


def completions() -> NDArray[np.uint8]:
    """Return the upper half of a digit, and eight ways to go on from it, [9, H, W, 1]."""
    digit = ask("sample", model="mnist-dcgan", class_label=9, seed=5)[0]
    half = {"image": digit.tolist(), "prefix_rows": 14}
    ways = ask("complete", model="mnist-pixelcnn", count=8, seed=3, **half)
    digit[14:] = UNPAINTED
    return np.concatenate([digit[None], ways])


def plane(side: int) -> list[list[float]]:
    """Return latents at equally probable steps of the prior, the second coordinate downwards.

    The spacing is that of Kingma & Welling 2013, appendix A.
    """
    steps = [NormalDist().inv_cdf((k + 0.5) / side) for k in range(side)]
    return [[x, -y] for y in reversed(steps) for x in steps]


def beside_neighbours(manifest: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return two rows of ten samples, each above a row of their nearest training images.

    A model that takes a class draws each digit twice.
    """
    condition = manifest["condition"]
    asked = by_class(1) if condition and not condition["optional"] else {"count": 10}
    rows = []
    for seed in (1, 2):
        samples = ask("sample", model=manifest["name"], seed=seed, **asked)
        rows += [samples, nearest(samples, training_images(manifest["provenance"]["dataset"]))]
    return np.concatenate(rows)


def beside_histogram(manifest: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Return a histogram of vectors that the model draws, and one of as many it was fitted to."""
    asked = {"model": manifest["name"], "count": 256}
    drawn = np.concatenate([ask("sample", seed=seed, **asked) for seed in range(80)])
    fitted = load_splits(manifest["provenance"]["dataset"])["fit"].images[: len(drawn)].numpy()
    extent = 1.05 * float(np.abs(fitted).max())
    return np.stack([histogram(drawn, extent), histogram(fitted, extent)])[..., None]


@cache
def training_images(dataset: str) -> NDArray[np.uint8]:
    """Return the images that models of a data set were fitted to, [N, H, W, C]."""
    # [N, C, H, W] -> [N, H, W, C]
    images: NDArray[np.uint8] = load_splits(dataset)["fit"].images.permute(0, 2, 3, 1).numpy()
    return images


def nearest(samples: NDArray[np.uint8], images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return for each sample the image at the least Euclidean distance, [N, H, W, C]."""
    found, there = (each.reshape(len(each), -1).astype(np.float32) for each in (samples, images))
    # |s - i|^2 less |s|^2, which is the same for every image
    distances = (there**2).sum(axis=1) - 2 * found @ there.T
    return images[distances.argmin(axis=1)]


def ask(operation: str, **body: Any) -> NDArray[Any]:
    """Run an operation and return its images, uint8 [N, H, W, C], or vectors, float32 [N, D]."""
    headers = {"Content-Type": "application/json", "Accept": "application/x-npy"}
    request = urllib.request.Request(f"{URL}/{operation}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        made: NDArray[Any] = np.load(io.BytesIO(answer.read()), allow_pickle=False)
        return made


def save(name: str, images: NDArray[np.uint8], columns: int, folder: Path = PICTURES) -> None:
    """Write images as one grid, row by row."""
    count, height, width, _ = images.shape
    rows = count // columns
    # [rows, columns, H, W] -> [rows, H, columns, W] -> [rows * H, columns * W]
    cells = images.reshape(rows, columns, height, width).swapaxes(1, 2)
    picture = Image.fromarray(cells.reshape(rows * height, columns * width))
    picture = picture.resize(
        (picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST
    )
    folder.mkdir(exist_ok=True)
    picture.save(folder / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
