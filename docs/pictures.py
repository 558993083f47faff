"""Draw the pictures of docs/ and the table of figures, through the REST API of a running service.

Start one with `make serve`, then run `make pictures`.
"""

import io
import json
import urllib.request
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

URL = "http://127.0.0.1:8000"
DOCS = Path(__file__).parent
FASHION = ("fashion-mnist-pixelcnn", "fashion-mnist-realnvp", "fashion-mnist-vae")
MODELS = (
    "mnist-dcgan",
    "mnist-vae",
    "mnist-vae-2d",
    "mnist-realnvp",
    "mnist-pixelcnn",
    *FASHION,
)
UNPAINTED = 48  # the grey of pixels that are not there yet
SCALE = 2  # pictures are drawn with pixels this large

START, END = "<!-- figures -->", "<!-- end of figures -->"


def main() -> None:
    """Draw every picture and rewrite the table."""
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
    write_figures()


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


def write_figures() -> None:
    """Rewrite the table of figures in gallery.md from the manifests."""
    rows = ["| model | figure | measured | published | protocol |", "|---|---|---|---|---|"]
    for model in MODELS:
        for figure in json.loads(get(f"/models/{model}"))["quality"]:
            published = figure["published"]
            beside = f"{published['value']} ({published['source']})" if published else "-"
            error = figure["standard_error"]
            value = f"{figure['value']:.4g}" + (f" ± {error:.1g}" if error else "")
            name = figure["name"].replace("_", " ")
            rows.append(
                f"| `{model}` | {name}, {figure['unit']} | {value} | {beside} "
                f"| {figure['protocol']} |"
            )
    page = DOCS / "gallery.md"
    before, _, rest = page.read_text().partition(START)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{START}\n" + "\n".join(rows) + f"\n{END}{after}")


def ask(operation: str, **body: Any) -> NDArray[np.uint8]:
    """Run an operation and return its images, uint8 [N, H, W, C]."""
    headers = {"Content-Type": "application/json", "Accept": "application/x-npy"}
    request = urllib.request.Request(f"{URL}/{operation}", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request) as answer:
        images: NDArray[np.uint8] = np.load(io.BytesIO(answer.read()), allow_pickle=False)
        return images


def get(path: str) -> bytes:
    """Return the body of a GET."""
    with urllib.request.urlopen(URL + path) as answer:
        content: bytes = answer.read()
        return content


def save(name: str, images: NDArray[np.uint8], columns: int) -> None:
    """Write images as one grid, row by row."""
    count, height, width, _ = images.shape
    rows = count // columns
    # [rows, columns, H, W] -> [rows, H, columns, W] -> [rows * H, columns * W]
    cells = images.reshape(rows, columns, height, width).swapaxes(1, 2)
    picture = Image.fromarray(cells.reshape(rows * height, columns * width))
    picture = picture.resize(
        (picture.width * SCALE, picture.height * SCALE), Image.Resampling.NEAREST
    )
    picture.save(DOCS / "pictures" / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
