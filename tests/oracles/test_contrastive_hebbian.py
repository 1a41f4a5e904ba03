"""Contrastive Hebbian learning: its formula, its objective, its limit of weak feedback."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense
from bpeq.rules import autodiff, contrastive_hebbian
from bpeq.solvers import fixed_point
from bpeq.systems import from_energy, from_field, hopfield, predictive
from bpeq.types import Batch, Cost

KEY = jax.random.key(0)
TIGHT = fixed_point(1e-15, 3000)
CHAIN = [dense(6), layers.tanh(), dense(5), layers.tanh(), dense(3)]


def at(network, scale=0.7, batch=5):
    params = trees.scale(scale, network.init(KEY, (4,))[0])
    x = jax.random.normal(jax.random.key(1), (batch, 4))
    return params, Batch(x, jax.random.uniform(jax.random.key(2), (batch, 3)))


def gradient(rule, params, batch):
    return jax.jit(rule.estimate)(params, batch, rule.init(KEY, params)[1], KEY)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


@pytest.mark.parametrize("schedule", ["alternating", "synchronous"])
@pytest.mark.parametrize("gain", [0.4, 1.0])
def test_it_is_xie_and_seungs_update_with_the_sign_turned(gain, schedule):
    """ΔW_l ∝ γ^(l−3) (s_l s_{l−1} clamped − free), both phases settled here, in NumPy."""
    network = chain(*CHAIN)
    params, batch = at(network)
    w = [np.asarray(params[i]["w"]) for i in (0, 2, 4)]
    b = [np.asarray(params[i]["b"]) for i in (0, 2, 4)]
    x, y = np.asarray(batch.x), np.asarray(batch.y)

    def settle(held):
        s1, s2, s3 = np.zeros((5, 6)), np.zeros((5, 5)), np.zeros((5, 3)) if held is None else held
        for _ in range(500):
            s1 = np.tanh(x @ w[0] + b[0] + gain * s2 @ w[1].T)
            s2 = np.tanh(s1 @ w[1] + b[1] + gain * s3 @ w[2].T)
            s3 = s2 @ w[2] + b[2] if held is None else held
        return [x, s1, s2, s3]

    free, clamped = settle(None), settle(y)
    rule = contrastive_hebbian(
        hopfield(network, schedule=schedule, gain=gain), squared_error(), TIGHT, TIGHT
    )
    ours = gradient(rule, params, batch)
    for l in (1, 2, 3):
        scale = gain ** (l - 3) / 5
        update = scale * (clamped[l - 1].T @ clamped[l] - free[l - 1].T @ free[l])
        np.testing.assert_allclose(ours.grads[2 * l - 2]["w"], -update, rtol=0, atol=1e-12)
        bias = scale * (clamped[l] - free[l]).sum(axis=0)
        np.testing.assert_allclose(ours.grads[2 * l - 2]["b"], -bias, rtol=0, atol=1e-12)
    np.testing.assert_allclose(ours.output, free[3], atol=1e-13)
    np.testing.assert_allclose(ours.loss, np.mean(np.sum((free[3] - y) ** 2, axis=1)) / 2)
    assert ours.info["clamped"].converged.shape == (1, 5)


def springs():
    """Masses on a line of springs, the last one the output: any smooth energy of a user's own."""

    def energy(p, s, x):
        ends = jnp.concatenate([x, s])
        stretch = ends[1:] - ends[:-1]
        return jnp.sum(p["k"] * (0.5 * stretch**2 + 0.1 * stretch**4)) + jnp.sum(p["f"] * s)

    def init(key, shape):
        return {"k": jnp.linspace(0.5, 1.5, 4), "f": jnp.linspace(-0.3, 0.2, 4)}, (1,)

    return from_energy(
        energy, lambda p, x: jnp.zeros(4), lambda p, s: s[-1:], init,
        step_size=0.2, write=lambda s, o: s.at[-1].set(o[0]),
    )  # fmt: skip


