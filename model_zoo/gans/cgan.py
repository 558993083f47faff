"""Generative adversarial network that is told the class.

Mehdi Mirza and Simon Osindero, "Conditional Generative Adversarial Nets", 2014, arXiv:1411.1784.
Both networks are shown y beside what they had, and play the first game given y (equation 2): a
digit that looks real, but not of its class, is told from the real ones.
"""

from __future__ import annotations

from model_zoo.gans.first_game import FirstGame


class ConditionalGAN(FirstGame):
    """Generator and discriminator, both shown the class."""

    family = "conditional generative adversarial network"
