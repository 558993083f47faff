"""Conditional variational autoencoder: a picture from a class and what the class leaves open.

Kihyuk Sohn, Honglak Lee and Xinchen Yan, "Learning Structured Output Representation using Deep
Conditional Generative Models", 2015 (NIPS 28): the evidence lower bound on log p(x|y), their
equation 4, of a decoder p(x|z, y) and a prior p(z|y).

Differences: the encoder q(z|x) is not shown the class, which it can read from the picture, so that
any picture can be encoded; the bound holds for every q. While the networks are trained the prior is
the same for all classes. Then each class gets the normal distribution under which the bound is
highest, the one with the moments of its pictures' z: a network that is asked for no more than ten
of them would find these.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from model_zoo.autoencoders.autoencoder_layers import (
    bernoulli_log_mass,
    convolutional_decoder,
    convolutional_encoder,
    kl_divergence,
    normal_log_densities,
    split_posterior,
)
from model_zoo.cards import (
    BINARISATION,
    LATENT_OPERATIONS,
    class_condition,
    image_event,
    image_preprocess,
    likelihood_bound,
)
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Function, Graph, Objective, Port
from model_zoo.layers import binarise, normal_noise, standard_error, standard_normal_log_density

IMPORTANCE_DRAWS = 50
CHUNK = 500  # images measured at a time
SMALLEST_WEIGHT = 1e-30  # of a class in a mixture, so that its logarithm is finite


class ConditionalVariationalAutoencoder(Family):
    """Encoder of pictures, and decoder of a class and a latent vector, normal for each class."""

    prior_means: Tensor
    prior_factors: Tensor

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        latent_size: int = 16,
        width: int = 32,
        residual_blocks: int = 1,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        `width` is the number of channels at a quarter of the resolution.
        """
        super().__init__()
        self.image_shape, self.classes = tuple(image_shape), classes
        self.latent_size = latent_size
        self.encoder = convolutional_encoder(
            self.image_shape, width, residual_blocks, 2 * latent_size
        )
        self.decoder = convolutional_decoder(
            self.image_shape, width, residual_blocks, latent_size + classes
        )
        self.register_buffer("prior_means", torch.zeros(classes, latent_size))
        # Lower triangular L of each covariance L L^T.
        self.register_buffer("prior_factors", torch.eye(latent_size).repeat(classes, 1, 1))

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x in [0, 1] to mean and log deviation of q(z|x), each [N, latent]."""
        return split_posterior(self.encoder(2 * x - 1))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x in [0, 1] to mean and deviation of q(z|x), each [N, latent]."""
        mean, log_deviation = self.encode(x)
        return mean, log_deviation.exp()

    def decode_logits(self, latent: Tensor, class_weights: Tensor) -> Tensor:
        """Map z and weights of the classes [N, classes] to log odds of every pixel being on."""
        return self.decoder(torch.cat([latent, class_weights], dim=1)).float()

    def decode(self, latent: Tensor, class_weights: Tensor) -> Tensor:
        """Map z and weights of the classes to the mean picture, in [0, 1], [N, C, H, W]."""
        return torch.sigmoid(self.decode_logits(latent, class_weights))

    def draw_latent(
        self, uniform: Tensor, noise: Tensor, temperature: Tensor, class_weights: Tensor
    ) -> Tensor:
        """Draw from p(z|y), [N, latent]; of a mixture of classes, one is drawn by `uniform` [N].

        `noise` is standard normal, [N, latent]; what is made of it is scaled by `temperature` [N].
        """
        cumulative = class_weights.cumsum(dim=1)
        chosen = (cumulative <= uniform[:, None] * cumulative[:, -1:]).sum(dim=1)  # [N]
        moved = (self.prior_factors[chosen] @ noise[:, :, None])[:, :, 0]
        return self.prior_means[chosen] + temperature[:, None] * moved

    def log_prior(self, latent: Tensor, class_weights: Tensor, whiteners: Tensor) -> Tensor:
        """Return log p(z|y) in nats, [N]; class weights are those of a mixture.

        `whiteners` are the inverses of the factors of each class's covariance.
        """
        log_densities = normal_log_densities(latent, self.prior_means, whiteners)
        return (class_weights.clamp(min=SMALLEST_WEIGHT).log() + log_densities).logsumexp(dim=1)

    def log_weight_and_error(
        self, x: Tensor, class_weights: Tensor, noise: Tensor, whiteners: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return log p(x|z, y) + log p(z|y) - log q(z|x) and -log p(x|z, y) of binary x, [N].

        Both are in nats. Over noise, the mean of the first is the bound, that of its exp p(x|y).
        """
        mean, log_deviation = self.encode(x)
        latent = mean + log_deviation.exp() * noise
        log_mass = bernoulli_log_mass(x, self.decode_logits(latent, class_weights))
        log_posterior = standard_normal_log_density(noise) - log_deviation.sum(dim=1)
        log_weight = log_mass + self.log_prior(latent, class_weights, whiteners) - log_posterior
        return log_weight, -log_mass

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: minus the evidence lower bound on binarised images (equation 4)."""
        return {"autoencoder": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        x = binarise(batch.images, generator)
        mean, log_deviation = self.encode(x)
        noise = normal_noise((len(x), self.latent_size), generator)
        logits = self.decode_logits(mean + log_deviation.exp() * noise, self._weights(batch))
        return (kl_divergence(mean, log_deviation) - bernoulli_log_mass(x, logits)).mean()

    def _weights(self, batch: Batch) -> Tensor:
        return one_hot(batch.labels, self.classes).float()

    @torch.no_grad()
    def conclude(self, data: Batch, generator: torch.Generator) -> None:
        """Give each class the prior that is best for its pictures: the moments of q over them."""
        for label in range(self.classes):
            own = Batch(data.images[data.labels == label], data.labels[data.labels == label])
            parts = [
                self.encode(binarise(chunk.images, generator)) for chunk in in_chunks(own, CHUNK)
            ]
            mean, log_deviation = (torch.cat(part) for part in zip(*parts, strict=True))
            away = mean - mean.mean(dim=0)
            within = (2 * log_deviation).exp().mean(dim=0).diag()
            self.prior_means[label] = mean.mean(dim=0)
            self.prior_factors[label] = torch.linalg.cholesky(away.T @ away / len(away) + within)

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the bound given the class, and on every tenth image the marginal one."""
        binary = Batch(binarise(data.images, generator), data.labels)
        bound = torch.cat(
            [
                self._draw_log_weight(chunk.images, self._weights(chunk), generator)
                for chunk in in_chunks(binary, CHUNK)
            ]
        )
        few = Batch(binary.images[::10], binary.labels[::10])
        by_class = self._bounds_by_class(few.images, generator)  # [N, classes], log p(x|y)
        marginal = by_class.logsumexp(dim=1) - math.log(self.classes)
        right = by_class.argmax(dim=1) == few.labels
        draws = f"{IMPORTANCE_DRAWS} posterior draws an image, every tenth image"
        return [
            _bound("elbo_given_class", bound, "log P(x|y)", "one posterior draw an image"),
            _bound(f"iwae_{IMPORTANCE_DRAWS}", marginal, "log P(x), summed over classes", draws),
            Figure(
                "classified_by_bound",
                right.float().mean().item(),
                "share",
                f"the class under which the bound is highest is that of the image, {draws}",
                standard_error(right.float()),
            ),
        ]

    def _draw_log_weight(self, x: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        noise = normal_noise((len(x), self.latent_size), generator)
        whiteners = torch.linalg.inv(self.prior_factors)
        return self.log_weight_and_error(x, weights, noise, whiteners)[0]

    def _bounds_by_class(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Return the importance-weighted bound on log p(x|y) of each class y, [N, classes]."""
        bounds = []
        for label in torch.eye(self.classes, device=x.device):
            weights = label.expand(len(x), self.classes)
            draw = partial(self._draw_log_weight, x, weights, generator)
            draws = torch.stack([draw() for _ in range(IMPORTANCE_DRAWS)])
            bounds.append(draws.logsumexp(dim=0) - math.log(IMPORTANCE_DRAWS))
        return torch.stack(bounds, dim=1)

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="conditional variational autoencoder",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 1.0, binarisation=BINARISATION),
            latent={
                "shape": [self.latent_size],
                "prior": "graph",
                "prior_meaning": (
                    "a normal distribution for each class, with the moments of what the training "
                    "images of the class are encoded to"
                ),
            },
            condition=class_condition(self.classes),
            controls={
                "temperature": {
                    "meaning": "what the deviations of the latent prior of a class are scaled by",
                    "minimum": 0.0,
                    "maximum": 2.0,
                    "default": 1.0,
                }
            },
            operations={
                **LATENT_OPERATIONS,
                # Of each class, where none is given: few draws of each are many.
                "likelihood": likelihood_bound("elbo", "iwae", draws=4),
            },
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode, decode, prior and log_likelihood; switches the model to eval mode."""
        data = Port("data", "data", self.image_shape)
        condition = Port("class_weights", "condition", (self.classes,))
        latent = Port("latent", "latent", (self.latent_size,))
        deviation = Port("latent_deviation", "latent_deviation", (self.latent_size,))
        noise = Port("noise", "noise", (self.latent_size,), "float32", "normal", "posterior")
        outputs = (
            Port("log_likelihood", "log_likelihood", ()),
            Port("reconstruction_error", "statistic", ()),
        )
        draws = (
            Port("uniform", "noise", (), "float32", "uniform", "component"),
            Port("noise", "noise", (self.latent_size,), "float32", "normal", "latent"),
            Port("temperature", "control", ()),
        )
        return (
            Graph("encode", Function(self, self.posterior).eval(), (data,), (latent, deviation)),
            Graph("decode", Function(self, self.decode).eval(), (latent, condition), (data,)),
            Graph("prior", Function(self, self.draw_latent).eval(), (*draws, condition), (latent,)),
            Graph("log_likelihood", LogWeight(self).eval(), (data, condition, noise), outputs),
        )


class LogWeight(nn.Module):
    """Graph: binary image, class weights and posterior noise to a log weight, and its error."""

    def __init__(self, model: ConditionalVariationalAutoencoder):
        super().__init__()
        self.model = model
        self.whiteners = torch.linalg.inv(model.prior_factors)

    def forward(self, data: Tensor, class_weights: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Map [N, C, H, W] in {0, 1}, [N, classes] and [N, latent] to two [N], in nats."""
        return self.model.log_weight_and_error(data, class_weights, noise, self.whiteners)


def _bound(name: str, nats: Tensor, quantity: str, draws: str) -> Figure:
    protocol = f"lower bound on {quantity}, pixels drawn 0 or 1 by their grey value once, {draws}"
    return Figure(name, nats.mean().item(), "nats", protocol, standard_error(nats))
