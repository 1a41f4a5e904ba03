"""Predictive coding as a rule: written formulas; where it is backprop, and that it says so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense, flatten
from bpeq.rules import autodiff
from bpeq.rules._predictive_coding import predictive_coding
from bpeq.types import Batch

KEY = jax.random.key(0)
DEEP = chain(
    *(flatten(), dense(7), layers.gelu(), dense(6), layers.tanh(), dense(5), layers.sigmoid()),
    *(dense(3), layers.shifted_sigmoid()),
)
CNN = chain(
    *(layers.conv(3, 3), layers.max_pool(2), layers.relu(), layers.conv(4, 2), layers.softplus()),
    *(layers.avg_pool(2), flatten(), dense(3)),
)
SMOOTH = chain(layers.conv(3, 3), layers.avg_pool(2), layers.softplus(), flatten(), dense(3))
FLAT = chain(dense(6), layers.tanh(), dense(3))
NETS = {"deep": (DEEP, (2, 4)), "cnn": (CNN, (8, 8, 2)), "one hidden": (FLAT, (4,))}
COSTS = [squared_error(), softmax_cross_entropy()]
TIMED = {"inference": "timed", "rate": 1.0}
ONE_STEP = {"inference": "errors", "steps": 1, "rate": 1.0}


def problem(net):
    network, shape = (SMOOTH, (4, 4, 2)) if net == "smooth cnn" else NETS[net]
    params = trees.scale(1.2, network.init(KEY, shape)[0])
    x = jax.random.normal(jax.random.key(1), (5, *shape))
    return network, params, Batch(x, jnp.array([0, 1, 2, 0, 1]))


def gradient(rule, params, batch, **state):
    params, known = rule.init(KEY, params)
    return jax.jit(rule.estimate)(params, batch, {**known, **state} if state else known, KEY)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


@pytest.mark.parametrize("settings", [TIMED, ONE_STEP], ids=["timed", "one step"])
@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.name)
@pytest.mark.parametrize("net", NETS)
def test_in_these_settings_it_is_backprop_block_by_block_and_says_so(net, cost, settings):
    network, params, batch = problem(net)
    rule = predictive_coding(network, cost, **settings)
    exact = gradient(autodiff(network, cost), params, batch)
    ours = gradient(rule, params, batch)
    for part, reference in zip(ours.grads, exact.grads, strict=True):
        assert not jax.tree.leaves(part) or distance(part, reference) <= 1e-13
    assert float(abs(ours.loss - exact.loss)) <= 1e-14
    assert rule.info.note.startswith("algebraically backprop: ")
    assert rule.info.reference.name == "autodiff"


@pytest.mark.parametrize("net", NETS)
def test_at_other_rates_timed_updates_are_backprop_times_rate_to_the_blocks_above(net):
    network, params, batch = problem(net)
    rule = predictive_coding(network, squared_error(), inference="timed", rate=0.5)
    exact = gradient(autodiff(network, squared_error()), params, batch).grads
    ours = gradient(rule, params, batch).grads
    blocks = layers.cut(network)
    for i, block in enumerate(blocks):
        factor = 0.5 ** (len(blocks) - 1 - i)
        assert distance(ours[block.slice], trees.scale(factor, exact[block.slice])) <= 1e-13
    assert rule.info.note.startswith(
        "algebraically backprop but for one factor a block: its rate to"
    )


@pytest.mark.parametrize("net", NETS)
def test_at_other_rates_one_error_step_is_backprop_times_rate_below_the_last_block(net):
    network, params, batch = problem(net)
    rule = predictive_coding(network, squared_error(), inference="errors", steps=1, rate=0.3)
    exact = gradient(autodiff(network, squared_error()), params, batch).grads
    ours = gradient(rule, params, batch).grads
    *hidden, last = layers.cut(network)
    for block in hidden:
        assert distance(ours[block.slice], trees.scale(0.3, exact[block.slice])) <= 1e-13
    assert distance(ours[last.slice], exact[last.slice]) <= 1e-13
    assert rule.info.note.startswith("algebraically backprop but for one factor, its rate, on all")


@pytest.mark.parametrize(
    "settings",
    [{}, {"rate": 1.0, "steps": 1}, {"inference": "errors", "rate": 1.0, "steps": 2}],
    ids=["plain", "one state step", "two error steps"],
)
def test_elsewhere_it_is_not_backprop_and_no_note_says_so(settings):
    network, params, batch = problem("deep")
    rule = predictive_coding(network, squared_error(), **settings)
    exact = gradient(autodiff(network, squared_error()), params, batch).grads
    assert distance(gradient(rule, params, batch).grads, exact) > 0.05
    assert rule.info.note == ""


def three_blocks():
    """tanh, tanh, linear with squared error: weights, biases and data in NumPy."""
    network = chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2))
    rng = np.random.default_rng(0)
    shapes = [(5, 4), (4, 3), (3, 2)]
    w = [rng.normal(size=shape) for shape in shapes]
    b = [rng.normal(size=shape[1]) for shape in shapes]
    x, y = rng.normal(size=(6, 5)), rng.normal(size=(6, 2))
    parts = [{"w": jnp.asarray(w), "b": jnp.asarray(b)} for w, b in zip(w, b, strict=True)]
    params = (parts[0], (), parts[1], (), parts[2])
    return network, params, Batch(jnp.asarray(x), jnp.asarray(y)), w, b, x, y


def slope(s):
    return 1 - np.tanh(s) ** 2


def hebbian(errors, below):
    """−(1/B) Σ e ⊗ activity below, and −mean e for the bias, as the rule orders them."""
    grads = [
        {"w": -h.T @ e / len(e), "b": -e.mean(axis=0)} for e, h in zip(errors, below, strict=True)
    ]
    return (grads[0], (), grads[1], (), grads[2])


def test_inference_on_states_is_the_written_formula():
    """Whittington & Bogacz 2017: Δs = rate(−e_l + σ′ ⊙ e_{l+1}Wᵀ), ΔW ∝ e ⊗ σ(s), s_3 = y."""
    network, params, batch, w, b, x, y = three_blocks()
    rate, steps = 0.15, 7
    s1 = x @ w[0] + b[0]
    s2 = np.tanh(s1) @ w[1] + b[1]

    def errors():
        return (
            s1 - x @ w[0] - b[0],
            s2 - np.tanh(s1) @ w[1] - b[1],
            y - np.tanh(s2) @ w[2] - b[2],
        )

    for _ in range(steps):
        e1, e2, e3 = errors()
        move1 = rate * (-e1 + slope(s1) * (e2 @ w[1].T))
        move2 = rate * (-e2 + slope(s2) * (e3 @ w[2].T))
        s1, s2 = s1 + move1, s2 + move2
    expected = hebbian(errors(), (x, np.tanh(s1), np.tanh(s2)))
    rule = predictive_coding(network, squared_error(), steps=steps, rate=rate)
    ours = gradient(rule, params, batch)
    assert distance(ours.grads, expected) <= 1e-13
    largest = np.maximum(np.abs(move1).max(axis=1), np.abs(move2).max(axis=1))
    np.testing.assert_allclose(ours.info["inference"].residual, largest, rtol=1e-12)
    assert ours.info["inference"].steps.tolist() == [steps] * 6


def test_timed_updates_are_the_written_formula():
    """Song et al. 2020, any rate: W_3 at step 0, W_2 at step 1, W_1 at step 2, of one inference."""
    network, params, batch, w, b, x, y = three_blocks()
    rate = 0.7
    s1 = x @ w[0] + b[0]
    s2 = np.tanh(s1) @ w[1] + b[1]
    updates, rest = {}, (s1, s2)
    for step in range(3):
        e = (
            s1 - x @ w[0] - b[0],
            s2 - np.tanh(s1) @ w[1] - b[1],
            y - np.tanh(s2) @ w[2] - b[2],
        )
        below = (x, np.tanh(s1), np.tanh(s2))
        updates[2 - step] = (e[2 - step], below[2 - step])
        move1 = rate * (-e[0] + slope(s1) * (e[1] @ w[1].T))
        move2 = rate * (-e[1] + slope(s2) * (e[2] @ w[2].T))
        s1, s2 = s1 + move1, s2 + move2
    assert np.abs(s1 - rest[0]).max() > 0.01
    expected = hebbian(*zip(*(updates[i] for i in range(3)), strict=True))
    rule = predictive_coding(network, squared_error(), inference="timed", rate=rate)
    ours = gradient(rule, params, batch)
    assert distance(ours.grads, expected) <= 1e-13
    assert ours.info["inference"].steps.tolist() == [2] * 6


def test_inference_on_errors_is_the_written_formula():
    """Goemaere et al. 2025: e ← e − rate(e + dC/de), weights from the pass that made the last e."""
    network, params, batch, w, b, x, y = three_blocks()
    rate, steps = 0.3, 4
    e1, e2 = np.zeros((6, 4)), np.zeros((6, 3))
    for _ in range(steps):
        s1 = x @ w[0] + b[0] + e1
        s2 = np.tanh(s1) @ w[1] + b[1] + e2
        e3 = y - np.tanh(s2) @ w[2] - b[2]
        d2 = slope(s2) * (-e3 @ w[2].T)
        d1 = slope(s1) * (d2 @ w[1].T)
        e1, e2 = e1 - rate * (e1 + d1), e2 - rate * (e2 + d2)
    expected = hebbian((e1, e2, e3), (x, np.tanh(s1), np.tanh(s2)))
    rule = predictive_coding(network, squared_error(), inference="errors", steps=steps, rate=rate)
    assert distance(gradient(rule, params, batch).grads, expected) <= 1e-13


@pytest.mark.parametrize("cost", COSTS, ids=lambda cost: cost.name)
@pytest.mark.parametrize("net", ["deep", "smooth cnn"])  # at a corner of relu F has no slope
def test_states_and_errors_relax_to_one_equilibrium_whose_estimate_is_the_slope_of_f(net, cost):
    """F = ½ Σ ‖s_l − f_l‖² + C by autodiff, at states found by descent on F itself."""
    network, params, batch = problem(net)
    params = trees.scale(0.5, params)
    *hidden, last = layers.cut(network)

    def total(params, states):
        below, value = batch.x, 0.0
        for block, s in zip(hidden, states, strict=True):
            value += 0.5 * jnp.sum(
                (s - block.connection.forward(params[block.slice], below)[0]) ** 2
            )
            below = block.activation.value(s)
        z, _ = last.connection.forward(params[last.slice], below)
        return value + cost.value(last.activation.value(z), batch.y).sum()

    states, below = [], batch.x
    for block in hidden:
        states.append(block.connection.forward(params[block.slice], below)[0])
        below = block.activation.value(states[-1])
    descend = jax.grad(total, argnums=1)
    move = lambda _, s: trees.sub(s, trees.scale(0.3, descend(params, s)))  # noqa: E731
    states = jax.jit(lambda s: jax.lax.fori_loop(0, 2000, move, s))(tuple(states))
    assert max(float(jnp.abs(g).max()) for g in descend(params, states)) < 1e-13
    expected = trees.scale(1 / 5, jax.grad(total)(params, states))
    for inference in ("states", "errors"):
        settings = {"inference": inference, "steps": 2000, "rate": 0.3, "tolerance": 1e-12}
        ours = gradient(predictive_coding(network, cost, **settings), params, batch)
        assert ours.info["inference"].converged.all()
        assert distance(ours.grads, expected) <= 1e-10


def test_the_rate_is_traced():
    network, params, batch = problem("deep")
    fast = predictive_coding(network, squared_error(), rate=0.1)
    slow = predictive_coding(network, squared_error(), rate=0.05)
    moved = gradient(fast, params, batch, rate=jnp.asarray(0.05)).grads
    assert distance(moved, gradient(slow, params, batch).grads) <= 1e-15


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (FLAT, {"rate": 0.0}, "predictive_coding: rate = 0.0: must be a number > 0"),
        (FLAT, {"steps": 0}, "predictive_coding: steps = 0: must be a whole number >= 1"),
        (FLAT, {"inference": "both"}, r"must be 'states' \| 'timed' \| 'errors'"),
        (chain(dense(2), layers.tanh()), {}, "no hidden block to relax; use backprop"),
        (chain(dense(4), layers.batch_norm(), layers.tanh(), dense(2)), {}, "layer 1"),
    ],
    ids=["rate", "steps", "inference", "one block", "batch norm"],
)
def test_what_it_cannot_do_is_refused_when_it_is_built(network, settings, message):
    with pytest.raises(ValueError, match=message):
        predictive_coding(network, squared_error(), **settings)
