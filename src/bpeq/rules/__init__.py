"""Learning rules: drop-ins for `jax.value_and_grad`, one file a rule."""

from bpeq.rules._autodiff import autodiff
from bpeq.rules._backprop import backprop
from bpeq.rules._eqprop import eqprop
from bpeq.rules._recurrent_backprop import recurrent_backprop
from bpeq.rules._stateless import stateless

__all__ = ["autodiff", "backprop", "eqprop", "recurrent_backprop", "stateless"]
