"""Hand-written forward/backward pairs and their combinators."""

from bpeq.layers._activations import (
    activation_layer,
    gelu,
    hard_sigmoid,
    linear,
    relu,
    shifted_sigmoid,
    sigmoid,
    softplus,
    tanh,
)
from bpeq.layers._apply import apply
from bpeq.layers._chain import chain, deltas
from bpeq.layers._check import CheckRow, check, check_network, gradient_error, tolerance
from bpeq.layers._cut import Block, cut, part_names
from bpeq.layers._dense import dense
from bpeq.layers._flatten import flatten
from bpeq.layers._initialisers import Initialiser, initialise

__all__ = [
    "Block",
    "CheckRow",
    "Initialiser",
    "activation_layer",
    "apply",
    "chain",
    "check",
    "check_network",
    "cut",
    "deltas",
    "dense",
    "flatten",
    "gelu",
    "gradient_error",
    "hard_sigmoid",
    "initialise",
    "linear",
    "part_names",
    "relu",
    "shifted_sigmoid",
    "sigmoid",
    "softplus",
    "tanh",
    "tolerance",
]
