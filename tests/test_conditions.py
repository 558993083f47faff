"""Conditions: a model takes those that its manifest lists."""

import numpy as np
import pytest

from service.core.conditions import class_weights
from service.core.engine import Engine
from service.core.manifest import Manifest
from service.core.requests import ConditionRequest
from service.errors import ConditionNotOffered

REQUESTS = {
    "class": ConditionRequest(classes=[1]),
    "class_weights": ConditionRequest(class_weights=np.array([0.0, 1.0, 0.0])),
}


def offering(engine: Engine, *kinds: str) -> Manifest:
    """The manifest of toy-gan, with other kinds of condition."""
    manifest = engine.models.find("toy-gan").manifest
    condition = manifest.condition.model_copy(update={"kinds": kinds})
    return manifest.model_copy(update={"condition": condition})


@pytest.mark.parametrize(
    ("kind", "other"), [("class", "class_weights"), ("class_weights", "class")]
)
def test_a_kind_of_condition_that_is_not_listed_is_refused_by_name(
    engine: Engine, kind: str, other: str
) -> None:
    manifest = offering(engine, kind)
    assert class_weights(manifest, REQUESTS[kind], 2, seed=0).tolist() == [[0, 1, 0]] * 2
    with pytest.raises(
        ConditionNotOffered, match=f"not conditioned on {other}; give {kind}$"
    ) as refused:
        class_weights(manifest, REQUESTS[other], 2, seed=0)
    assert refused.value.details == {"kinds": [kind]}


def test_without_a_condition_a_class_is_drawn_whatever_kinds_are_listed(engine: Engine) -> None:
    drawn = [
        class_weights(offering(engine, kind), ConditionRequest(), 8, seed=0) for kind in REQUESTS
    ]
    assert np.array_equal(*drawn) and drawn[0].sum() == 8
