"""What every client asks for: images of the small generator, drawn with a seed, answered raw."""

import json

MODEL = "mnist-dcgan@1"
SEED = 1
ACCEPT = "application/x-npy"


def rest_body(count: int) -> bytes:
    """Return the body of a request for `count` images."""
    return json.dumps({"model": MODEL, "count": count, "seed": SEED}).encode()