def case(which):
    if which == "springs":
        x = jax.random.normal(jax.random.key(1), (5, 1))
        return springs(), springs().init(KEY, (1,))[0], Batch(x, 0.5 * x + 1.0)
    network = chain(*CHAIN)
    params, batch = at(network)
    if which == "hopfield":
        skips = {(0, 2): dense(5), (1, 3): dense(3)}
        system = hopfield(network, skips=skips, gain=0.6)
        return system, trees.scale(0.7, system.init(KEY, (4,))[0]), batch
    settings = {"sequential": {"schedule": "sequential"}, "gradient": {}}[which]
    return predictive(network, **settings), trees.scale(0.6, params), batch


CASES = ["hopfield", "gradient", "sequential", "springs"]


def held_equilibria(system, params, batch):
    """s⁰ and s¹ by steepest descent on E, the output pinned; neither sweeps nor solvers of bpeq."""
    clamped = system.clamp(params, batch.x)
    rate, steps = (0.02, 20_000) if system.name == "hopfield" else (0.15, 6000)

    def descend(state, pinned):
        def move(state, _):
            slope = jax.grad(lambda s: system.energy(params, clamped, s).sum())(state)
            moved = jax.tree.map(lambda s, g: s - rate * g, state, slope)
            return (system.write(moved, batch.y) if pinned else moved), None

        return jax.lax.scan(move, state, length=steps)[0]

    start = system.init_state(params, clamped)
    free = jax.jit(lambda s: descend(s, False))(start)
    return free, jax.jit(lambda s: descend(s, True))(system.write(free, batch.y))


@pytest.mark.parametrize("which", CASES)
def test_it_is_autodiff_of_the_energy_clamped_minus_free_with_the_states_held(which):
    system, params, batch = case(which)
    free, held = held_equilibria(system, params, batch)

    def gap(params):
        at = system.clamp(params, batch.x)
        return jnp.mean(system.energy(params, at, held) - system.energy(params, at, free))

    value, exact = jax.value_and_grad(gap)(params)
    ours = gradient(contrastive_hebbian(system, squared_error(), TIGHT, TIGHT), params, batch)
    assert ours.info["clamped"].converged.all()
    assert distance(ours.grads, exact) < 1e-8
    own = gradient(contrastive_hebbian(system, squared_error()).info.objective, params, batch)
    assert distance(own.grads, exact) < 1e-8
    np.testing.assert_allclose(own.loss, value, rtol=1e-8)
    assert value > 1e-2


@pytest.mark.parametrize("which", ["hopfield", "springs"])
def test_its_objective_is_differentiated_as_a_function_of_the_weights_with_states_that_follow(
    which,
):
    """Central differences along a random direction of E_clamped − E_free, settled anew."""
    system, params, batch = case(which)
    objective = contrastive_hebbian(system, squared_error()).info.objective
    direction = jax.tree.map(lambda p: jax.random.normal(KEY, p.shape), params)
    value = jax.jit(lambda p: objective.estimate(p, batch, (), KEY)[0].loss)
    h = 1e-4
    up, down = (value(trees.add(params, trees.scale(s * h, direction))) for s in (1.0, -1.0))
    exact = gradient(objective, params, batch)
    assert all(solve.converged.all() for solve in exact.info.values())
    np.testing.assert_allclose((up - down) / (2 * h), trees.dot(exact.grads, direction), rtol=1e-6)


def logistic_cost():
    """Σ_k −y log o − (1−y) log(1−o) of logistic outputs, whose ∂C/∂z is o − y."""

    def value(o, y):
        return -jnp.sum(y * jnp.log(o) + (1 - y) * jnp.log1p(-o), axis=1)

    return Cost("logistic", value, lambda o, y: (o - y) / (o * (1 - o)))


LIMITS = {
    "linear outputs, squared error": ([], squared_error(), 1.0),
    "logistic outputs, cross-entropy": ([layers.sigmoid()], logistic_cost(), 1.0),
    "shifted logistic outputs, a quarter of it": ([layers.shifted_sigmoid()], logistic_cost(), 4.0),
}


