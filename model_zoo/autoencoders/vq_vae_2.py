"""Two levels of codes: a coarse map says what a picture is, a fine one what it looks like.

Ali Razavi, Aaron van den Oord and Oriol Vinyals, "Generating Diverse High-Fidelity Images with
VQ-VAE-2", 2019, arXiv:1906.00446. The top map is encoded first, and the bottom one from the picture
and the top (algorithm 1); the decoder sees both. A prior over each, the bottom's given the top
(algorithm 2), is fitted in the same steps, to codes that it cannot move.

Difference: both priors are gated PixelCNNs, the top's without the attention that large maps need.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from model_zoo.autoencoders.autoencoder_layers import downsampling, upsampling
from model_zoo.autoencoders.code_prior import CodePrior, DrawMap
from model_zoo.autoencoders.codebook import Codebook
from model_zoo.autoencoders.coded import CodedAutoencoder
from model_zoo.family import Family

TOP_FEATURES = 8  # numbers by which the bottom's prior knows a code of the top


class HierarchicalVectorQuantisedAutoencoder(CodedAutoencoder, Family):
    """Two encoders, two codebooks, a decoder of both, and a prior over each map of codes."""

    family_name = "two-level vector-quantised autoencoder"

    def __init__(
        self,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        classes: int = 10,
        levels: int = 64,
        code_size: int = 8,
        width: int = 32,
        residual_blocks: int = 1,
        prior_layers: int = 4,
        prior_channels: int = 24,
    ):
        """Build for images [channels, height, width] whose sides are multiples of 4.

        The bottom map has a quarter of the resolution, 7x7, and the top about half of that, 4x4. A
        code of either is one of `levels`, each a vector of `code_size`.
        """
        super().__init__()
        channels, height, width_pixels = image_shape
        bottom = (height // 4, width_pixels // 4)
        top = (bottom[0] // 2 + 1, bottom[1] // 2 + 1)
        self.image_shape, self.classes, self.levels = tuple(image_shape), classes, levels
        self.map_shapes = {"top": top, "bottom": bottom}
        self.encoder = nn.Sequential(*downsampling(channels, width, residual_blocks))
        self.to_top = nn.Sequential(
            nn.Conv2d(width, width, 4, stride=2, padding=2),  # 7 -> 4
            nn.SiLU(),
            nn.Conv2d(width, code_size, 1),
        )
        self.to_bottom = nn.Conv2d(width + code_size, code_size, 1)
        self.top_codebook = Codebook(levels, code_size)
        self.bottom_codebook = Codebook(levels, code_size)
        self.decoder = nn.Sequential(
            nn.Conv2d(2 * code_size, width, 3, padding=1),
            *upsampling(channels, width, residual_blocks),
        )
        self.top_prior = CodePrior(top, levels, classes, prior_layers, prior_channels)
        self.top_features = nn.Embedding(levels, TOP_FEATURES)
        self.bottom_prior = CodePrior(
            bottom, levels, classes + TOP_FEATURES, prior_layers, prior_channels
        )

    def encode(self, x: Tensor) -> Tensor:
        """Map x in [0, 1], [N, C, H, W], to codes, int64 [N, size], of the top and the bottom."""
        seen = self.encoder(2 * x - 1)
        top = self.top_codebook.nearest(self.to_top(seen))
        above = self._spread(self.top_codebook.look_up(top))
        bottom = self.bottom_codebook.nearest(self.to_bottom(torch.cat([seen, above], dim=1)))
        return torch.cat([top.flatten(1), bottom.flatten(1)], dim=1)

    def decode_logits(self, codes: Tensor) -> Tensor:
        """Map codes [N, size] to the log odds of every pixel being on, [N, C, H, W]."""
        top, bottom = self.maps_of(codes)
        above = self._spread(self.top_codebook.look_up(top))
        below = self.bottom_codebook.look_up(bottom)
        return self.decoder(torch.cat([below, above], dim=1)).float()

    def quantised_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return what decoding the codes of x gives, with a gradient, and both codebooks' loss."""
        seen = self.encoder(2 * x - 1)
        top, top_distances = self.top_codebook.quantise(self.to_top(seen))
        above = self._spread(top)
        bottom = self.to_bottom(torch.cat([seen, above], dim=1))
        below, bottom_distances = self.bottom_codebook.quantise(bottom)
        logits = self.decoder(torch.cat([below, above], dim=1)).float()
        return logits, top_distances + bottom_distances

    def log_prior(self, codes: Tensor, class_weights: Tensor) -> Tensor:
        """Return log p(top) + log p(bottom | top) in nats, [N], given class weights."""
        top, bottom = self.maps_of(codes)
        weights = class_weights.float()
        log_top = self.top_prior.log_probability(top, weights)
        given = self._given(weights, top.flatten(1))
        return log_top + self.bottom_prior.log_probability(bottom, given)

    def draws(self) -> Sequence[DrawMap]:
        """Return how the top is drawn and, given it, the bottom."""
        top = math.prod(self.map_shapes["top"])
        return DrawMap(self.top_prior), DrawMap(self.bottom_prior, top, self._given)

    def priors(self) -> Sequence[nn.Module]:
        """Return the parts that the loss of the prior moves."""
        return (self.top_prior, self.top_features, self.bottom_prior)

    def _spread(self, top: Tensor) -> Tensor:
        """Repeat the top's vectors over the bottom: [N, D, 4, 4] -> [N, D, 7, 7]."""
        return interpolate(top, size=self.map_shapes["bottom"], mode="nearest")

    def _given(self, class_weights: Tensor, top: Tensor) -> Tensor:
        """Return what each place of the bottom is told: the class, and the code above it."""
        code_map = top.unflatten(1, self.map_shapes["top"])
        above = self._spread(self.top_features(code_map).permute(0, 3, 1, 2))  # [N, features, 7, 7]
        classes = class_weights[:, :, None, None].expand(-1, -1, *above.shape[2:])
        return torch.cat([classes, above], dim=1).permute(0, 2, 3, 1)
