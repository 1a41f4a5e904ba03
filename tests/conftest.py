"""float64 oracles under strict promotion; every warning is an error (see pyproject)."""

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
