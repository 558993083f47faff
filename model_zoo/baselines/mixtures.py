"""What mixtures of normals with a deviation for every pixel have in common."""

from __future__ import annotations

from abc import abstractmethod
from typing import NamedTuple

from torch import Tensor

from model_zoo.cards import LATENT_CONTROLS, image_event, image_preprocess, normal_latent
from model_zoo.dequantised import BIN_CENTRE, LIKELIHOOD, DequantisedDensity
from model_zoo.family import Card, Function, Graph, Objective, Port
from model_zoo.layers import LOG_TWO_PI


class Components(NamedTuple):
    """The parts of a mixture of K normals over D pixels, in levels."""

    log_weights: Tensor
    """Nats [K], up to a constant that is the same for all."""
    means: Tensor
    """[K, D]."""
    log_deviations: Tensor
    """[K, D], or [1, D] where all are alike."""


class MixtureOfNormals(DequantisedDensity):
    """p(x) = sum over k of w_k N(x; mean_k, diag(deviation_k^2)) over dequantised levels.

    Its latent is the place within a component, in that component's deviations; which component it
    is, other noise decides. So temperature narrows every component about its mean.
    """

    name: str
    """A word for people."""

    @abstractmethod
    def components(self) -> Components:
        """Return the fitted mixture in float32."""

    def log_density(self, levels: Tensor) -> Tensor:
        """Return log p in nats, [N], with respect to Lebesgue measure on levels [N, C, H, W]."""
        # Multiplied out, squares of distances are differences of large numbers, for which float32
        # is too short; as differences of every image from every mean they'd take too much memory.
        log_weights, means, log_deviations = (part.double() for part in self.components())
        x = levels.flatten(1).double()
        precisions = (-2 * log_deviations).exp()  # [K or 1, D]
        squares = x.square() @ precisions.T - 2 * x @ (means * precisions).T
        squares = squares + (means.square() * precisions).sum(dim=1)  # [N, K]
        log_densities = -0.5 * squares - log_deviations.sum(dim=1)
        log_joint = log_weights.log_softmax(dim=0) + log_densities
        constant = 0.5 * self.event_size * LOG_TWO_PI
        return (log_joint.logsumexp(dim=1) - constant).float()

    def draw(self, latent: Tensor, uniform: Tensor) -> Tensor:
        """Return dequantised levels, [N, C, H, W], of the component that `uniform` [N, 1] picks.

        Over latents [N, D] of the standard normal these are exact draws from the density.
        """
        log_weights, means, log_deviations = self.components()
        ends = log_weights.softmax(dim=0).cumsum(dim=0)[:-1]  # of each component's share of [0, 1]
        chosen = (uniform >= ends).sum(dim=1)  # [N]
        deviations = log_deviations.exp()
        if len(deviations) > 1:  # else one for all, which is not repeated for each
            deviations = deviations[chosen]
        x = means[chosen] + deviations * latent
        return x.unflatten(1, self.image_shape)

    def draw_levels(self, latent: Tensor, uniform: Tensor) -> Tensor:
        """Return the same as levels [N, C, H, W], not yet rounded."""
        return self.draw(latent, uniform) - BIN_CENTRE

    def objectives(self) -> dict[str, Objective]:
        """Return none: `conclude` fits all that there is."""
        return {}

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family=self.name,
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 255.0, dequantisation="uniform"),
            latent=normal_latent(self.event_size),
            controls=LATENT_CONTROLS,
            operations={"sample": {}, "likelihood": LIKELIHOOD},
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return decode and log_likelihood; switches the model to eval mode."""
        latent = Port("latent", "latent", (self.event_size,))
        noise = Port("noise", "noise", (1,), "float32", "uniform", "component")
        data = Port("data", "data", self.image_shape)
        return (
            Graph("decode", Function(self, self.draw_levels).eval(), (latent, noise), (data,)),
            self.log_likelihood_graph(),
        )
