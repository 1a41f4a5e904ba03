"""Vector-field EP: EP where the Jacobian is symmetric, biased where not, and two cures."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpeq import layers
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense
from bpeq.rules import eqprop, recurrent_backprop
from bpeq.rules._vector_field_eqprop import asymmetry_loss, skew, vector_field_eqprop
from bpeq.solvers import fixed_point, fixed_steps
from bpeq.systems import from_field, hopfield
from bpeq.types import Batch

TIGHT = fixed_point(1e-14, 5000)
KEY = jax.random.key(0)


def layered(output="state", dtype=jnp.float64, **settings):
    blocks = [dense(9), layers.tanh(), dense(7), layers.tanh(), dense(3)]
    network = chain(*blocks, *([layers.tanh()] if output == "state" else []))
    system = hopfield(network, output=output, **settings)
    params = trees.cast(trees.scale(0.8, system.init(KEY, (5,))[0]), dtype)
    x = jax.random.normal(jax.random.key(1), (6, 5), dtype)
    y = jax.random.randint(jax.random.key(2), (6,), 0, 3)
    cost = squared_error() if output == "state" else softmax_cross_entropy()
    return system, cost, params, Batch(x, y), network


def untied(dtype=jnp.float64):
    """Two layers of units, up by W and down by B, Bᵀ not W: params end in a feedback entry."""

    def init(key, shape):
        keys = jax.random.split(key, 3)
        w = jax.random.normal(keys[1], (4, 3)) / 3
        b = jax.random.normal(keys[2], (4, 3)) / 3
        return (jax.random.normal(keys[0], (*shape, 4)), w, {"feedback": ((), b)}), (3,)

    system = from_field(
        lambda p, s, x: (
            -s[0] + jnp.tanh(x @ p[0] + p[2]["feedback"][1] @ s[1]),
            -s[1] + jnp.tanh(s[0] @ p[1]),
        ),
        lambda p, x: (jnp.zeros(4, x.dtype), jnp.zeros(3, x.dtype)),
        lambda p, s: s[1],
        init,
    )
    params = trees.cast(system.init(KEY, (5,))[0], dtype)
    x = jax.random.normal(jax.random.key(1), (6, 5), dtype)
    y = jax.random.normal(jax.random.key(2), (6, 3), dtype)
    return system, squared_error(), params, Batch(x, y)


def gradient(rule, params, batch, key=KEY):
    params, state = rule.init(key, params)
    return jax.jit(rule.estimate)(params, batch, state, key)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


def errors(rule, params, batch, exact, betas):
    params, state = rule.init(KEY, params)
    estimate = jax.jit(rule.estimate)  # β is traced: one compilation serves the grid
    return np.array(
        [
            distance(
                estimate(params, batch, {**state, "beta": jnp.asarray(b)}, KEY)[0].grads, exact
            )
            for b in betas
        ]
    )


def jacobians(system, params, clamped, state):
    """∂force/∂s of every example, dense, `[batch, units, units]`, by one-hot columns."""
    flat = lambda s: jnp.concatenate([u.reshape(len(u), -1) for u in s], axis=1)  # noqa: E731
    sizes = [u.shape[1] for u in state]

    def unflat(v):
        return tuple(jnp.split(v, np.cumsum(sizes)[:-1], axis=1))

    def column(e):
        v = unflat(jnp.broadcast_to(e, (len(state[0]), sum(sizes))))
        return flat(jax.jvp(lambda s: system.force(params, clamped, s), (state,), (v,))[1])

    return jnp.moveaxis(jax.vmap(column)(jnp.eye(sum(sizes))), 0, 2)


@pytest.mark.parametrize("output", ["state", "readout"])
@pytest.mark.parametrize(("nudging", "order"), [("one-sided", 1.0), ("centered", 2.0)])
def test_with_an_energy_the_error_falls_with_the_order_of_ep(output, nudging, order):
    system, cost, params, batch, _ = layered(output)
    exact = gradient(recurrent_backprop(system, cost, TIGHT, TIGHT), params, batch).grads
    betas = np.geomspace(1e-1, 1e-4, 7)
    rule = vector_field_eqprop(system, cost, TIGHT, TIGHT, nudging=nudging)
    found = errors(rule, params, batch, exact, betas)
    fit = (found < 1e-2) & (found > 100 * 1e-13 / betas)
    assert fit.sum() >= 3
    slope = np.polyfit(np.log(betas[fit]), np.log(found[fit]), 1)[0]
    assert abs(slope - order) <= 0.05
    beta = 1e-3  # and EP has the same limit
    ep = gradient(eqprop(system, cost, TIGHT, TIGHT, beta=beta, nudging=nudging), params, batch)
    rule = vector_field_eqprop(system, cost, TIGHT, TIGHT, beta=beta, nudging=nudging)
    ours = gradient(rule, params, batch)
    assert distance(ours.grads, ep.grads) < 10 * beta**order
    assert ours.info["nudged"].converged.shape == (int(order), 6)


@pytest.mark.parametrize("nudging", ["one-sided", "centered"])
def test_the_estimate_is_the_response_in_the_forces_pull_back(nudging):
    """−(1/β)(∂f/∂θ)ᵀ Δs written out for W and B, from states settled by hand; a batch mean."""
    system, cost, params, batch = untied()
    beta = 0.05
    clamped = system.clamp(params, batch.x)
    settle = jax.jit(
        lambda b, s: TIGHT(
            lambda s: system.sweep(params, clamped, s, lambda s: (None, -b * (s[1] - batch.y))), s
        )[0]
    )
    free = settle(0.0, system.init_state(params, clamped))
    up = settle(beta, free)
    down = settle(-beta, free) if nudging == "centered" else free
    moved = trees.scale(1.0 / (beta * (2 if nudging == "centered" else 1)), trees.sub(up, down))
    feedback = params[2]["feedback"][1]
    slopes = 1 - jnp.tanh(batch.x @ params[0] + free[1] @ feedback.T) ** 2
    low, high = moved[0] * slopes, moved[1] * (1 - jnp.tanh(free[0] @ params[1]) ** 2)
    expected = (
        -batch.x.T @ low / 6,
        -free[0].T @ high / 6,
        {"feedback": ((), -low.T @ free[1] / 6)},
    )
    rule = vector_field_eqprop(system, cost, TIGHT, TIGHT, beta=beta, nudging=nudging)
    assert distance(gradient(rule, params, batch).grads, expected) < 1e-11


def test_without_symmetry_the_bias_stays_as_beta_vanishes():
    for system, cost, params, batch, *_ in (untied(), layered(feedback="untied")):
        exact = gradient(recurrent_backprop(system, cost, TIGHT, TIGHT), params, batch).grads
        rule = vector_field_eqprop(system, cost, TIGHT, TIGHT)
        far, near = errors(rule, params, batch, exact, [1e-2, 1e-4])
        assert far > 0.05
        assert abs(far - near) < 1e-3 * near


def test_the_hutchinson_mean_is_the_exact_asymmetry():
    """Over all sign vectors ½‖(J − Jᵀ)v‖² averages to ‖J‖² − Tr J², and its gradient likewise."""
    system, _, params, batch = untied()
    x = batch.x[:2]
    state, _ = TIGHT(
        lambda s: system.sweep(params, x, s), system.init_state(params, system.clamp(params, x))
    )

    def exact(params):
        j = jacobians(system, params, system.clamp(params, x), state)
        return jnp.mean(jnp.sum(j * j, (1, 2)) - jnp.einsum("bij,bji->b", j, j))

    signs = np.array(np.meshgrid(*[[-1.0, 1.0]] * 7)).reshape(7, -1).T
    draws = [
        jnp.broadcast_to(part[:, None], (128, 2, part.shape[1]))
        for part in (signs[:, :4], signs[:, 4:])
    ]
    one = lambda p, v: asymmetry_loss(system, p, x, state, v)  # noqa: E731
    both = jax.jit(jax.vmap(jax.value_and_grad(one), in_axes=(None, 0)))
    found, grads = both(params, tuple(draws))
    right, slope = jax.jit(jax.value_and_grad(exact))(params)
    assert float(found.std()) > 0.01 * float(found.mean())  # it is an estimate
    np.testing.assert_allclose(found.mean(), right, rtol=1e-13)
    mean = jax.tree.map(lambda g: g.mean(axis=0), grads)
    assert distance(mean, slope) < 1e-13


def asymmetry(system, params, x):
    """‖J‖² − Tr J² at the free state, held constant, as a batch mean."""
    clamped = system.clamp(params, x)
    state = TIGHT(lambda s: system.sweep(params, clamped, s), system.init_state(params, clamped))[0]
    j = jacobians(system, params, clamped, jax.lax.stop_gradient(state))
    return jnp.mean(jnp.sum(j * j, (1, 2)) - jnp.einsum("bij,bji->b", j, j))


def test_homeostasis_adds_the_weighted_gradient_of_the_asymmetry_on_average_over_keys():
    system, cost, params, batch = untied()
    plain = gradient(vector_field_eqprop(system, cost, TIGHT, TIGHT), params, batch)
    rule = vector_field_eqprop(system, cost, TIGHT, TIGHT, homeostasis=0.3)
    state = rule.init(KEY, params)[1]
    estimate = jax.jit(lambda key: rule.estimate(params, batch, state, key)[0])
    found = jax.lax.map(estimate, jax.random.split(KEY, 400))
    added = jax.tree.map(lambda g, p: g.mean(axis=0) - p, found.grads, plain.grads)
    free = plain.info["free"]
    assert free.converged.all()

    def exact(p):
        j = jacobians(system, p, system.clamp(p, batch.x), rest)
        return jnp.mean(0.5 * jnp.sum((j - j.mT) ** 2, (1, 2)))

    clamped = system.clamp(params, batch.x)
    rest, _ = TIGHT(lambda s: system.sweep(params, clamped, s), system.init_state(params, clamped))
    right, slope = jax.jit(jax.value_and_grad(exact))(params)
    assert distance(added, trees.scale(0.3, slope)) < 0.05
    values = np.asarray(found.info["homeostasis"])
    assert abs(values.mean() - float(right)) < 3 * values.std() / 20
    np.testing.assert_allclose(right, asymmetry(system, params, batch.x), rtol=1e-12)


@pytest.mark.parametrize("kolen_pollack", [False, True])
def test_descent_on_homeostasis_drives_the_asymmetry_down(kolen_pollack):
    """It acts on W and B by opposite gradients, which Kolen–Pollack's sum must not cancel."""
    system, cost, params, batch = untied()
    rule = vector_field_eqprop(
        system, cost, homeostasis=5.0, kolen_pollack=kolen_pollack, nudging="one-sided"
    )
    params, state = rule.init(KEY, params)

    def step(params, key):
        found, _ = rule.estimate(params, batch, state, key)
        return trees.sub(params, trees.scale(0.1, found.grads)), None

    after, _ = jax.lax.scan(step, params, jax.random.split(KEY, 100))
    assert asymmetry(system, after, batch.x) < 0.1 * asymmetry(system, params, batch.x)


