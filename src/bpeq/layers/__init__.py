"""Hand-written forward/backward pairs and their combinators."""

from bpeq.layers._attention import attention, embedding, position_embedding
from bpeq.layers._check import CheckRow, check, check_network, gradient_error, tolerance
from bpeq.layers._combinators import chain, deltas, repeat, residual, trained_leaves
from bpeq.layers._conv import conv
from bpeq.layers._cut import Block, cut, part_names
from bpeq.layers._dense import dense
from bpeq.layers._functions import apply, calibrate, init_shapes, output_shape, with_custom_vjp
from bpeq.layers._initialisers import Initialiser, initialise
from bpeq.layers._normalisation import batch_norm, layer_norm
from bpeq.layers._pooling import avg_pool, max_pool, soft_pool
from bpeq.layers._recurrent import gru, lstm, rnn
from bpeq.layers._weightless import (
    activation_layer,
    dropout,
    flatten,
    gelu,
    hard_sigmoid,
    linear,
    relu,
    shifted_sigmoid,
    sigmoid,
    softplus,
    tanh,
)

__all__ = [
    "Block",
    "CheckRow",
    "Initialiser",
    "activation_layer",
    "apply",
    "attention",
    "avg_pool",
    "batch_norm",
    "calibrate",
    "chain",
    "check",
    "check_network",
    "conv",
    "cut",
    "deltas",
    "dense",
    "dropout",
    "embedding",
    "flatten",
    "gelu",
    "gradient_error",
    "gru",
    "hard_sigmoid",
    "init_shapes",
    "initialise",
    "layer_norm",
    "linear",
    "lstm",
    "max_pool",
    "output_shape",
    "part_names",
    "position_embedding",
    "relu",
    "repeat",
    "residual",
    "rnn",
    "shifted_sigmoid",
    "sigmoid",
    "soft_pool",
    "softplus",
    "tanh",
    "tolerance",
    "trained_leaves",
    "with_custom_vjp",
]
