"""Predictive coding: EP on its energy is backprop; both schedules against written formulas."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bpeq import layers
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense, flatten, gradient_error
from bpeq.rules import backprop, eqprop
from bpeq.solvers import fixed_point, fixed_steps
from bpeq.systems import predictive
from bpeq.types import Batch

TIGHT = fixed_point(1e-14, 20_000)
KEY = jax.random.key(0)
MLP = chain(flatten(), dense(7), layers.gelu(), dense(6), layers.tanh(), dense(3))
CNN = chain(
    *(layers.conv(3, 3), layers.max_pool(2), layers.relu(), layers.conv(4, 2), layers.softplus()),
    *(layers.avg_pool(2), flatten(), dense(3), layers.sigmoid()),
)
NETS = {"mlp": (MLP, (2, 4)), "cnn": (CNN, (8, 8, 2))}
SCHEDULES = ["gradient", "sequential"]


def problem(net, **settings):
    network, shape = NETS[net]
    system = predictive(network, **settings)
    params, _ = system.init(KEY, shape)
    x = jax.random.normal(jax.random.key(1), (5, *shape))
    return system, params, x, system.clamp(params, x)


def random_state(system, params, clamped, seed=9):
    start = system.init_state(params, clamped)
    return tuple(jax.random.normal(jax.random.key(seed + i), s.shape) for i, s in enumerate(start))


def relative(ours, exact):
    gap = trees.sub(ours, exact)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(exact, exact)))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("cost", [squared_error(), softmax_cross_entropy()], ids=lambda c: c.name)
@pytest.mark.parametrize(("net", "output"), [*((n, "state") for n in NETS), ("mlp", "readout")])
def test_centered_ep_at_small_beta_is_backprop_of_the_same_network(net, output, cost, schedule):
    system, params, x, _ = problem(net, schedule=schedule, output=output)
    batch = Batch(x, jnp.array([0, 1, 2, 0, 1]))
    exact = backprop(NETS[net][0], cost).estimate(params, batch, (), KEY)[0]
    rule = eqprop(system, cost, TIGHT, fixed_point(1e-13, 20_000), beta=1e-4)
    ours = jax.jit(rule.estimate)(params, batch, rule.init(KEY, params)[1], KEY)[0]
    assert ours.info["nudged"].converged.all()
    np.testing.assert_allclose(ours.output, exact.output, atol=1e-14)
    assert relative(ours.grads, exact.grads) <= 1e-5
    for layer, reference in zip(ours.grads, exact.grads, strict=True):
        assert not jax.tree.leaves(layer) or relative(layer, reference) <= 1e-5


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("net", NETS)
def test_the_free_phase_is_the_forward_pass_and_takes_one_measuring_sweep(net, schedule):
    system, params, x, clamped = problem(net, schedule=schedule)
    start = system.init_state(params, clamped)
    state, info = TIGHT(lambda s: system.sweep(params, clamped, s), start)
    assert info.steps.tolist() == [1] * 5
    assert float(info.residual.max()) <= 1e-14
    output, _ = system.readout.forward(params, state)
    np.testing.assert_allclose(output, NETS[net][0].forward(params, x)[0], atol=1e-15)
    assert system.energy(params, clamped, start).tolist() == [0.0] * 5


def test_predictive_uses_the_networks_own_parameters():
    ours, theirs = predictive(MLP).init(KEY, (2, 4))[0], MLP.init(KEY, (2, 4))[0]
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), ours, theirs)))


def two_blocks(schedule):
    """tanh between two dense connections, its weights, a state and a push, in NumPy."""
    system = predictive(
        chain(dense(4), layers.tanh(), dense(2)), schedule=schedule, step_size=0.125
    )
    params, _ = system.init(KEY, (3,))
    x = jax.random.normal(jax.random.key(1), (5, 3))
    clamped = system.clamp(params, x)
    state = random_state(system, params, clamped)
    push = (jax.random.normal(KEY, (5, 4)), jax.random.normal(KEY, (5, 2)))
    swept = system.sweep(params, clamped, state, lambda s: push)
    arrays = map(np.asarray, (params[0]["w"], params[2]["w"], x, *state, *push))
    return swept, *arrays


def test_a_gradient_sweep_is_the_written_formula():
    """s₁ ← s₁ + ε(−e₁ + (1 − tanh²s₁) ⊙ e₂W₂ᵀ + p₁), s₂ ← s₂ + ε(−e₂ + p₂)."""
    swept, w1, w2, x, s1, s2, p1, p2 = two_blocks("gradient")
    e1, e2 = s1 - x @ w1, s2 - np.tanh(s1) @ w2
    expected = s1 + 0.125 * (-e1 + (1 - np.tanh(s1) ** 2) * (e2 @ w2.T) + p1)
    np.testing.assert_allclose(swept[0], expected, atol=1e-14)
    np.testing.assert_allclose(swept[1], s2 + 0.125 * (p2 - e2), atol=1e-14)


def test_a_sequential_sweep_is_the_written_formula():
    """e₂ = p₂, e₁ = (1 − tanh²s₁) ⊙ e₂W₂ᵀ + p₁; then s₁ ← xW₁ + e₁, s₂ ← tanh(s₁)W₂ + e₂."""
    swept, w1, w2, x, s1, _, p1, p2 = two_blocks("sequential")
    s1 = x @ w1 + (1 - np.tanh(s1) ** 2) * (p2 @ w2.T) + p1
    np.testing.assert_allclose(swept[0], s1, atol=1e-14)
    np.testing.assert_allclose(swept[1], np.tanh(s1) @ w2 + p2, atol=1e-14)


@pytest.mark.parametrize("output", ["state", "readout"])
@pytest.mark.parametrize("net", NETS)
def test_force_denergy_and_dforce_are_derivatives_of_the_energy(net, output):
    system, params, x, clamped = problem(net, output=output)
    state = random_state(system, params, clamped)
    slope = jax.grad(lambda s: system.energy(params, clamped, s).sum())(state)
    assert gradient_error(trees.scale(-1.0, system.force(params, clamped, state)), slope) < 1e-13

    phases = jax.tree.map(
        lambda *s: jnp.stack(s), *(random_state(system, params, clamped, i) for i in (3, 30, 60))
    )
    weights = jnp.array([0.5, -1.5, 0.7])

    def total(params):
        clamped = system.clamp(params, x)
        return weights @ jax.vmap(lambda s: system.energy(params, clamped, s).sum())(phases)

    ours = system.denergy(params, clamped, phases, weights)[0]
    assert gradient_error(ours, jax.grad(total)(params)) < 1e-13

    v = random_state(system, params, clamped, 5)
    exact = jax.vjp(lambda p: system.force(p, system.clamp(p, x), state), params)[1](v)[0]
    assert gradient_error(system.dforce(params, clamped, state, v)[0], exact) < 1e-13


def test_the_energy_is_half_the_squared_errors_of_prediction():
    system, params, _, clamped = problem("mlp")
    s1, s2, s3 = random_state(system, params, clamped)
    gelu, tanh = layers.gelu().activation.value, jnp.tanh
    gaps = [
        s1 - clamped.prediction,
        s2 - gelu(s1) @ params[3]["w"] - params[3]["b"],
        s3 - tanh(s2) @ params[5]["w"] - params[5]["b"],
    ]
    expected = 0.5 * sum(jnp.sum(gap**2, axis=1) for gap in gaps)
    np.testing.assert_allclose(system.energy(params, clamped, (s1, s2, s3)), expected, rtol=1e-14)


@pytest.mark.parametrize("net", NETS)
def test_the_readouts_backward_is_its_vjp(net):
    system, params, _, clamped = problem(net)
    state = random_state(system, params, clamped)
    y, residuals = system.readout.forward(params, state)
    dparams, dstate = system.readout.backward(params, params, residuals, jnp.cos(y))
    exact = jax.vjp(lambda s: system.readout.forward(params, s)[0], state)[1](jnp.cos(y))[0]
    np.testing.assert_allclose(dstate[-1], exact[-1], atol=1e-15)
    assert dstate[:-1] == (None,) * (len(state) - 1)
    assert float(max(jnp.abs(leaf).max() for leaf in jax.tree.leaves(dparams))) == 0.0


@pytest.mark.parametrize("net", NETS)
def test_a_block_that_reads_the_state_out_pulls_back_by_its_vjp_and_holds_no_state(net):
    system, params, x, clamped = problem(net, output="readout")
    network = NETS[net][0]
    start = system.init_state(params, clamped)
    assert len(start) == len(layers.cut(network)) - 1
    y, _ = system.readout.forward(params, start)
    np.testing.assert_allclose(y, network.forward(params, x)[0], atol=1e-15)
    state = random_state(system, params, clamped)
    y, residuals = system.readout.forward(params, state)
    dparams, dstate = system.readout.backward(params, params, residuals, jnp.cos(y))
    forward = lambda p, s: system.readout.forward(p, s)[0]  # noqa: E731
    exact = jax.vjp(forward, params, state)[1](jnp.cos(y))
    assert gradient_error(dparams, exact[0]) < 1e-13
    np.testing.assert_allclose(dstate[-1], exact[1][-1], atol=1e-14)
    assert dstate[:-1] == (None,) * (len(state) - 1)
    assert system.write is None


def test_one_block_has_no_hidden_state_to_be_read_out():
    with pytest.raises(ValueError, match="predictive: output = 'readout' needs a hidden block"):
        predictive(chain(dense(2)), output="readout")


def nudged(system, params, clamped, beta, solver):
    """From the free state, the output pulled toward 1 by β."""
    start = system.init_state(params, clamped)

    def push(state):
        y, residuals = system.readout.forward(params, state)
        return system.readout.backward(params, params, residuals, beta * (1.0 - y))[1]

    return solver(lambda s: system.sweep(params, clamped, s, push), start)


def test_both_schedules_have_the_same_nudged_equilibria_and_sequential_takes_few_sweeps():
    ends = {}
    for schedule in SCHEDULES:
        system, params, _, clamped = problem("mlp", schedule=schedule)
        ends[schedule] = nudged(system, params, clamped, 0.01, TIGHT)
        assert ends[schedule][1].converged.all()
    (slow, long), (quick, short) = ends["gradient"], ends["sequential"]
    for a, b in zip(slow, quick, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    assert int(short.steps.max()) <= 15
    assert int(long.steps.min()) >= 100


def test_a_sequential_sweep_contracts_in_proportion_to_beta():
    system, params, _, clamped = problem("mlp", schedule="sequential")
    factors = []
    for beta in (1e-2, 1e-3, 1e-4):
        # the residual of sweep n is measured at the state before it
        third, fourth = (
            nudged(system, params, clamped, beta, fixed_steps(n))[1].residual for n in (3, 4)
        )
        factors.append(float((fourth / third).max()))
    assert factors[0] < 0.06
    np.testing.assert_allclose(np.divide(factors[:-1], factors[1:]), 10, rtol=0.1)


@pytest.mark.parametrize(("share", "settles"), [(0.98, True), (1.02, False)])
def test_a_gradient_step_is_stable_up_to_two_over_the_largest_curvature(share, settles):
    """In a linear network, where the Hessian is constant and at most (1 + max‖W‖)²."""
    network = chain(dense(4), layers.linear(), dense(3), layers.linear(), dense(2))
    params, _ = network.init(KEY, (3,))
    params = trees.scale(1.5, params)
    x = jnp.ones((1, 3))
    flat, back = ravel_pytree(predictive(network).init_state(params, clamp_of(network, params, x)))
    energy = lambda u: predictive(network).energy(  # noqa: E731
        params, clamp_of(network, params, x), back(u)
    )[0]
    largest = float(jnp.linalg.eigvalsh(jax.hessian(energy)(flat))[-1])
    norm = max(float(jnp.linalg.norm(params[i]["w"], 2)) for i in (2, 4))
    assert largest <= (1 + norm) ** 2
    system = predictive(network, step_size=share * 2 / largest)
    clamped = system.clamp(params, x)
    start = random_state(system, params, clamped)
    _, info = fixed_point(1e-6, 3000)(lambda s: system.sweep(params, clamped, s), start)
    assert bool(info.converged.all()) is settles


def clamp_of(network, params, x):
    return predictive(network).clamp(params, x)


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        (layers.batch_norm(), r"predictive: layer 1 \('batch_norm'\) "),
        (layers.dropout(0.5), r"predictive: layer 1 \('dropout'\) "),
        (layers.residual(dense(4), layers.tanh()), r"layer 1 \('residual'\) hides an activation"),
    ],
)
def test_layers_without_a_per_example_energy_are_refused_by_place_and_name(inner, message):
    with pytest.raises(ValueError, match=message):
        predictive(chain(dense(4), inner, layers.tanh(), dense(2)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"schedule": "alternating"}, r"must be 'gradient' \| 'sequential'"),
        ({"step_size": 0.0}, "step_size = 0.0: must be a number > 0"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"predictive: .*{message}"):
        predictive(MLP, **settings)


def test_write_sets_the_output_where_it_is_a_state():
    assert predictive(CNN).write is None  # the output is σ(s_L), behind a sigmoid
    system, params, _, clamped = problem("mlp")
    state = system.write(random_state(system, params, clamped), jnp.ones((5, 3)))
    assert system.readout.forward(params, state)[0].tolist() == [[1.0] * 3] * 5


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (chain(dense(2), layers.tanh(), dense(1), layers.softplus()), ""),
        (MLP, "layer 2 ('gelu') is not complex-differentiable"),
    ],
)
def test_the_first_part_that_is_not_complex_differentiable_is_named(network, reason):
    assert predictive(network).traits.not_holomorphic == reason