def angle(a, b):
    cosine = jnp.sum(a * b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)
    return float(jnp.rad2deg(jnp.arccos(cosine)))


def test_kolen_pollack_lays_the_sum_of_both_gradients_on_both_weights():
    system, cost, params, batch = untied()
    plain = gradient(vector_field_eqprop(system, cost, TIGHT, TIGHT), params, batch).grads
    rule = vector_field_eqprop(system, cost, TIGHT, TIGHT, kolen_pollack=True)
    ours = gradient(rule, params, batch).grads
    total = plain[1] + plain[2]["feedback"][1]
    np.testing.assert_array_equal(ours[0], plain[0])
    np.testing.assert_array_equal(ours[1], total)
    np.testing.assert_array_equal(ours[2]["feedback"][1], total)
    assert ours[2]["feedback"][0] == ()


def test_on_a_symmetric_point_kolen_pollack_gives_the_tied_systems_gradient():
    """Also with a skip, and with the feedback weights named as `hopfield` names them."""
    skips = {(1, 3): dense(3, bias=False)}
    tied, cost, params, batch, network = layered(skips=skips)
    system = hopfield(network, skips=skips, feedback="untied", angle=0.0)
    copies = {"dense_2": params[2:3], "dense_3": params[4:5], "1_3": params[-1]["skips"]["1_3"]}
    both = (*params, {"feedback": copies})
    chex.assert_trees_all_equal_shapes(both, system.init(KEY, (5,))[0])
    rule = vector_field_eqprop(system, cost, TIGHT, TIGHT, kolen_pollack=True, network=network)
    ours = gradient(rule, both, batch).grads
    exact = gradient(vector_field_eqprop(tied, cost, TIGHT, TIGHT), params, batch).grads
    assert distance(ours[:-1], exact) < 1e-11
    laid = ours[-1]["feedback"]
    np.testing.assert_array_equal(laid["dense_2"][0]["w"], ours[2]["w"])
    np.testing.assert_array_equal(laid["dense_3"][0]["w"], ours[4]["w"])
    np.testing.assert_array_equal(laid["1_3"]["w"], ours[-2]["skips"]["1_3"]["w"])


