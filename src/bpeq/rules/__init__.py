"""Learning rules: drop-ins for `jax.value_and_grad`, one file for each rule."""

from bpeq.rules._asymmetric_eqprop import asymmetric_eqprop
from bpeq.rules._autodiff import autodiff
from bpeq.rules._backprop import backprop
from bpeq.rules._bptt import bptt
from bpeq.rules._common import stateless
from bpeq.rules._continual_eqprop import continual_eqprop
from bpeq.rules._contrastive_hebbian import contrastive_hebbian
from bpeq.rules._coupled_learning import coupled_learning
from bpeq.rules._direct_feedback_alignment import direct_feedback_alignment
from bpeq.rules._dual_propagation import dual_propagation
from bpeq.rules._eqprop import eqprop
from bpeq.rules._feedback_alignment import feedback_alignment
from bpeq.rules._kolen_pollack import kolen_pollack
from bpeq.rules._phases import Free, contrast, free_phase, nudged_phases
from bpeq.rules._predictive_coding import predictive_coding
from bpeq.rules._recurrent_backprop import recurrent_backprop
from bpeq.rules._relaxing import (
    evaluated_by,
    in_short_floats,
    relaxing_rule,
    remembering,
    starting_at,
)
from bpeq.rules._sign_symmetric import sign_symmetric
from bpeq.rules._target_propagation import target_propagation
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
    "direct_feedback_alignment",
    "dual_propagation",
    "eqprop",
    "evaluated_by",
    "feedback_alignment",
    "free_phase",
    "in_short_floats",
    "kolen_pollack",
    "nudged_phases",
    "predictive_coding",
    "recurrent_backprop",
    "relaxing_rule",
    "remembering",
    "sign_symmetric",
    "starting_at",
    "stateless",
    "target_propagation",
    "vector_field_eqprop",
]
