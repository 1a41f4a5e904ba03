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
from bpeq.layers._apply import apply, with_custom_vjp
from bpeq.layers._attention import attention
from bpeq.layers._calibrate import calibrate
from bpeq.layers._chain import chain, deltas
from bpeq.layers._check import CheckRow, check, check_network, gradient_error, tolerance
from bpeq.layers._combine import trained_leaves
from bpeq.layers._conv import conv
from bpeq.layers._cut import Block, cut, part_names
from bpeq.layers._dense import dense
from bpeq.layers._dropout import dropout
from bpeq.layers._embedding import embedding, position_embedding
from bpeq.layers._flatten import flatten
from bpeq.layers._initialisers import Initialiser, initialise
from bpeq.layers._normalisation import batch_norm, layer_norm
from bpeq.layers._pooling import avg_pool, max_pool, soft_pool
from bpeq.layers._recurrent import gru, lstm, rnn
from bpeq.layers._repeat import repeat
from bpeq.layers._residual import residual
from bpeq.layers._shapes import init_shapes, output_shape

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