def test_kolen_pollack_with_decoupled_decay_shrinks_the_gap_and_the_angle():
    """W − B decays by 1 − ηλ a step under AdamW, exactly, whatever the gradients are."""
    system, cost, params, batch = untied()
    rule = vector_field_eqprop(system, cost, kolen_pollack=True)
    params, state = rule.init(KEY, params)
    rate, decay, steps = 0.02, 1.0, 150
    optimizer = optax.adamw(rate, weight_decay=decay)

    def step(carry, _):
        params, kept = carry
        grads = rule.estimate(params, batch, state, KEY)[0].grads
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
            updates, kept = optimizer.update(grads, kept, params)
        return (optax.apply_updates(params, updates), kept), None

    (after, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), length=steps)
    before_gap, gap = (p[1] - p[2]["feedback"][1] for p in (params, after))
    np.testing.assert_allclose(gap, (1 - rate * decay) ** steps * before_gap, rtol=1e-9)
    assert angle(params[1], params[2]["feedback"][1]) > 45
    assert angle(after[1], after[2]["feedback"][1]) < 15


def test_kolen_pollack_without_feedback_weights_is_refused():
    system, cost, params, batch, network = layered()
    rule = vector_field_eqprop(system, cost, kolen_pollack=True, network=network)
    with pytest.raises(ValueError, match=r"params have no \{'feedback': \.\.\.\} entry"):
        rule.init(KEY, params)
    with pytest.raises(ValueError, match=r"params have no \{'feedback': \.\.\.\} entry"):
        jax.eval_shape(rule.estimate, params, batch, {"beta": jnp.asarray(0.1)}, KEY)
    system, cost, params, *_ = layered(feedback="untied")
    with pytest.raises(ValueError, match=r"network = None: must be .* dense_2, dense_3"):
        vector_field_eqprop(system, cost, kolen_pollack=True).init(KEY, params)


