"""Variational autoencoder whose decoder is a PixelCNN.

Ishaan Gulrajani, Kundan Kumar, Faruk Ahmed, Adrien Ali Taiga, Francesco Visin, David Vazquez and
Aaron Courville, "PixelVAE: A Latent Variable Model for Natural Images", 2016, arXiv:1611.05013.
The latent becomes a map of features as large as the picture, and p(x|z) is the product of
p(x_i | x_1 .. x_i-1, z) over pixels in reading order, by a few masked layers that all see the map.
What is near, the masked layers know by themselves; the latent is left with what is not.

A decoder that sees far enough on its own needs no latent, and then q(z|x) becomes the prior: the
posterior collapses. So the masked layers see little (Xi Chen et al., "Variational Lossy
Autoencoder", 2016, arXiv:1611.02731), the divergence of a coordinate is not made smaller than a few
tenths of a nat ("free bits": Diederik P. Kingma et al., "Improving Variational Inference with
Inverse Autoregressive Flow", 2016, arXiv:1606.04934), and that of each coordinate is measured.

Differences: one latent vector; ordinary masked layers, fewer and narrower, instead of gated ones.
Pixels are black or white, drawn afresh with their grey value as probability whenever they are
looked at (dynamic binarisation).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model_zoo.autoencoders.autoencoder_layers import (
    bernoulli_log_mass,
    bound_graphs,
    convolutional_decoder,
    convolutional_encoder,
    kl_divergences,
    split_posterior,
)
from model_zoo.autoregressive.masked_layers import (
    MaskedConvolution,
    MaskedResidualBlock,
    Pointwise,
)
from model_zoo.autoregressive.masked_row import MaskedRow
from model_zoo.autoregressive.scanned_row_step import ScannedRowStep
from model_zoo.cards import (
    BINARISATION,
    LATENT_OPERATIONS,
    TRUNCATION,
    image_event,
    image_preprocess,
    likelihood_bound,
    normal_latent,
    sampling_controls,
)
from model_zoo.data import in_chunks
from model_zoo.family import Batch, Card, Family, Figure, Function, Graph, Objective, Port
from model_zoo.layers import (
    binarise,
    normal_noise,
    standard_error,
    standard_normal_log_density,
)

IMPORTANCE_DRAWS = 50  # each is a pass of all masked layers
CHUNK = 250  # images measured at a time
LARGE = 5000  # images of a test set, which is measured once: every tenth gets so many draws
ACTIVE = 0.01  # nats: a coordinate of less tells next to nothing


class PixelVAE(Family):
    """Convolutional encoder, and a PixelCNN that sees the latent."""

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        latent_size: int = 16,
        width: int = 16,
        residual_blocks: int = 1,
        features: int = 8,
        reach: int = 2,
        blocks: int = 2,
        channels: int = 32,
        free_nats: float = 0.5,
    ):
        """Build for grey images [1, height, width] whose sides are multiples of 4.

        `width` is the number of channels at a quarter of the resolution, on both sides of the
        latent, which becomes `features` of every pixel. A pixel sees `reach` + `blocks` rows up.
        While training, a coordinate of the latent may diverge by `free_nats` at no cost.
        """
        super().__init__()
        self.image_shape, self.latent_size = tuple(image_shape), latent_size
        self.free_nats = free_nats
        of_pixels = (features, *self.image_shape[1:])
        self.encoder = convolutional_encoder(
            self.image_shape, width, residual_blocks, 2 * latent_size
        )
        self.decoder = convolutional_decoder(of_pixels, width, residual_blocks, latent_size)
        self.first = MaskedConvolution(1, channels, 2 * reach + 1, "A")
        change = 1 / math.sqrt(blocks)  # so that all of them together change no more than one
        self.blocks = nn.ModuleList([MaskedResidualBlock(channels, change) for _ in range(blocks)])
        # What each masked layer is told of the features of a pixel.
        self.looks = nn.ModuleList(
            [Pointwise(features, channels, bias=False) for _ in range(1 + blocks)]
        )
        self.head = nn.Sequential(
            nn.ReLU(), Pointwise(channels, channels), nn.ReLU(), Pointwise(channels, 1)
        )

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x in {0, 1} to mean and log deviation of q(z|x), each [N, latent]."""
        return split_posterior(self.encoder(2 * x - 1))

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x in {0, 1} to mean and deviation of q(z|x), each [N, latent]."""
        mean, log_deviation = self.encode(x)
        return mean, log_deviation.exp()

    def features(self, latent: Tensor) -> Tensor:
        """Map [N, latent] to what the masked layers are told of every pixel, [N, H, W, F]."""
        return self.decoder(latent).permute(0, 2, 3, 1)

    def logits(self, x: Tensor, features: Tensor) -> Tensor:
        """Map x in {0, 1}, [N, 1, H, W], and features of z, [N, F, H, W], to each log odds."""
        first, *later = self.looks
        h = self.first(x) + first(features)
        for block, look in zip(self.blocks, later, strict=True):
            h = block(h + look(features))
        return self.head(h).float()

    def log_mass_given(self, x: Tensor, latent: Tensor) -> Tensor:
        """Return log p(x|z) in nats, [N], for x in {0, 1}."""
        return bernoulli_log_mass(x, self.logits(x, self.decoder(latent)))

    def draw_given(self, x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Return log p(x|z), z and the parameters of q(z|x) that z is drawn from by `noise`."""
        mean, log_deviation = self.encode(x)
        latent = mean + log_deviation.exp() * noise
        return self.log_mass_given(x, latent), latent, mean, log_deviation

    def log_weight_and_statistics(self, x: Tensor, noise: Tensor) -> tuple[Tensor, ...]:
        """Return log p(x|z) + log p(z) - log q(z|x) in nats, and statistics of the draw, each [N].

        The mean of the first over noise is the evidence lower bound; exp of it averages to p(x).
        The others are the reconstruction error -log p(x|z) and the divergence of q(z|x) from the
        prior, whose means add up to minus the bound, in nats; and the length of q's mean.
        """
        log_mass, latent, mean, log_deviation = self.draw_given(x, noise)
        log_posterior = standard_normal_log_density(noise) - log_deviation.sum(dim=1)
        log_weight = log_mass + standard_normal_log_density(latent) - log_posterior
        divergence = kl_divergences(mean, log_deviation).sum(dim=1)
        return log_weight, -log_mass, divergence, mean.norm(dim=1)

    def objectives(self) -> dict[str, Objective]:
        """Return the one loss: minus the bound on binarised images, with some nats free."""
        return {"autoencoder": Objective(list(self.parameters()), self._loss)}

    def _loss(self, batch: Batch, generator: torch.Generator) -> Tensor:
        x = binarise(batch.images, generator)
        log_mass, divergences = self._mass_and_divergences(x, generator)
        return divergences.mean(dim=0).clamp(min=self.free_nats).sum() - log_mass.mean()

    def _mass_and_divergences(self, x: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return log p(x|z) of one draw, [N], and the divergence of each coordinate, [N, D].

        The first less the sum of the others is the bound, in nats.
        """
        noise = normal_noise((len(x), self.latent_size), generator)
        log_mass, _, mean, log_deviation = self.draw_given(x, noise)
        return log_mass, kl_divergences(mean, log_deviation)

    @torch.no_grad()
    def evaluate(self, data: Batch, generator: torch.Generator) -> list[Figure]:
        """Measure the bound, what part of it each coordinate of the latent has, and a tighter one.

        The bound is that of all images, the importance-weighted one (Burda et al. 2015,
        arXiv:1509.00519, equation 8) of some.
        """
        binary = Batch(binarise(data.images, generator), data.labels)
        parts = [
            self._mass_and_divergences(part.images, generator) for part in in_chunks(binary, CHUNK)
        ]
        log_mass, divergences = (torch.cat(part) for part in zip(*parts, strict=True))
        bound = log_mass - divergences.sum(dim=1)
        every, word = (10, "tenth") if len(binary.images) >= LARGE else (40, "fortieth")
        return [
            _bound_figure("elbo", bound, "one posterior draw an image"),
            *_divergence_figures(divergences),
            _bound_figure(
                f"iwae_{IMPORTANCE_DRAWS}",
                self._importance_bound(binary.images[::every], generator),
                f"{IMPORTANCE_DRAWS} posterior draws an image, every {word} image",
            ),
        ]

    def _importance_bound(self, x: Tensor, generator: torch.Generator) -> Tensor:
        bounds = []
        for part in x.split(CHUNK):
            noises = (
                normal_noise((len(part), self.latent_size), generator)
                for _ in range(IMPORTANCE_DRAWS)
            )
            draws = [self.log_weight_and_statistics(part, noise)[0] for noise in noises]
            bounds.append(torch.stack(draws).logsumexp(dim=0) - math.log(IMPORTANCE_DRAWS))
        return torch.cat(bounds)

    def card(self) -> Card:
        """Describe the model to those who serve it."""
        of_pixels = sampling_controls(levels=2)
        return Card(
            family="PixelVAE",
            event=image_event(self.image_shape),
            preprocess=image_preprocess(0.0, 1.0, binarisation=BINARISATION),
            latent=normal_latent(self.latent_size),
            # Of two levels, top_k and top_p leave both or one: that is greedy.
            controls={
                **{name: of_pixels[name] for name in ("greedy", "temperature")},
                "truncation": TRUNCATION,
            },
            operations={
                **LATENT_OPERATIONS,
                "likelihood": likelihood_bound("elbo", "iwae", draws=16),
            },
            program="raster_rows",
        )

    def graphs(self) -> tuple[Graph, ...]:
        """Return encode, features, row_step and the graphs of both estimates; sets eval mode."""
        data = Port("data", "data", self.image_shape)
        latent = Port("latent", "latent", (self.latent_size,))
        deviation = Port("latent_deviation", "latent_deviation", (self.latent_size,))
        log_weight = Function(self, self.log_weight_and_statistics)
        log_mass = Function(self, self.log_mass_given)
        row = MaskedRow(self.first, self.blocks, self.head, self.image_shape[2], self.looks)
        step = ScannedRowStep(row, filtered=False).eval()
        height, width = self.image_shape[1:]
        features = Port("features", "features", (height, width, row.told))
        return (
            Graph("encode", Function(self, self.posterior).eval(), (data,), (latent, deviation)),
            Graph("features", Function(self, self.features).eval(), (latent,), (features,)),
            Graph("row_step", step, step.input_ports(), step.output_ports()),
            *bound_graphs(data, latent, log_weight, log_mass),
        )


def _bound_figure(name: str, nats: Tensor, draws: str) -> Figure:
    protocol = f"lower bound on log P(x), pixels drawn 0 or 1 by their grey value once, {draws}"
    return Figure(name, nats.mean().item(), "nats", protocol, standard_error(nats))


def _divergence_figures(divergences: Tensor) -> tuple[Figure, ...]:
    """Return what coordinates tell of the images, of KL(q(z_j|x) || p(z_j)) in nats, [N, D]."""
    whole, of_coordinates = divergences.sum(dim=1), divergences.mean(dim=0)
    largest = of_coordinates.sort(descending=True).values.tolist()
    each = ", ".join(f"{nats:.2f}" for nats in largest)
    protocol = f"KL(q(z|x) || p(z)); of the coordinates, largest first: {each}"
    active = float(sum(nats > ACTIVE for nats in largest))
    return (
        Figure("kl", whole.mean().item(), "nats", protocol, standard_error(whole)),
        Figure(
            "active_dimensions",
            active,
            f"of {len(largest)}",
            f"coordinates of the latent whose KL is more than {ACTIVE} nats: with none, the "
            "decoder takes no notice of it",
        ),
    )
