"""Difference target propagation: written formulas, its own losses, and where it is backprop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.analysis import gradient_fidelity
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense, flatten
from bpeq.rules import autodiff
from bpeq.rules._target_propagation import target_propagation
from bpeq.types import Batch

KEY = jax.random.key(0)
MLP = chain(flatten(), dense(7), layers.tanh(), dense(6), layers.gelu(), dense(3), layers.sigmoid())
CNN = chain(
    *(layers.conv(3, 3), layers.max_pool(2), layers.tanh(), flatten(), dense(6), layers.softplus()),
    dense(3),
)
NETS = {"mlp": (MLP, (2, 4), squared_error()), "cnn": (CNN, (8, 8, 2), softmax_cross_entropy())}


def problem(net):
    network, shape, cost = NETS[net]
    x = jax.random.normal(jax.random.key(1), (5, *shape))
    return network, cost, network.init(KEY, shape)[0], Batch(x, jnp.array([0, 1, 2, 0, 1]))


def gradient(rule, params, batch, state=None):
    known = rule.init(KEY, params)[1] if state is None else state
    return jax.jit(rule.estimate)(params, batch, known, KEY)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


def test_the_estimate_is_the_written_formula():
    """tanh, tanh, linear: targets by differences of inverses, two kinds of local loss."""
    network = chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2))
    step, noise = 0.7, 0.3
    rule = target_propagation(network, squared_error(), step=step, noise=noise)
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(6, 5)), rng.normal(size=(6, 2))
    params, state = rule.init(KEY, network.init(KEY, (5,))[0])
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)), params)
    arrays = jax.tree.map(np.asarray, params)
    (w1, b1), (w2, b2), (w3, b3) = ([arrays[i]["w"], arrays[i]["b"]] for i in (0, 2, 4))
    (v2, c2), (v3, c3) = ([part["w"], part["b"]] for part in arrays[-1]["inverses"].values())
    h1 = np.tanh(x @ w1 + b1)
    h2 = np.tanh(h1 @ w2 + b2)
    h3 = h2 @ w3 + b3
    g2, g3 = (lambda h: np.tanh(h @ v2 + c2)), (lambda h: np.tanh(h @ v3 + c3))
    t3 = h3 - step * (h3 - y)
    t2 = h2 + g3(t3) - g3(h3)
    t1 = h1 + g2(t2) - g2(h2)
    seeds = ((1 - h1**2) * (h1 - t1) / step, (1 - h2**2) * (h2 - t2) / step, (h3 - t3) / step)
    forward = [
        {"w": h.T @ seed / 6, "b": seed.mean(axis=0)}
        for h, seed in zip((x, h1, h2), seeds, strict=True)
    ]
    draws = [
        np.asarray(jax.random.normal(jax.random.fold_in(KEY, l), h.shape, jnp.float32), np.float64)
        for l, h in ((1, h1), (2, h2))
    ]
    n1, n2 = h1 + noise * draws[0], h2 + noise * draws[1]
    u2, u3 = np.tanh(n1 @ w2 + b2), n2 @ w3 + b3
    s2, s3 = (1 - g2(u2) ** 2) * (g2(u2) - n1), (1 - g3(u3) ** 2) * (g3(u3) - n2)
    back = {
        "dense_2": {"w": u2.T @ s2 / 6, "b": s2.mean(axis=0)},
        "dense_3": {"w": u3.T @ s3 / 6, "b": s3.mean(axis=0)},
    }
    expected = (forward[0], (), forward[1], (), forward[2], {"inverses": back})
    ours = gradient(rule, params, Batch(jnp.asarray(x), jnp.asarray(y)), state)
    assert distance(ours.grads, expected) <= 1e-13


@pytest.mark.parametrize("net", NETS)
def test_it_is_the_exact_gradient_of_its_own_losses_in_float32_with_the_same_noise_too(net):
    network, cost, params, batch = problem(net)
    rule = target_propagation(network, cost)
    params, state = rule.init(KEY, params)
    exact = gradient(rule.info.objective, params, batch)
    assert distance(gradient(rule, params, batch, state).grads, exact.grads) <= 1e-13
    single = trees.cast((params, batch, state), jnp.float32)
    ours = jax.jit(rule.estimate)(*single, KEY)[0].grads
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype("f4")}
    again = gradient_fidelity.exact_gradient(
        rule, *single[:2], key=KEY, reference=rule.info.objective
    )
    assert distance(trees.cast(ours, jnp.float64), again.grads) <= 1e-5


@pytest.mark.parametrize("net", NETS)
def test_its_reference_is_the_networks_gradient_with_zeros_for_the_inverses(net):
    network, cost, params, batch = problem(net)
    rule = target_propagation(network, cost)
    exact = gradient(autodiff(network, cost), params, batch)
    params, state = rule.init(KEY, params)
    found = gradient(rule.info.reference, params, batch)
    assert distance(found.grads[:-1], exact.grads) <= 1e-15
    assert all(not leaf.any() for leaf in jax.tree.leaves(found.grads[-1]))
    np.testing.assert_allclose(rule.apply(params, batch.x), exact.output, rtol=1e-14)
    ours = gradient(rule, params, batch, state)
    last = layers.cut(network)[-1].slice  # errors reach it without an inverse
    assert distance(ours.grads[last], exact.grads[last]) <= 1e-13
    assert distance(ours.grads[:-1], exact.grads) > 0.1


def test_in_a_linear_network_whose_inverses_are_transposes_it_is_backprop():
    network = chain(dense(6), layers.linear(), dense(5), layers.linear(), dense(3))
    batch = Batch(jax.random.normal(KEY, (7, 4)), jax.random.normal(KEY, (7, 3)))
    params, _ = network.init(KEY, (4,))
    exact = gradient(autodiff(network, squared_error()), params, batch).grads
    for step in (0.01, 2.0):  # at any step: nothing bends
        rule = target_propagation(network, squared_error(), step=step)
        drawn, state = rule.init(KEY, params)
        transposes = {
            name: {"w": params[i]["w"].T, "b": drawn[-1]["inverses"][name]["b"] + 1}
            for name, i in (("dense_2", 2), ("dense_3", 4))
        }
        ours = gradient(rule, (*params, {"inverses": transposes}), batch, state)
        assert distance(ours.grads[:-1], exact) <= 1e-12


@pytest.mark.parametrize("net", NETS)
def test_an_output_that_is_its_target_moves_no_forward_weight_whatever_the_inverses(net):
    network, _, params, batch = problem(net)
    rule = target_propagation(network, squared_error())
    params, state = rule.init(KEY, params)
    met = Batch(batch.x, rule.apply(params, batch.x))
    ours = jax.jit(rule.estimate)(params, met, state, KEY)[0].grads
    assert float(jnp.sqrt(trees.dot(ours[:-1], ours[:-1]))) <= 1e-12
    assert float(trees.dot(ours[-1], ours[-1])) > 1e-3


def test_descent_on_the_inverses_alone_makes_them_inverses():
    """Noise-free, of a random map to as many units: what comes back is what went in."""
    network = chain(dense(6), layers.tanh(), dense(6), layers.tanh(), dense(2))
    rule = target_propagation(network, squared_error(), noise=0.0)
    params, state = rule.init(KEY, network.init(KEY, (4,))[0])
    x = jax.random.normal(KEY, (64, 4))
    batch = Batch(x, jnp.zeros((64, 2)))
    h1 = jnp.tanh(x @ params[0]["w"])
    h2 = jnp.tanh(h1 @ params[2]["w"])

    def lost(inverses):
        part = inverses["inverses"]["dense_2"]
        return float(jnp.mean((jnp.tanh(h2 @ part["w"] + part["b"]) - h1) ** 2) / jnp.var(h1))

    def one(_, inverses):
        found, _ = rule.estimate((*params[:-1], inverses), batch, state, KEY)
        return trees.sub(inverses, trees.scale(1.0, found.grads[-1]))

    after = jax.jit(lambda start: jax.lax.fori_loop(0, 3000, one, start))(params[-1])
    assert lost(params[-1]) > 0.5
    assert lost(after) < 0.15


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (MLP, {"step": 0.0}, "target_propagation: step = 0.0: must be a number > 0"),
        (MLP, {"noise": -1.0}, "target_propagation: noise = -1.0: must be a number >= 0"),
        (chain(dense(2), layers.tanh()), {}, "no hidden block to have targets"),
        (chain(dense(4), layers.batch_norm(), layers.tanh(), dense(2)), {}, r"\('batch_norm'\)"),
        (
            chain(layers.conv(2, 3), layers.relu(), layers.conv(2, 3), flatten(), dense(2)),
            {},
            r"the inverse of the block 'conv_2' \(conv, flatten, dense\) would not be dense",
        ),
    ],
    ids=["step", "noise", "one block", "batch norm", "conv above"],
)
def test_what_it_cannot_do_is_refused_when_it_is_built(network, settings, message):
    with pytest.raises(ValueError, match=message):
        target_propagation(network, squared_error(), **settings)
