"""The losses of the first adversarial game, of logits that are high for real pictures.

Ian Goodfellow et al., "Generative Adversarial Nets", 2014, arXiv:1406.2661. D is the sigmoid of the
logit; both are written by softplus, so that no logit overflows. In nats.
"""

from torch import Tensor
from torch.nn.functional import softplus


def discriminate(real_logit: Tensor, fake_logit: Tensor) -> Tensor:
    """Return -log D(x) - log(1 - D(G(z))), minus the value of the game (equation 1)."""
    return (softplus(-real_logit) + softplus(fake_logit)).mean()


def look_real(fake_logit: Tensor) -> Tensor:
    """Return -log D(G(z)), the loss that does not saturate (section 3).

    log(1 - D(G(z))) of equation 1 has the same fixed point, but hardly any gradient early on,
    when every fake is told.
    """
    return softplus(-fake_logit).mean()