def errors_over_gains(last, exact_of, skips=None, gains=(3e-2, 1e-2, 3e-3, 1e-3)):
    network = chain(*CHAIN, *last)
    params, batch = at(network)
    params = hopfield(network, skips=skips).init(KEY, (4,))[0] if skips else params
    exact = exact_of(network, params, batch)
    errors = []
    for gain in gains:
        system = hopfield(network, skips=skips, gain=gain)
        rule = contrastive_hebbian(system, squared_error(), TIGHT, TIGHT)
        ours = gradient(rule, params, batch).grads
        errors.append(distance(ours, exact))
    return np.log(gains), np.log(errors)


@pytest.mark.parametrize("which", LIMITS)
def test_with_weak_feedback_it_is_backprop_with_an_error_of_order_gamma(which):
    last, cost, times = LIMITS[which]

    def exact(network, params, batch):
        return trees.scale(1 / times, gradient(autodiff(network, cost), params, batch).grads)

    gains, errors = errors_over_gains(last, exact)
    assert abs(np.polyfit(gains, errors, 1)[0] - 1) <= 0.05
    assert errors[-1] < np.log(5e-3)


def test_with_weak_feedback_a_skip_adds_its_own_path_as_in_backprop():
    """The map with a skip, differentiated by JAX: z₃ = f₃(s₂) + f₁₃(s₁)."""

    def exact(network, params, batch):
        def loss(p):
            s1 = jnp.tanh(batch.x @ p[0]["w"] + p[0]["b"])
            s2 = jnp.tanh(s1 @ p[2]["w"] + p[2]["b"])
            skip = p[-1]["skips"]["1_3"]
            o = s2 @ p[4]["w"] + p[4]["b"] + s1 @ skip["w"] + skip["b"]
            return jnp.mean(jnp.sum((o - batch.y) ** 2, axis=1)) / 2

        return jax.grad(loss)(params)

    gains, errors = errors_over_gains([], exact, {(1, 3): dense(3)})
    assert abs(np.polyfit(gains, errors, 1)[0] - 1) <= 0.05


def test_with_weak_feedback_the_squared_error_of_logistic_outputs_is_another_cost():
    def exact(network, params, batch):
        return gradient(autodiff(network, squared_error()), params, batch).grads

    _, errors = errors_over_gains([layers.sigmoid()], exact, gains=(1e-2, 1e-3))
    assert min(errors) > np.log(0.5)


def test_labels_stand_for_one_hot_targets_and_any_cost_gives_the_same_gradient():
    network = chain(*CHAIN)
    params, batch = at(network)
    labels = jnp.array([0, 2, 1, 1, 0])
    system = hopfield(network, gain=0.5)
    by_vector, by_label, other = (
        gradient(contrastive_hebbian(system, cost, TIGHT, TIGHT), params, Batch(batch.x, y))
        for cost, y in (
            (squared_error(), jax.nn.one_hot(labels, 3)),
            (squared_error(), labels),
            (softmax_cross_entropy(), labels),
        )
    )
    assert distance(by_label.grads, by_vector.grads) == 0.0
    assert distance(other.grads, by_vector.grads) == 0.0
    assert float(other.loss) != float(by_label.loss)


def test_systems_that_cannot_serve_are_refused_by_name_with_those_rules_that_do():
    field = from_field(
        lambda p, s, x: x - s, lambda p, x: x, lambda p, s: s, lambda k, shape: ((), shape)
    )
    with pytest.raises(ValueError, match="'from_field' has no energy; rules that serve: vector_"):
        contrastive_hebbian(field, squared_error())
    with pytest.raises(ValueError, match="'hopfield' has no energy"):
        contrastive_hebbian(hopfield(chain(*CHAIN), feedback="untied"), squared_error())
    readout = hopfield(chain(*CHAIN), output="readout")
    with pytest.raises(ValueError, match="'hopfield' cannot clamp its output, which is"):
        contrastive_hebbian(readout, softmax_cross_entropy())
