"""Systems from a user's field against closed forms, and against the energy they may have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq.core import trees
from bpeq.costs import squared_error
from bpeq.rules import eqprop
from bpeq.systems import from_energy, from_field


def init(key, shape):
    w, u, v = jax.random.split(key, 3)
    params = {
        "w": jax.random.normal(w, (4, 4)) / 4,
        "u": jax.random.normal(u, (4, *shape)),
        "v": jax.random.normal(v, (2, 4)),
    }
    return params, (2,)


def field(p, s, x):
    return -s + p["w"] @ jnp.tanh(s) + p["u"] @ x


def net(**settings):
    return from_field(
        field, lambda p, x: 0.1 * jnp.ones(4, x.dtype), lambda p, s: p["v"] @ s, init, **settings
    )


def drawn(system, dtype=jnp.float64, batch=3):
    params = trees.cast(system.init(jax.random.key(0), (3,))[0], dtype)
    x = jax.random.normal(jax.random.key(1), (batch, 3), dtype)
    s, v = (jax.random.normal(jax.random.key(i), (batch, 4), dtype) for i in (2, 3))
    return params, x, s, v


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_sweep_is_an_euler_step_along_field_and_push(dtype):
    system = net(step_size=0.3)
    params, x, s, v = drawn(system, dtype)
    clamped = system.clamp(params, x)
    expected = s + 0.3 * (-s + jnp.tanh(s) @ params["w"].T + x @ params["u"].T + v)
    swept = system.sweep(params, clamped, s, lambda state: v)
    assert swept.dtype == dtype
    assert not jax.eval_shape(lambda s: system.sweep(params, clamped, s), s).weak_type
    np.testing.assert_allclose(swept, expected, atol=10 * jnp.finfo(dtype).eps)
    quiet = system.sweep(params, clamped, s, lambda state: None)
    np.testing.assert_array_equal(quiet, system.sweep(params, clamped, s))
    np.testing.assert_array_equal(system.init_state(params, clamped), jnp.full((3, 4), 0.1, dtype))


def test_force_is_the_field_and_dforce_its_pull_back():
    """vᵀ ∂f/∂W = Σ v tanh(s)ᵀ, vᵀ ∂f/∂U = Σ v xᵀ, and nothing for the readout's weights."""
    system = net()
    params, x, s, v = drawn(system)
    expected = jax.vmap(field, in_axes=(None, 0, 0))(params, s, x)
    np.testing.assert_allclose(system.force(params, system.clamp(params, x), s), expected)
    pulled = system.dforce(params, x, s, v)[0]
    np.testing.assert_allclose(pulled["w"], v.T @ jnp.tanh(s), rtol=1e-13)
    np.testing.assert_allclose(pulled["u"], v.T @ x, rtol=1e-13)
    assert not pulled["v"].any()


def test_readout_pulls_back_to_state_and_to_its_own_weights():
    system = net()
    params, _, s, _ = drawn(system)
    output, kept = system.readout.forward(params, s)
    np.testing.assert_allclose(output, s @ params["v"].T, rtol=1e-13)
    dy = jnp.ones((3, 2))
    own, ds = system.readout.backward(params, params, kept, dy)
    np.testing.assert_allclose(ds, dy @ params["v"], rtol=1e-13)
    np.testing.assert_allclose(own["v"], dy.T @ s, rtol=1e-13)


def test_the_field_of_an_energy_is_from_energy():
    """Over a dict state, with a projection, a push on one part only, and a clamped output."""

    def energy(p, s, x):
        inner = 0.5 * jnp.sum(s["a"] ** 2) + 0.5 * jnp.sum(s["b"] ** 2)
        return inner - s["a"] @ (p["u"] @ x) - s["b"] @ (p["v"] @ s["a"])

    rest = (
        lambda p, x: {"a": jnp.zeros(4), "b": jnp.zeros(2)},
        lambda p, s: s["b"],
        init,
    )
    both = {
        "step_size": 0.4,
        "project": lambda s: jax.tree.map(lambda u: jnp.clip(u, -1.0, 1.0), s),
        "write": lambda s, output: {**s, "b": output},
    }
    ours = from_field(
        lambda p, s, x: trees.scale(-1.0, jax.grad(energy, argnums=1)(p, s, x)), *rest, **both
    )
    theirs = from_energy(energy, *rest, **both)
    params, x, s, v = drawn(ours)
    state, force = {"a": s, "b": v[:, :2]}, {"a": v, "b": s[:, :2]}
    push = lambda state: {"a": None, "b": 2.0 * state["b"]}  # noqa: E731
    for one, other in [
        (ours.sweep(params, x, state, push), theirs.sweep(params, x, state, push)),
        (ours.force(params, x, state), theirs.force(params, x, state)),
        (ours.dforce(params, x, state, force)[0], theirs.dforce(params, x, state, force)[0]),
        (ours.write(state, jnp.ones((3, 2))), theirs.write(state, jnp.ones((3, 2)))),
    ]:
        for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
            np.testing.assert_allclose(a, b, atol=1e-14)
    assert float(jnp.abs(ours.sweep(params, x, state, push)["b"]).max()) == 1.0  # projected


def test_it_has_no_energy_and_eqprop_refuses_it():
    system = net()
    assert system.energy is None
    assert system.denergy is None
    assert system.write is None
    with pytest.raises(ValueError, match="has no energy"):
        eqprop(system, squared_error())


@pytest.mark.parametrize("step_size", [0.0, -1.0, float("nan")])
def test_a_step_size_that_is_not_positive_is_refused(step_size):
    with pytest.raises(ValueError, match=r"from_field: step_size = .*> 0"):
        net(step_size=step_size)
