"""A config's network checked against autodiff, on the data that it will see."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from bpeq import trees
from bpeq.config import Config
from bpeq.layers import CheckRow, check_network, gradient_error, tolerance
from bpeq.problem import Problem, build


def check_problem(config: Config, batch: int = 8) -> list[CheckRow]:
    """Rows for every layer and the whole network, in float64 and in float32, and for the energy.

    Each layer is checked at the input that it gets from `batch` training examples, with the initial
    weights. Where the rule relaxes a system with an energy, `denergy` is compared with `jax.grad`
    of that energy, at nine tenths of the state that one sweep reaches: off any equilibrium.

    Raises:
      ConfigError, DataError: as `problem.build`.
    """
    problem = build(config)
    rows = []
    with jax.enable_x64(True):
        for dtype in (jnp.float64, jnp.float32):
            key = jax.random.key(config.tree["seed"])
            params = trees.cast(problem.init(key), dtype)
            x = jnp.asarray(problem.data.x[problem.rows[0][:batch]], dtype)
            found = []
            if problem.network is not None:
                own, _ = problem.network.init(key, x.shape[1:])  # a system's may be another
                own = trees.cast(own, dtype)
                found += check_network(problem.network, own, x, key=jax.random.fold_in(key, 1))
            if problem.system is not None and problem.system.energy is not None:
                found.append(_check_energy(problem, params, x))
            bits = jnp.finfo(dtype).bits
            rows += [row._replace(name=f"{row.name} (float{bits})") for row in found]
    return rows


def _check_energy(problem: Problem, params: object, x: jax.Array) -> CheckRow:
    assert problem.system is not None
    system = problem.system.ideal
    assert system.denergy is not None
    clamped = system.clamp(params, x)
    swept = system.sweep(params, clamped, system.init_state(params, clamped))
    state = trees.scale(0.9, swept)
    phases = jax.tree.map(lambda s: s[None], state)
    ours = system.denergy(params, clamped, phases, jnp.ones((1,), x.dtype))

    def total(params: object) -> jax.Array:
        assert system.energy is not None
        return jnp.sum(system.energy(params, system.clamp(params, x), state))

    error, limit = gradient_error(ours, jax.grad(total)(params)), tolerance(x.dtype, deep=True)
    return CheckRow("energy ∂E/∂θ", error, limit, error <= limit)
