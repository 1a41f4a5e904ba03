"""Dual propagation: written formulas, the order of its bias in the nudge, where it is exact."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense, flatten
from bpeq.rules import autodiff
from bpeq.rules._dual_propagation import dual_propagation
from bpeq.types import Batch

KEY = jax.random.key(0)
MLP = chain(
    *(flatten(), dense(7), layers.tanh(), dense(6), layers.gelu(), dense(5), layers.sigmoid()),
    dense(3),
)
CNN = chain(
    *(layers.conv(3, 3), layers.max_pool(2), layers.tanh(), layers.conv(4, 2), layers.softplus()),
    *(layers.avg_pool(2), flatten(), dense(3), layers.shifted_sigmoid()),
)
NETS = {"mlp": (MLP, (2, 4)), "cnn": (CNN, (8, 8, 2))}


def problem(net):
    network, shape = NETS[net]
    params = network.init(KEY, shape)[0]
    x = jax.random.normal(jax.random.key(1), (5, *shape))
    return network, params, Batch(x, jnp.array([0, 1, 2, 0, 1]))


def gradient(rule, params, batch):
    params, state = rule.init(KEY, params)
    return jax.jit(rule.estimate)(params, batch, state, KEY)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("sweeps", [1, 3])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_the_estimate_is_the_written_formula(alpha, sweeps):
    """tanh, tanh, logistic, squared error at a large β: dyads from the top down, then the means."""
    network = chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2), layers.sigmoid())
    rng, beta = np.random.default_rng(0), 0.8
    w = [rng.normal(size=shape) for shape in [(5, 4), (4, 3), (3, 2)]]
    b = [rng.normal(size=n) for n in (4, 3, 2)]
    x, y = rng.normal(size=(6, 5)), rng.uniform(size=(6, 2))
    p1 = m1 = np.tanh(x @ w[0] + b[0])
    p2 = m2 = np.tanh(p1 @ w[1] + b[1])
    for _ in range(sweeps):
        a1 = x @ w[0] + b[0]
        a2 = (alpha * p1 + (1 - alpha) * m1) @ w[1] + b[1]
        a3 = (alpha * p2 + (1 - alpha) * m2) @ w[2] + b[2]
        u = -beta * (sigmoid(a3) - y)
        p3, m3 = sigmoid(a3 + (1 - alpha) * u), sigmoid(a3 - alpha * u)
        u = (p3 - m3) @ w[2].T
        p2, m2 = np.tanh(a2 + (1 - alpha) * u), np.tanh(a2 - alpha * u)
        u = (p2 - m2) @ w[1].T
        p1, m1 = np.tanh(a1 + (1 - alpha) * u), np.tanh(a1 - alpha * u)
    gaps = (p1 - m1, p2 - m2, p3 - m3)
    below = (x, alpha * p1 + (1 - alpha) * m1, alpha * p2 + (1 - alpha) * m2)
    expected = [
        {"w": -h.T @ gap / (6 * beta), "b": -gap.sum(axis=0) / (6 * beta)}
        for gap, h in zip(gaps, below, strict=True)
    ]
    parts = [{"w": jnp.asarray(w), "b": jnp.asarray(b)} for w, b in zip(w, b, strict=True)]
    params = (parts[0], (), parts[1], (), parts[2], ())
    rule = dual_propagation(network, squared_error(), alpha=alpha, beta=beta, sweeps=sweeps)
    ours = gradient(rule, params, Batch(jnp.asarray(x), jnp.asarray(y)))
    assert distance(ours.grads, (expected[0], (), expected[1], (), expected[2], ())) <= 1e-13
    assert ours.info["inference"].steps.tolist() == [sweeps] * 6


@pytest.mark.parametrize("sweeps", [1, 10])
@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(("alpha", "order"), [(0.5, 2.0), (0.0, 1.0), (0.25, 1.0), (1.0, 1.0)])
def test_its_error_falls_as_the_square_of_the_nudge_for_alpha_one_half_else_in_proportion(
    net, alpha, order, sweeps
):
    network, params, batch = problem(net)
    cost = squared_error() if net == "cnn" else softmax_cross_entropy()
    exact = gradient(autodiff(network, cost), params, batch).grads
    rule = dual_propagation(network, cost, sweeps=sweeps)
    params, state = rule.init(KEY, params)
    estimate = jax.jit(rule.estimate)  # α and β are traced: one compilation serves the grid
    betas = np.geomspace(1e-1, 1e-3, 5)
    found = []
    for beta in betas:
        known = {"alpha": jnp.asarray(alpha), "beta": jnp.asarray(beta)}
        assert jax.tree.structure(known) == jax.tree.structure(state)
        found.append(distance(estimate(params, batch, known, KEY)[0].grads, exact))
    assert abs(np.polyfit(np.log(betas), np.log(found), 1)[0] - order) <= 0.05
    if alpha == 0.5:
        assert found[-1] <= 1e-5


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_it_is_exact_where_no_unit_of_a_piecewise_linear_network_crosses_a_corner(alpha):
    """Later sweeps change nothing: s̄ is σ(a) wherever both states lie on one side of a corner."""
    network = chain(dense(8), layers.relu(), dense(6), layers.hard_sigmoid(), dense(3))
    params = network.init(KEY, (4,))[0]
    x = jax.random.normal(jax.random.key(1), (5, 4))
    batch = Batch(x, jnp.array([0, 1, 2, 0, 1]))
    exact = gradient(autodiff(network, squared_error()), params, batch).grads
    rule = dual_propagation(network, squared_error(), alpha=alpha, beta=1e-3, sweeps=3)
    assert distance(gradient(rule, params, batch).grads, exact) <= 1e-11


def test_more_sweeps_settle_to_dyads_that_one_more_sweep_leaves_alone():
    network, params, batch = problem("mlp")
    settled = gradient(
        dual_propagation(network, squared_error(), sweeps=30, tolerance=1e-14), params, batch
    )
    assert settled.info["inference"].converged.all()
    once = gradient(dual_propagation(network, squared_error()), params, batch)
    assert not once.info["inference"].converged.any()
    assert 1e-6 < distance(once.grads, settled.grads) < 1e-2


def test_the_note_appears_for_alpha_one_half_only():
    network = NETS["mlp"][0]
    note = dual_propagation(network, squared_error()).info.note
    assert note == "with alpha = 0.5 backprop up to an error of order beta²"
    assert dual_propagation(network, squared_error(), alpha=0.4).info.note == ""


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (MLP, {"alpha": 1.5}, "dual_propagation: alpha = 1.5: must be a number >= 0 and <= 1"),
        (MLP, {"beta": 0.0}, "dual_propagation: beta = 0.0: must be a number > 0"),
        (chain(dense(4), layers.dropout(0.5), dense(2)), {}, r"dual_propagation: layer 1 \('drop"),
        (chain(layers.residual(layers.tanh())), {}, "hides an activation"),
    ],
    ids=["alpha", "beta", "dropout", "residual"],
)
def test_what_it_cannot_do_is_refused_when_it_is_built(network, settings, message):
    with pytest.raises(ValueError, match=message):
        dual_propagation(network, squared_error(), **settings)
