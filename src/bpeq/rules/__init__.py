"""Learning rules: drop-ins for `jax.value_and_grad`, one file a rule."""

from bpeq.rules._asymmetric_eqprop import asymmetric_eqprop
from bpeq.rules._autodiff import autodiff
from bpeq.rules._backprop import backprop
from bpeq.rules._bptt import bptt
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
from bpeq.rules._relaxing import relaxing
from bpeq.rules._sign_symmetric import sign_symmetric
from bpeq.rules._stateless import stateless
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
    "feedback_alignment",
    "free_phase",
    "kolen_pollack",
    "nudged_phases",
    "predictive_coding",
    "recurrent_backprop",
    "relaxing",
    "sign_symmetric",
    "stateless",
    "target_propagation",
    "vector_field_eqprop",
]
