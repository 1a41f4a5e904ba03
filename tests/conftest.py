"""float64 oracles under strict promotion; every warning is an error (see pyproject)."""

import os

# Compiling is what the tests spend their time on: no optimisation halves it, and changes no oracle.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
