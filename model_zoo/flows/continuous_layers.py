"""A flow in continuous time: the solution of an ordinary differential equation.

Will Grathwohl, Ricky Chen, Jesse Bettencourt, Ilya Sutskever and David Duvenaud, "FFJORD: Free-form
Continuous Dynamics for Scalable Reversible Generative Models", 2018, arXiv:1810.01367. A latent
z(0) moves by dz/dt = f(z, t) to an event z(1), and the log density changes at the rate -Tr(df/dz)
(equation 2), which is integrated along (equation 3).

Differences: f is a network of two hidden layers, whose trace has a closed form, so that it is exact
and takes no noise (the paper draws an estimate of it, whatever f is); a fixed number of Runge-Kutta
steps stands for an adaptive solver, so that a row is the same whatever else is in its batch. What
they leave out is measured by doing with half of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from model_zoo.family import Figure
from model_zoo.layers import standard_error, standard_normal_log_density
from model_zoo.scan import Scan


class Dynamics(nn.Module):
    """f(z, t): two hidden layers of tanh, each layer shown the time (the paper's `concat`)."""

    def __init__(self, size: int, width: int):
        """Move vectors of `size` coordinates; at first, not at all."""
        super().__init__()
        self.first = nn.Linear(size + 1, width)
        self.second = nn.Linear(width + 1, width)
        self.last = nn.Linear(width + 1, size)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(self.last.bias)

    def couplings(self) -> Tensor:
        """Return what the trace is made of, for all z and t: W2 * (W1 W3)^T, [width, width]."""
        first, second, last = (
            layer.weight[:, :-1] for layer in (self.first, self.second, self.last)
        )
        return second * (first @ last).T

    def forward(self, z: Tensor, time: float | Tensor, couplings: Tensor) -> tuple[Tensor, Tensor]:
        """Return f, [N, D], and Tr(df/dz), [N].

        The Jacobian is W3 diag(1 - h2^2) W2 diag(1 - h1^2) W1, of which the trace is bilinear in
        both slopes.
        """
        h1 = _at(time, self.first, z).tanh()
        h2 = _at(time, self.second, h1).tanh()
        slope1, slope2 = 1 - h1.square(), 1 - h2.square()
        trace = ((slope2 @ couplings) * slope1).sum(dim=1)
        return _at(time, self.last, h2), trace


class ContinuousFlow(nn.Module):
    """Events [N, D] are latents [N, D] after one unit of time."""

    def __init__(self, size: int, width: int, steps: int):
        """Solve with so many `steps` of the classical Runge-Kutta method, four calls of f each."""
        super().__init__()
        self.dynamics = Dynamics(size, width)
        self.steps = steps

    def forward(self, x: Tensor, steps: int | None = None) -> tuple[Tensor, Tensor]:
        """Map events back in time to latents, and return log |det dz/dx| in nats, [N]."""
        return self._solve(x, 1.0, 0.0, steps or self.steps)

    def inverse(self, latent: Tensor) -> Tensor:
        """Map latents to events."""
        return self._solve(latent, 0.0, 1.0, self.steps)[0]

    def log_density(self, x: Tensor, steps: int | None = None) -> Tensor:
        """Return log p(x) in nats, [N] (equation 3), with respect to Lebesgue measure."""
        latent, log_determinant = self(x, steps)
        return standard_normal_log_density(latent) + log_determinant

    def _solve(self, z: Tensor, start: float, end: float, steps: int) -> tuple[Tensor, Tensor]:
        """Return z at `end`, and the integral of the trace from `start` to there."""
        couplings, step = self.dynamics.couplings(), (end - start) / steps
        integral = z.new_zeros(z.shape[0])
        for index in range(steps):
            time = start + index * step
            move, trace = self.runge_kutta(z, time, step, couplings)
            z, integral = z + move, integral + trace
        return z, integral

    def runge_kutta(
        self, z: Tensor, time: float | Tensor, step: float, couplings: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return how far z and the integral go in one step."""
        f1, trace1 = self.dynamics(z, time, couplings)
        f2, trace2 = self.dynamics(z + step / 2 * f1, time + step / 2, couplings)
        f3, trace3 = self.dynamics(z + step / 2 * f2, time + step / 2, couplings)
        f4, trace4 = self.dynamics(z + step * f3, time + step, couplings)
        move = step / 6 * (f1 + 2 * (f2 + f3) + f4)
        return move, step / 6 * (trace1 + 2 * (trace2 + trace3) + trace4)


class SolverLoop(Scan):
    """Graph: the steps of a solver as one loop, a third of the size of them one by one."""

    def __init__(
        self,
        flow: ContinuousFlow,
        start: float,
        end: float,
        result: Callable[[Tensor, Tensor], Tensor],
    ):
        """Solve from a time to another, and give what `result` makes of z there and the integral.

        The integral is that of the trace, in nats [N].
        """
        super().__init__()
        self.flow, self.start, self.result = flow, start, result
        self.time_step = (end - start) / flow.steps

    def prepare(self, z: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Begin at z [N, D], with nothing integrated; one time for each step."""
        times = self.start + self.time_step * torch.arange(self.flow.steps, device=z.device)
        return (z, torch.zeros_like(z[:, 0])), (times,)

    def step(
        self, states: tuple[Tensor, ...], items: tuple[Tensor, ...]
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Take one step of the solver."""
        (z, integral), (time,) = states, items
        couplings = self.flow.dynamics.couplings()
        move, trace = self.flow.runge_kutta(z, time, self.time_step, couplings)
        reached = z + move, integral + trace
        return reached, reached

    def finish(self, *results: Tensor) -> tuple[Tensor, ...]:
        """Return what is made of the last states."""
        path, integrals = results
        return (self.result(path[-1], integrals[-1]),)


def step_halving_figure(errors: Tensor, steps: int, where: str) -> Figure:
    """Return the mean of what log p changes by when each of `steps` is twice as long, nats [N].

    `where` says at which events, for the protocol.
    """
    protocol = (
        f"|log p by {steps} Runge-Kutta steps - log p by {steps // 2}|, {where}; "
        "what the estimate is uncertain by"
    )
    value, error = errors.mean().item(), standard_error(errors)
    return Figure("step_halving_error", value, "nats", protocol, error)


def _at(time: float | Tensor, layer: nn.Linear, z: Tensor) -> Tensor:
    """Apply a layer to z and the time, its last input."""
    return nn.functional.linear(z, layer.weight[:, :-1], layer.bias + time * layer.weight[:, -1])
