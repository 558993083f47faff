"""The artifact contract: what `manifest.json` may say, and how its parts must agree.

An artifact is a folder with a manifest, ONNX graphs, their shared weights and numeric test vectors.
The manifest says everything that serving needs, so that no code here knows a model family.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from service.core.manifest_parts import (
    Binarisation,
    Codes,
    Condition,
    Control,
    ControlName,
    Digest,
    Event,
    Figure,
    FileName,
    Graph,
    ImageEvent,
    Latent,
    Name,
    Operation,
    Part,
    Preprocess,
    Split,
    TestVectors,
    VectorEvent,
    Version,
    read_part,
)
from service.errors import ArtifactError

SCHEMA_VERSION = 1
MANIFEST_FILE = "manifest.json"

OPERATIONS = (
    "sample",
    "encode",
    "decode",
    "reconstruct",
    "likelihood",
    "interpolate",
    "complete",
    "score",
    "classify",
)
"""Every operation, in the order in which people meet them."""

STATISTICS = ("predictive_entropy", "reconstruction_error", "kl_divergence", "latent_norm")
"""What the log_likelihood graph may say of an image besides, for anomaly scores.

In nats the entropies of p(x_i | x_1 .. x_i-1), summed over the pixels, -log p(x|z) of the draw, and
the divergence of the posterior from the prior; and the length of the latent: of the posterior's
mean where there is a posterior.
"""

_OF_PIXELS = {"cache", "features", "forced", "levels", "log_likelihood_map", "steps"}
"""The roles of ports that only images have."""

# A graph's name is its function: the roles that its inputs may have, and outputs of which it must
# have one.
_STEP = ({"cache", "condition", "control", "features", "forced", "noise"}, {"levels"})
_FUNCTIONS = {
    "decode": ({"latent", "codes", "condition", "noise"}, {"data"}),
    "features": ({"latent"}, {"features"}),
    "encode": ({"data"}, {"latent", "codes"}),
    "prior": ({"noise", "control", "condition"}, {"latent", "codes"}),
    "log_likelihood": ({"data", "condition", "noise"}, {"log_likelihood"}),
    "background_log_likelihood": ({"data", "condition"}, {"log_likelihood"}),
    "log_mass_given_latent": ({"data", "latent"}, {"log_likelihood"}),
    "score": ({"data", "condition"}, {"score"}),
    "row_step": _STEP,
    "row_step_filtered": _STEP,
    "draw": ({"condition", "control", "forced", "noise"}, {"levels"}),
    "start": ({"noise"}, {"cache"}),
    "transition": ({"cache", "control", "forced", "noise", "steps"}, {"levels"}),
    "reconstruct": ({"data"}, {"data"}),
}

# The graphs that each operation runs, by the program that runs them.
_GRAPHS_OF: dict[str, dict[str, tuple[str, ...]]] = {
    "single_pass": {
        "sample": ("decode",),
        "decode": ("decode",),
        "interpolate": ("decode",),
        "encode": ("encode",),
        "reconstruct": ("encode", "decode"),
        "likelihood": ("log_likelihood",),
        "score": ("score",),
        "classify": ("log_likelihood",),
    },
    "raster_rows": {
        "sample": ("row_step",),
        "complete": ("row_step",),
        "decode": ("features", "row_step"),
        "interpolate": ("features", "row_step"),
        "encode": ("encode",),
        "reconstruct": ("encode", "features", "row_step"),
        "likelihood": ("log_likelihood",),
        "classify": ("log_likelihood",),
    },
    "ancestral": {
        "sample": ("draw",),
        "complete": ("draw",),
        "likelihood": ("log_likelihood",),
    },
    "markov_chain": {
        "sample": ("start", "transition"),
        "complete": ("start", "transition"),
        "decode": ("decode",),
        "encode": ("encode",),
        "reconstruct": ("reconstruct",),
        "likelihood": ("log_likelihood",),
    },
}


class Manifest(Part):
    """Everything that serving needs to know of a model."""

    schema_version: Literal[1]
    name: Name
    version: Version
    family: str = Field(description="a word for people; nothing branches on it")
    licence: str
    artifact_digest: Digest
    event: Event
    preprocess: Preprocess | None = Field(description="of images; null for vectors")
    latent: Latent | None
    codes: Codes | None = None
    condition: Condition | None
    program: Literal["single_pass", "raster_rows", "ancestral", "markov_chain"]
    controls: dict[ControlName, Control]
    operations: dict[str, Operation]
    graphs: dict[str, Graph]
    test_vectors: TestVectors
    files: dict[FileName, Digest]
    quality: tuple[Figure, ...]
    splits: dict[str, Split]
    provenance: dict[str, Any]

    @property
    def image(self) -> ImageEvent:
        """The event of a model of images: only these are drawn pixel by pixel."""
        assert isinstance(self.event, ImageEvent), "the manifest was checked for images"
        return self.event

    @property
    def row_shape(self) -> tuple[int, ...]:
        """The shape of one event as graphs take it."""
        return self.preprocess.row_shape(self.image) if self.preprocess else self.event.shape

    @property
    def binarisation(self) -> Binarisation | None:
        """How grey images become binary ones; None where they need not."""
        return self.preprocess.binarisation if self.preprocess else None

    @property
    def drawn_levels(self) -> int:
        """How many levels a pixel can have under the model: two where its images are binary."""
        return self.binarisation.levels if self.binarisation else self.image.levels

    @property
    def level_step(self) -> int:
        """The distance between neighbouring levels of the model, in levels of images."""
        return (self.image.levels - 1) // (self.drawn_levels - 1)

    @property
    def latent_space(self) -> str | None:
        """The space that latents, or codes, are of; None where there are none."""
        decoded = self.latent or self.codes
        return decoded.space if decoded else None

    @property
    def has_prior_graph(self) -> bool:
        """Whether a graph draws what is decoded."""
        return self.codes is not None or (self.latent is not None and self.latent.prior == "graph")

    @model_validator(mode="after")
    def _images_are_preprocessed_and_vectors_are_not(self) -> Self:
        if isinstance(self.event, ImageEvent) != (self.preprocess is not None):
            raise ValueError("images have a preprocess, and vectors have none")
        return self

    @model_validator(mode="after")
    def _vectors_have_no_pixels(self) -> Self:
        if not isinstance(self.event, VectorEvent):
            return self
        if self.program != "single_pass":
            raise ValueError(f"a vector can't be drawn by {self.program}, which goes over pixels")
        for name, graph in self.graphs.items():
            for port in (*graph.inputs, *graph.outputs):
                if port.role in _OF_PIXELS:
                    raise ValueError(
                        f"port '{port.name}' of graph '{name}': a vector has no {port.role}"
                    )
        likelihood = self.operations.get("likelihood")
        if likelihood and likelihood.quantity == "probability":
            raise ValueError("a likelihood of vectors is a density, and no probability")
        return self

    @model_validator(mode="after")
    def _latents_are_numbers_or_codes(self) -> Self:
        if self.latent and self.codes:
            raise ValueError("there is a latent or there are codes, not both")
        return self

    @model_validator(mode="after")
    def _a_prior_graph_takes_the_controls(self) -> Self:
        graph = self.graphs.get("prior")
        if graph is None:
            return self
        if not self.has_prior_graph:
            raise ValueError("graph 'prior' needs codes, or a latent whose prior is 'graph'")
        taken = {port.name for port in graph.inputs if port.role == "control"}
        if taken != set(self.controls):
            raise ValueError(f"graph 'prior' must take the controls {sorted(self.controls)}")
        for name, each in self.controls.items():
            if each.default is None:
                raise ValueError(f"control '{name}' must have a default, for the graph 'prior'")
        return self

    @model_validator(mode="after")
    def _operations_can_run(self) -> Self:
        graphs_of = _GRAPHS_OF[self.program]
        for operation in self.operations:
            if operation not in graphs_of:
                known = ", ".join(graphs_of)
                raise ValueError(f"unknown operation '{operation}'; {self.program} has {known}")
            if operation == "interpolate" and self.latent is None:
                raise ValueError("operation 'interpolate' needs a latent: nothing is between codes")
            decodes = not {"decode", "features"}.isdisjoint(graphs_of[operation])
            if decodes and not (self.latent or self.codes):
                raise ValueError(f"operation '{operation}' needs a latent or codes")
            drawn = ("prior",) if operation == "sample" and self.has_prior_graph else ()
            for name in (*drawn, *graphs_of[operation]):
                if name not in self.graphs:
                    raise ValueError(f"operation '{operation}' needs a graph '{name}'")
        return self

    @model_validator(mode="after")
    def _graphs_do_what_their_names_say(self) -> Self:
        for name in self.graphs.keys() & _FUNCTIONS.keys():
            allowed, results = _FUNCTIONS[name]
            roles = {port.role for port in self.graphs[name].inputs}
            given = {port.role for port in self.graphs[name].outputs}
            if not roles <= allowed or not given & results:
                result = " or ".join(sorted(results))
                raise ValueError(f"graph '{name}' must map {sorted(allowed)} to {result}")
        return self

    @model_validator(mode="after")
    def _graphs_beside_the_likelihood_fit_it(self) -> Self:
        scored = self.graphs.get("log_likelihood")
        for name in ("background_log_likelihood", "log_mass_given_latent"):
            if (graph := self.graphs.get(name)) is None:
                continue
            if scored is None:
                raise ValueError(f"graph '{name}' needs a graph 'log_likelihood' to stand beside")
            if (graph.input("condition") is None) != (scored.input("condition") is None):
                raise ValueError(f"graph '{name}' must take a condition if 'log_likelihood' does")
        given_latent = self.graphs.get("log_mass_given_latent")
        if given_latent and not (self.latent and given_latent.input("latent")):
            raise ValueError("graph 'log_mass_given_latent' needs a latent")
        if given_latent and self.has_prior_graph:
            raise ValueError("graph 'log_mass_given_latent' needs the prior 'standard_normal'")
        return self

    @model_validator(mode="after")
    def _statistics_are_known(self) -> Self:
        for name, graph in self.graphs.items():
            for port in graph.outputs:
                known = name == "log_likelihood" and port.name in STATISTICS
                if port.role == "statistic" and not (known and port.dtype == "float32"):
                    raise ValueError(
                        f"statistic '{port.name}' of graph '{name}': statistics are outputs of "
                        f"'log_likelihood', of float32, called {', '.join(STATISTICS)}"
                    )
        return self

    @model_validator(mode="after")
    def _a_chain_can_go_on(self) -> Self:
        if self.program != "markov_chain":
            return self
        start, transition = self.graphs.get("start"), self.graphs.get("transition")
        if start is None or transition is None:
            raise ValueError("a markov_chain needs the graphs 'start' and 'transition'")
        states = (start.output("cache"), transition.input("cache"), transition.output("cache"))
        if None in states or len({port.row_shape for port in states if port}) != 1:
            raise ValueError("'start' and 'transition' must have states of one shape, as caches")
        noise, steps = transition.input("noise"), transition.input("steps")
        if noise is None or not noise.row_shape or steps is None:
            raise ValueError("'transition' needs steps, and noise of [steps, ...]")
        if (transition.input("control") is None) == ("temperature" in self.controls):
            raise ValueError("'transition' takes a control 'temperature' where the model has one")
        for name in ("burn_in", "thinning"):
            if name not in self.controls or self.controls[name].default is None:
                raise ValueError(f"a markov_chain needs a control '{name}' with a default")
        return self

    @model_validator(mode="after")
    def _rows_are_told_of_the_latent(self) -> Self:
        features = self.graphs.get("features")
        painted = self.program == "raster_rows" and self.latent is not None
        if painted != (features is not None):
            raise ValueError("a latent of raster_rows, and no other, needs a graph 'features'")
        given = features.output("features") if features else None
        shape = given.row_shape if given else None
        if shape is not None and (len(shape) != 3 or shape[:2] != self.image.shape[:2]):
            raise ValueError("graph 'features' must give [height, width, features]")
        for name in self.graphs.keys() & {"row_step", "row_step_filtered"}:
            taken = self.graphs[name].input("features")
            if (taken.row_shape if taken else None) != (shape[1:] if shape else None):
                raise ValueError(
                    f"graph '{name}' must take [width, features] where there is a graph 'features'"
                )
        if painted and (self.has_prior_graph or "complete" in self.operations):
            raise ValueError(
                "a latent of raster_rows needs the prior 'standard_normal', and no operation "
                "'complete': known pixels would have to choose the latent, too"
            )
        return self

    @model_validator(mode="after")
    def _a_likelihood_says_what_it_means(self) -> Self:
        meaning = self.operations.get("likelihood")
        if meaning is None:
            return self
        needed = {"quantity", "kind", "base_measure", "estimator", "conditioning"}
        if self.graphs["log_likelihood"].input("noise"):
            needed |= {"draws", "importance_estimator"}
        if missing := {name for name in needed if getattr(meaning, name) is None}:
            raise ValueError(f"operation 'likelihood' must state {sorted(missing)}")
        return self

    @model_validator(mode="after")
    def _a_score_says_what_it_means(self) -> Self:
        if (stated := self.operations.get("score")) is None:
            return self
        needed = {"higher_means", "unit", "meaning"}
        if missing := {name for name in needed if getattr(stated, name) is None}:
            raise ValueError(f"operation 'score' must state {sorted(missing)}")
        return self

    @model_validator(mode="after")
    def _classes_are_told_apart_by_likelihoods_given_each(self) -> Self:
        if "classify" not in self.operations:
            return self
        given = self.graphs["log_likelihood"].input("condition") is not None
        if "likelihood" not in self.operations or self.condition is None or not given:
            raise ValueError("operation 'classify' needs an operation 'likelihood' given a class")
        return self

    @model_validator(mode="after")
    def _ports_have_the_shapes_of_what_they_carry(self) -> Self:
        shapes: dict[str, tuple[int, ...] | None] = {
            "data": self.row_shape,
            "latent": self.latent.shape if self.latent else None,
            "latent_deviation": self.latent.shape if self.latent else None,
            "codes": (self.codes.size,) if self.codes else None,
            "condition": (len(self.condition.names),) if self.condition else None,
            "log_likelihood": (),
            "statistic": (),
            "steps": (),
            "score": (),
        }
        for name, graph in self.graphs.items():
            here = shapes | self._shapes_of_pixels(name)
            for port in (*graph.inputs, *graph.outputs):
                if port.row_shape != here.get(port.role, port.row_shape):
                    raise ValueError(
                        f"port '{port.name}' of graph '{name}' has rows of shape "
                        f"{port.row_shape}; by the manifest {port.role} is {here[port.role]}"
                    )
                if port.role == "codes" and port.dtype != "int64":
                    raise ValueError(f"port '{port.name}' of graph '{name}': codes are int64")
        return self

    def _shapes_of_pixels(self, graph: str) -> dict[str, tuple[int, ...]]:
        """Return the shapes of rows of pixels, by role, as a graph takes and gives them."""
        if not isinstance(self.event, ImageEvent):
            return {}
        height, width, _ = self.event.shape
        # A chain has whole images, a loop inside a graph all of their pixels, painting a row.
        whole = {"transition": (height, width), "draw": (height * width,)}
        pixels = whole.get(graph, (width,))
        return {"forced": pixels, "levels": pixels}

    @model_validator(mode="after")
    def _a_draw_is_of_all_pixels_at_once(self) -> Self:
        if (graph := self.graphs.get("draw")) is None:
            return self
        height, width, _ = self.image.shape
        of_pixels = (
            graph.input("forced"),
            graph.input("noise"),
            graph.output("log_likelihood_map"),
        )
        if any(port is None or port.row_shape != (height * width,) for port in of_pixels):
            raise ValueError(
                "graph 'draw' needs forced, noise and log_likelihood_map, a number for each pixel "
                f"in raster order: rows of shape {(height * width,)}"
            )
        if [port.name for port in graph.inputs if port.role == "control"] != ["temperature"]:
            raise ValueError("graph 'draw' must take one control, 'temperature'")
        return self

    @model_validator(mode="after")
    def _a_map_has_a_number_for_each_pixel(self) -> Self:
        for name in self.graphs.keys() & {"log_likelihood", "log_mass_given_latent"}:
            port = self.graphs[name].output("log_likelihood_map")
            if port and port.row_shape != self.event.shape[:2]:
                raise ValueError(
                    f"port '{port.name}' of graph '{name}' has rows of shape {port.row_shape}; a "
                    f"log_likelihood_map is {self.event.shape[:2]}, a number for each pixel"
                )
        return self

    @model_validator(mode="after")
    def _means_and_deviations_are_for_the_channels(self) -> Self:
        if self.preprocess is None:
            return self
        for values in (self.preprocess.mean, self.preprocess.deviation):
            if len(values) not in (1, self.image.shape[2]):
                raise ValueError("mean and deviation are one for all channels, or one each")
        return self

    @model_validator(mode="after")
    def _files_are_hashed(self) -> Self:
        needed = {graph.file for graph in self.graphs.values()} | {self.test_vectors.file}
        if missing := needed - self.files.keys():
            raise ValueError(f"files must hold a hash for {sorted(missing)}")
        return self


def graphs_of(manifest: Manifest, operation: str) -> tuple[str, ...]:
    """Return the graphs that an operation runs, by the model's program."""
    return _GRAPHS_OF[manifest.program].get(operation, ())


def artifact_digest(manifest: Mapping[str, Any]) -> str:
    """Return the hash of the whole artifact: of the manifest, which holds all other hashes.

    It is the SHA-256 of the manifest without `artifact_digest`, as JSON with sorted keys, no
    spaces and non-ASCII characters escaped.
    """
    content = {key: value for key, value in manifest.items() if key != "artifact_digest"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def read_manifest(folder: Path) -> Manifest:
    """Read and check the manifest of an artifact, not yet its files.

    Raises ArtifactError where it is missing, unreadable, inconsistent or altered.
    """
    manifest, content = read_part(folder / MANIFEST_FILE, Manifest)
    digest = artifact_digest(content)
    if manifest.artifact_digest != digest:
        raise ArtifactError(f"{MANIFEST_FILE} contradicts its artifact_digest; export it again")
    return manifest


def json_schema() -> str:
    """Return the published JSON Schema of a manifest, as text."""
    return json.dumps(Manifest.model_json_schema(), indent=2) + "\n"


if __name__ == "__main__":
    print(json_schema(), end="")
