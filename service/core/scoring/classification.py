"""The classify operation: which class an image is of, by how likely each class makes it.

Bayes: p(y|x) is p(y) p(x|y), divided by the sum of that over all classes. The prior p(y) is the
manifest's. Where the likelihoods are lower bounds, so is what is compared: the classes whose bounds
are tighter win a little.
"""

from collections.abc import Generator

from service.core.calls import Call, Outputs
from service.core.manifest import Manifest
from service.core.requests import ClassifyRequest, ClassifyResult, LikelihoodRequest, Limits
from service.core.scoring.likelihood import of_every_class


def classify(
    manifest: Manifest, request: ClassifyRequest, limits: Limits
) -> Generator[Call, Outputs, ClassifyResult]:
    """Return p(y|x) of every class of the model; an image costs a likelihood for each."""
    assert manifest.condition is not None, "the manifest was checked for classes"
    scored = LikelihoodRequest(
        images=request.images,
        vectors=request.vectors,
        binarisation=request.binarisation,
        samples=request.samples,
        seed=request.seed,
        scale=request.scale,
    )
    estimate, found = yield from of_every_class(manifest, scored, limits)
    return ClassifyResult(
        posterior=found.posterior,
        log_likelihood=found.log_likelihood,
        class_names=manifest.condition.names,
        kind=str(manifest.operations["likelihood"].kind),
        estimator=estimate.estimator,
        draws=estimate.draws,
        binarisation=request.binarisation,
        seed=request.seed,
    )
