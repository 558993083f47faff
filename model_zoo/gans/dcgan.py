"""Deep convolutional generative adversarial network, conditional on a class.

Alec Radford, Luke Metz and Soumith Chintala, "Unsupervised Representation Learning with Deep
Convolutional Generative Adversarial Networks", 2015, arXiv:1511.06434. What the paper adds to the
first game is what its networks are made of (section 3) and start from (section 4). All families
here have learned that from it, in `gan_layers`, so nothing is left to say: this is the paper's own
game, with a class that enters both networks after Mirza and Osindero, 2014, arXiv:1411.1784.
"""

from __future__ import annotations

from model_zoo.gans.first_game import FirstGame


class DCGAN(FirstGame):
    """Generator and discriminator with batch normalisation, both shown the class."""

    family = "deep convolutional generative adversarial network"