@pytest.mark.parametrize(
    ("setting", "words"),
    [({"beta": 0.0}, "> 0"), ({"homeostasis": -1.0}, ">= 0"), ({"nudging": "both"}, "must be")],
)
def test_a_setting_out_of_range_is_refused(setting, words):
    system, cost, *_ = untied()
    with pytest.raises(ValueError, match=f"vector_field_eqprop: .*{words}"):
        vector_field_eqprop(system, cost, **setting)


def test_float32_stays_float32_and_settings_are_traced():
    """A second call compiles nothing, nor does another β or weight of homeostasis."""
    system, cost, params, batch = untied(jnp.float32)
    rule = vector_field_eqprop(system, cost, homeostasis=0.5, kolen_pollack=True)
    params, state = rule.init(KEY, params)
    chex.clear_trace_counter()
    estimate = jax.jit(chex.assert_max_traces(rule.estimate, n=1))
    first, after = estimate(params, batch, state, KEY)
    assert {leaf.dtype for leaf in jax.tree.leaves(first)} >= {jnp.dtype(jnp.float32)}
    assert jnp.dtype(jnp.float64) not in {leaf.dtype for leaf in jax.tree.leaves(first)}
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert set(state) == {"beta", "homeostasis"}
    for name in state:
        other, _ = estimate(params, batch, {**state, name: state[name] / 2}, KEY)
        assert distance(other.grads, first.grads) > 1e-5


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "hard_sigmoid"])
def test_saturated_units_leave_the_asymmetry_finite(name):
    """In float32 drives of ±200 round σ to its bounds, where σ⁻¹ has an infinite slope."""
    act = getattr(layers, name)()
    system = hopfield(chain(dense(6), act, dense(4), act, dense(3), act), feedback="untied")
    params = trees.cast(system.init(KEY, (5,))[0], jnp.float32)
    x = 200.0 * jax.random.normal(jax.random.key(1), (6, 5), jnp.float32)
    few = fixed_steps(20)

    @jax.jit
    def twist(params, x):
        clamped = system.clamp(params, x)
        start = system.init_state(params, clamped)
        state, _ = few(lambda s: system.sweep(params, clamped, s), start)
        return state, skew(system, params, clamped, state)(jax.tree.map(jnp.ones_like, state))

    state, twisted = twist(params, x)
    bounds = (-1.0, 1.0) if name == "tanh" else (0.0, 1.0)
    assert {float(state[0].min()), float(state[0].max())} == set(bounds)
    assert all(jnp.isfinite(t).all() for t in twisted)
    rule = vector_field_eqprop(system, squared_error(), few, few, homeostasis=1.0)
    found = gradient(rule, params, Batch(x, jnp.ones((6, 3), jnp.float32)))
    assert all(
        jnp.isfinite(g).all() for g in jax.tree.leaves((found.grads, found.info["homeostasis"]))
    )
