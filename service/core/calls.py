"""Graph calls: inputs by port from arrays by role, and outputs back by role."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core import noise
from service.core.manifest_parts import Graph, Port
from service.core.requests import Array, DeferredRows
from service.errors import InvalidRequest

Inputs = Mapping[str, Array | DeferredRows]
Outputs = Mapping[str, Array]


class Call(NamedTuple):
    """A graph to run on rows of inputs, by the names of its ports."""

    graph: str
    inputs: Inputs


def feed(
    graph: Graph,
    rows_of_noise: Callable[[Port], Array],
    controls: Mapping[str, Array] | None = None,
    /,
    **roles: Array | DeferredRows | None,
) -> Inputs:
    """Return the graph's inputs by port name, from rows by role; noise is drawn port by port.

    Rows of controls are named as their ports.
    """
    inputs: dict[str, Array | DeferredRows] = {}
    for port in graph.inputs:
        rows: Array | DeferredRows | None
        if port.role == "noise":
            rows = rows_of_noise(port)
        else:
            rows = (controls or {}).get(port.name) if port.role == "control" else roles[port.role]
        assert rows is not None, f"the operation has no rows for an input of role {port.role}"
        deferred = not isinstance(rows, np.ndarray)
        inputs[port.name] = rows if deferred else np.asarray(rows, port.dtype)
    return inputs


def noise_of_port(
    port: Port,
    seeds: NDArray[np.uint64],
    items: NDArray[np.uint64],
    draws: int,
    start: int = 0,
) -> NDArray[np.float32]:
    """Return [N, draws * size of one row] of the port's distribution, from a position on."""
    size = draws * int(np.prod(port.row_shape))
    uniforms = noise.uniform(seeds, str(port.purpose), items, size, start)
    if port.distribution == "normal":
        return noise.normal(uniforms).astype(np.float32)
    return noise.to_float32(uniforms)


def no_noise(port: Port) -> Array:
    """Refuse noise where an operation draws none."""
    raise InvalidRequest(f"the graph's noise input '{port.name}' is not supported")


def output(graph: Graph, outputs: Outputs, role: str) -> Array:
    """Return the array of the output with a role, which the manifest was checked for."""
    port = graph.output(role)
    assert port is not None, f"the manifest was checked for an output of role {role}"
    return outputs[port.name]
