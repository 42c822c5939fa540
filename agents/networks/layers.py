"""Hidden units: which tensors make them, which are theirs, and where they go."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Layer:
    """The hidden units of one layer of a network, in terms of named parameters.

    Statistics, methods, feature-wise UPGD, the probe and exports take layers, so that nobody else
    needs to know how parameters are named or how a network is put together.

    Attributes:
        network: the network's name, such as "actor".
        name: the layer's name in it: "layer_1", "layer_2", ….
        units: how many there are.
        activation: a key of the table of activations.
        incoming: the parameter [S, units, in] that makes them.
        own: parameters [S, units] that are theirs: the bias; weight and bias of a normalisation.
        outgoing: the parameter [S, out, units] of the next layer; None if they feed no linear
            layer.
        next_bias: the parameter [S, out] that is added there, if there is one.
        also_outgoing: the same of further linear layers that they feed, as the means and the
            standard deviations of a policy may be.
    """

    network: str
    name: str
    units: int
    activation: str
    incoming: str
    own: tuple[str, ...]
    outgoing: str | None
    next_bias: str | None
    also_outgoing: tuple[str, ...] = ()
