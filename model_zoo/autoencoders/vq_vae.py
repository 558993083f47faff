"""Vector-quantised autoencoder: a picture is a small map of codes, with a PixelCNN over them.

Aaron van den Oord, Oriol Vinyals and Koray Kavukcuoglu, "Neural Discrete Representation Learning",
2017, arXiv:1711.00937. The encoder's vectors are replaced by the nearest of a codebook, and the
gradient is copied past that step; encoder, codebook and decoder descend equation 3. The prior over
codes (section 3.4) is fitted in the same steps, to codes that it cannot move.

The decoder is a Bernoulli distribution over binary pictures, drawn afresh while training. Since the
encoder names one map of codes c, log p(x|c) + log p(c) is one term of log p(x), the logarithm of a
sum over all maps: a lower bound (section 3.2). Labels are dropped at random while the prior trains,
so that class weights of zero ask for p(c) without a class.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from model_zoo.autoencoders.autoencoder_layers import (
    bernoulli_log_mass,
    downsampling,
    upsampling,
)
from model_zoo.autoencoders.code_prior import CodePrior
from model_zoo.autoencoders.codebook import Codebook
from model_zoo.cards import (
    BINARISATION,
    CODE_CONTROLS,
    SINGLE_CODE_BOUND,
    class_condition,
    image_event,
    image_preprocess,
)
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Graph, Objective, Port
from model_zoo.layers import binarise, standard_error, uniform_noise

LABEL_DROPOUT = 0.1
CHUNK = 500  # images measured at a time


class VectorQuantisedAutoencoder(Family):
    """Encoder, codebook, decoder, and a prior over maps of codes."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        levels: int = 64,
        code_size: int = 8,
        width: int = 32,
        residual_blocks: int = 1,
        prior_layers: int = 4,
        prior_channels: int = 32,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        A code is one of `levels`, each a vector of `code_size`; `width` is the number of channels
        at a quarter of the resolution, which is that of the codes.
        """
        super().__init__()
        self.image_shape, self.classes, self.levels = tuple(image_shape), classes, levels
        channels, height, width_pixels = self.image_shape
        self.map_shape = (height // 4, width_pixels // 4)
        self.encoder = nn.Sequential(
            *downsampling(channels, width, residual_blocks), nn.Conv2d(width, code_size, 1)
        )
        self.codebook = Codebook(levels, code_size)
        self.decoder = nn.Sequential(
            nn.Conv2d(code_size, width, 3, padding=1),
            *upsampling(channels, width, residual_blocks),
        )
        self.prior = CodePrior(self.map_shape, levels, classes, prior_layers, prior_channels)

    def encode(self, x: Tensor) -> Tensor:
        """Map x in [0, 1], [N, C, H, W], to codes, int64 [N, h, w]."""
        return self.codebook.nearest(self.encoder(2 * x - 1))

    def decode_logits(self, codes: Tensor) -> Tensor:
        """Map codes [N, h, w] to the log odds of every pixel being on, [N, C, H, W]."""
        return self.decoder(self.codebook.look_up(codes)).float()

    def bound_and_parts(self, x: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the bound log p(x|c) + log p(c) of binary x, and minus each of them, [N] in nats.

        c is what x is encoded to: -log p(c) is the divergence from the prior of a posterior that
        knows only c.
        """
        codes = self.encode(x)
        log_mass = bernoulli_log_mass(x, self.decode_logits(codes))
        log_prior = self.prior.log_probability(codes, class_weights)
        return log_mass + log_prior, -log_mass, -log_prior

    def objectives(self) -> dict[str, Objective]:
        """Return the loss of the autoencoder (equation 3), then that of the prior of its codes."""
        parts = (self.encoder, self.codebook, self.decoder)
        return {
            "autoencoder": Objective(
                [parameter for part in parts for parameter in part.parameters()], self._loss
            ),
            "prior": Objective(list(self.prior.parameters()), self._prior_loss),
        }

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        x = binarise(batch.images, generator)
        vectors, distances = self.codebook.quantise(self.encoder(2 * x - 1))
        log_mass = bernoulli_log_mass(x, self.decoder(vectors).float())
        return (distances - log_mass).mean()

    def _prior_loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        with torch.no_grad():
            codes = self.encode(binarise(batch.images, generator))
        kept = uniform_noise((len(codes), 1), generator) >= LABEL_DROPOUT
        return -self.prior.log_probability(codes, self._weights(batch) * kept).mean()

    def _weights(self, batch: Batch) -> Tensor:
        return one_hot(batch.labels, self.classes).float()

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the bound without a class, its two parts, and how many codes are in use."""
        bounds, errors, rates, counts = [], [], [], torch.zeros(self.levels)
        for chunk in in_chunks(data, CHUNK):
            x = binarise(chunk.images, generator)
            nothing = torch.zeros(len(x), self.classes, device=x.device)
            bound, error, rate = self.bound_and_parts(x, nothing)
            bounds.append(bound)
            errors.append(error)
            rates.append(rate)
            counts += self.encode(x).flatten().bincount(minlength=self.levels).cpu()
        return [
            _figure("code_bound", bounds, "lower bound on log P(x): log p(x|c) + log p(c)"),
            _figure("reconstruction_error", errors, "-log p(x|c)"),
            _figure("code_length", rates, "-log p(c), no class given"),
            Figure(
                "code_perplexity",
                perplexity(counts),
                "codes",
                "exp of the entropy of how often each code is used, all positions together",
            ),
        ]

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        return Card(
            family="vector-quantised autoencoder",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 1.0, binarisation=BINARISATION),
            codes={
                "maps": [{"name": "codes", "shape": list(self.map_shape), "levels": self.levels}],
                "prior_meaning": "a PixelCNN over the codes of the training images",
            },
            condition=class_condition(self.classes, optional=True),
            controls=CODE_CONTROLS,
            operations={
                "sample": {},
                "encode": {},
                "decode": {},
                "reconstruct": {},
                "likelihood": SINGLE_CODE_BOUND,
            },
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode, decode, prior and log_likelihood; switches the model to eval mode."""
        data = Port("data", "data", self.image_shape)
        condition = Port("class_weights", "condition", (self.classes,))
        codes = Port("codes", "codes", (math.prod(self.map_shape),), "int64")
        draws = (
            Port("uniform", "noise", codes.shape, "float32", "uniform", "codes"),
            Port("temperature", "control", ()),
        )
        outputs = (
            Port("log_likelihood", "log_likelihood", ()),
            Port("reconstruction_error", "statistic", ()),
            Port("kl_divergence", "statistic", ()),
        )
        return (
            Graph("encode", Encode(self).eval(), (data,), (codes,)),
            Graph("decode", Decode(self).eval(), (codes,), (data,)),
            Graph("prior", DrawCodes(self).eval(), (*draws, condition), (codes,)),
            Graph("log_likelihood", Bound(self).eval(), (data, condition), outputs),
        )


