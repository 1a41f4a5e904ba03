"""Optimizers and schedules by their usual names: the public face of `bpeq.training.optimizers`."""

from bpeq.training.optimizers import (
    adam,
    adamw,
    constant,
    cosine,
    exponential,
    linear_decay,
    momentum,
    rmsprop,
    sgd,
    with_rates,
)
from bpeq.types import Schedule

__all__ = [
    "Schedule",
    "adam",
    "adamw",
    "constant",
    "cosine",
    "exponential",
    "linear_decay",
    "momentum",
    "rmsprop",
    "sgd",
    "with_rates",
]
