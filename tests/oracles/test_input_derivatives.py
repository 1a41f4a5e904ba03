"""dx of `denergy` and `dforce` against autodiff of the energy and of the force, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.layers import chain, conv, dense, embedding, flatten
from bpeq.systems import from_energy, from_field, hopfield, predictive, resistive

KEY = jax.random.key(0)
NET = chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2))
IMAGES = chain(conv(2, kernel=3), layers.tanh(), flatten(), dense(2))
CIRCUIT = chain(dense(4), layers.relu(), dense(2))
OWN = {
    "init_state": lambda p, x: jnp.zeros(3),
    "readout": lambda p, s: s[:1],
    "init": lambda key, shape: (jax.random.normal(key, (3, *shape)), (1,)),
}
CASES = {
    "hopfield": (lambda: hopfield(NET, gain=0.7), (5,)),
    "skips": (lambda: hopfield(NET, skips={(0, 2): dense(3), (0, 3): dense(2)}), (5,)),
    "conv": (lambda: hopfield(IMAGES), (4, 4, 1)),
    "untied": (lambda: hopfield(NET, feedback="untied", gain=0.7), (5,)),
    "predictive": (lambda: predictive(NET), (5,)),
    "resistive": (lambda: resistive(CIRCUIT, gain=3.0), (5,)),
    "paired": (lambda: resistive(CIRCUIT, gain=3.0, outputs="paired"), (5,)),
    "from_energy": (
        lambda: from_energy(lambda p, s, x: jnp.sum(s**2) - jnp.tanh(s) @ (p @ x), **OWN),
        (5,),
    ),
    "from_field": (lambda: from_field(lambda p, s, x: jnp.tanh(p @ x) * s - s, **OWN), (5,)),
}


def problem(name):
    build, shape = CASES[name]
    system = build()
    params, _ = system.init(KEY, shape)
    x = jax.random.normal(jax.random.key(1), (3, *shape))
    shapes = system.init_state(params, system.clamp(params, x))

    def drawn(n, *lead):
        key = jax.random.key(n)
        return jax.tree.map(lambda s: 0.3 * jax.random.normal(key, (*lead, *s.shape)), shapes)

    return system, params, x, drawn


@pytest.mark.parametrize("name", [name for name in CASES if name not in ("untied", "from_field")])
def test_denergy_by_the_input_is_that_of_the_energy(name):
    system, params, x, drawn = problem(name)
    phases, weights = drawn(2, 2), jnp.array([0.7, -0.2])

    def total(x):
        clamped = system.clamp(params, x)
        energies = jax.vmap(lambda s: system.energy(params, clamped, s).sum())(phases)
        return jnp.sum(weights * energies)

    ours = jax.jit(lambda x: system.denergy(params, system.clamp(params, x), phases, weights)[1])(x)
    np.testing.assert_allclose(ours, jax.jit(jax.grad(total))(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_dforce_by_the_input_is_the_pull_back_of_the_force(name):
    system, params, x, drawn = problem(name)
    state, v = drawn(2), drawn(3)

    def pulled(x):
        clamped = system.clamp(params, x)
        force = lambda x: system.force(params, system.clamp(params, x), state)  # noqa: E731
        return system.dforce(params, clamped, state, v)[1], jax.vjp(force, x)[1](v)[0]

    ours, exact = jax.jit(pulled)(x)
    np.testing.assert_allclose(ours, exact, rtol=1e-11, atol=1e-12)


def test_an_integer_input_has_no_derivative():
    network = chain(embedding(7, 4), flatten(), dense(3), layers.tanh(), dense(2))
    system = hopfield(network)
    params, _ = system.init(KEY, (2,))
    x = jnp.array([[1, 2], [3, 6]])
    clamped = system.clamp(params, x)
    state = system.init_state(params, clamped)
    phases = jax.tree.map(lambda s: s[None], state)
    assert system.denergy(params, clamped, phases, jnp.ones(1))[1] is None
    assert system.dforce(params, clamped, state, state)[1] is None