class Encode(nn.Module):
    """Graph: image to codes."""

    def __init__(self, model: VectorQuantisedAutoencoder):
        super().__init__()
        self.model = model

    def forward(self, data: Tensor) -> Tensor:
        """Map [N, C, H, W] in [0, 1] to [N, h * w]."""
        return self.model.encode(data).flatten(1)


class Decode(nn.Module):
    """Graph: codes to the mean picture."""

    def __init__(self, model: VectorQuantisedAutoencoder):
        super().__init__()
        self.model = model

    def forward(self, codes: Tensor) -> Tensor:
        """Map [N, h * w] to intensities in [0, 1], [N, C, H, W]."""
        maps = codes.unflatten(1, self.model.map_shape)
        return torch.sigmoid(self.model.decode_logits(maps))


class DrawCodes(nn.Module):
    """Graph: noise and class weights to codes."""

    def __init__(self, model: VectorQuantisedAutoencoder):
        super().__init__()
        self.model = model

    def forward(self, uniform: Tensor, temperature: Tensor, class_weights: Tensor) -> Tensor:
        """Map [N, h * w], [N] and [N, classes] to [N, h * w]."""
        noise = uniform.unflatten(1, self.model.map_shape)
        return self.model.prior.draw(noise, temperature, class_weights).flatten(1)


class Bound(nn.Module):
    """Graph: binary image and class weights to a bound on log p(x), and its two parts."""

    def __init__(self, model: VectorQuantisedAutoencoder):
        super().__init__()
        self.model = model

    def forward(self, data: Tensor, class_weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map [N, C, H, W] in {0, 1} and [N, classes] to three [N], in nats."""
        return self.model.bound_and_parts(data, class_weights)


def perplexity(counts: Tensor) -> float:
    """Return exp of the entropy of how often each of some codes occurs, 1 to their number."""
    share = counts / counts.sum()
    return torch.special.entr(share).sum().exp().item()


def _figure(name: str, chunks: list[Tensor], quantity: str) -> Figure:
    nats = torch.cat(chunks)
    protocol = f"{quantity}, c the codes of x, pixels drawn 0 or 1 by their grey value once"
    return Figure(name, nats.mean().item(), "nats", protocol, standard_error(nats))
