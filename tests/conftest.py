"""float64 oracles under strict promotion; every warning is an error (see pyproject)."""

import os
from pathlib import Path

# Compiling is what the tests spend their time on: no optimisation halves it, and changes no oracle.
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"

import jax

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Many tests compile the same programs: what one has compiled, in either worker, the others load.
CACHE = Path(__file__).parents[1] / ".jax_cache"
jax.config.update("jax_compilation_cache_dir", str(CACHE))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", 0)
