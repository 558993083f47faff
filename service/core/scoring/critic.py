"""The score operation: what a discriminator or critic says of images, in the model's own unit.

It is no likelihood, and no anomaly score either: it says how real images look to the network that
the generator was trained against, and the manifest says which way up. Values of two models can't be
compared.
"""

from collections.abc import Generator

import numpy as np

from service.core.calls import Call, Outputs, feed, no_noise, output
from service.core.conditions import class_weights, is_given
from service.core.events import events_of
from service.core.manifest import Manifest
from service.core.preprocess import binarise
from service.core.requests import Array, ConditionRequest, Limits, ScoreRequest, ScoreResult
from service.errors import ConditionNotOffered, ConditionRequired


def score(
    manifest: Manifest, request: ScoreRequest, limits: Limits
) -> Generator[Call, Outputs, ScoreResult]:
    """Score images, each alone; a network that judges images of a class has to be told which."""
    events = events_of(manifest)
    rows = binarise(manifest, "score", events.read(request, limits), None, seed=0)
    weights = _condition(manifest, request.condition, len(rows))
    graph, stated = manifest.graphs["score"], manifest.operations["score"]
    assert stated.higher_means is not None, "the manifest was checked for what a score means"
    inputs = feed(graph, no_noise, data=events.to_values(rows), condition=weights)
    outputs = yield Call("score", inputs)
    return ScoreResult(
        score=output(graph, outputs, "score").astype(np.float64),
        higher_means=stated.higher_means,
        unit=str(stated.unit),
        meaning=str(stated.meaning),
        conditioning="given" if is_given(request.condition) else "none",
    )


def _condition(manifest: Manifest, request: ConditionRequest, count: int) -> Array | None:
    """Return class weights [count, K], or None where the network takes no condition.

    None is ever drawn: a score of an image as one of any class would mean nothing.
    """
    takes_one = manifest.graphs["score"].input("condition") is not None
    optional = manifest.condition is not None and manifest.condition.optional
    if is_given(request) and not takes_one:
        raise ConditionNotOffered(f"{manifest.name} scores without a condition; leave it out")
    if takes_one and not optional and not is_given(request):
        raise ConditionRequired(
            f"{manifest.name} scores an image as one of a class: give class_label, or condition"
        )
    return class_weights(manifest, request, count, seed=0) if takes_one else None
