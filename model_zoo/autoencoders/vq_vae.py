"""Vector-quantised autoencoder: a picture is a small map of codes, with a PixelCNN over them.

Aaron van den Oord, Oriol Vinyals and Koray Kavukcuoglu, "Neural Discrete Representation Learning",
2017, arXiv:1711.00937. The encoder's vectors are replaced by the nearest of a codebook, and the
gradient is copied past that step; encoder, codebook and decoder descend equation 3. The prior over
codes (section 3.4) is fitted in the same steps, to codes that it cannot move.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from model_zoo.autoencoders.autoencoder_layers import downsampling, upsampling
from model_zoo.autoencoders.code_prior import CodePrior, DrawMap
from model_zoo.autoencoders.codebook import Codebook
from model_zoo.autoencoders.coded import CodedAutoencoder
from model_zoo.family import Family


class VectorQuantisedAutoencoder(CodedAutoencoder, Family):
    """Encoder, codebook, decoder, and a prior over maps of codes."""

    family_name = "vector-quantised autoencoder"

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
        channels, height, width_pixels = image_shape
        shape = (height // 4, width_pixels // 4)
        self.image_shape, self.classes, self.levels = tuple(image_shape), classes, levels
        self.map_shapes = {"codes": shape}
        self.encoder = nn.Sequential(
            *downsampling(channels, width, residual_blocks), nn.Conv2d(width, code_size, 1)
        )
        self.codebook = Codebook(levels, code_size)
        self.decoder = nn.Sequential(
            nn.Conv2d(code_size, width, 3, padding=1),
            *upsampling(channels, width, residual_blocks),
        )
        self.prior = CodePrior(shape, levels, classes, prior_layers, prior_channels)

    def encode(self, x: Tensor) -> Tensor:
        """Map x in [0, 1], [N, C, H, W], to codes, int64 [N, h * w] (equation 1)."""
        return self.codebook.nearest(self.encoder(2 * x - 1)).flatten(1)

    def decode_logits(self, codes: Tensor) -> Tensor:
        """Map codes [N, h * w] to the log odds of every pixel being on, [N, C, H, W]."""
        (code_map,) = self.maps_of(codes)
        return self.decoder(self.codebook.look_up(code_map)).float()

    def quantised_logits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first term of equation 3 as logits, and the two others, [N]."""
        vectors, distances = self.codebook.quantise(self.encoder(2 * x - 1))
        return self.decoder(vectors).float(), distances

    def log_prior(self, codes: Tensor, class_weights: Tensor) -> Tensor:
        """Return log p(c) in nats, [N], of codes [N, h * w] given [N, classes]."""
        (code_map,) = self.maps_of(codes)
        return self.prior.log_probability(code_map, class_weights.float())

    def draws(self) -> Sequence[DrawMap]:
        """Return how the map is drawn, given the class."""
        return (DrawMap(self.prior),)

    def priors(self) -> Sequence[nn.Module]:
        """Return the parts that the loss of the prior moves."""
        return (self.prior,)
