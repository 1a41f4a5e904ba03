"""Learning rules: drop-ins for `jax.value_and_grad`, one file a rule."""

from bpeq.rules._asymmetric_eqprop import asymmetric_eqprop
from bpeq.rules._autodiff import autodiff
from bpeq.rules._backprop import backprop
from bpeq.rules._bptt import bptt
from bpeq.rules._continual_eqprop import continual_eqprop
from bpeq.rules._contrastive_hebbian import contrastive_hebbian
from bpeq.rules._coupled_learning import coupled_learning
from bpeq.rules._eqprop import eqprop
from bpeq.rules._phases import Free, contrast, free_phase, nudged_phases
from bpeq.rules._recurrent_backprop import recurrent_backprop
from bpeq.rules._stateless import stateless
from bpeq.rules._vector_field_eqprop import vector_field_eqprop

__all__ = [
    "Free",
    "asymmetric_eqprop",
    "autodiff",
    "backprop",
    "bptt",
    "continual_eqprop",
    "contrast",
    "contrastive_hebbian",
    "coupled_learning",
    "eqprop",
    "free_phase",
    "nudged_phases",
    "recurrent_backprop",
    "stateless",
    "vector_field_eqprop",
]
