"""Untied feedback and where the nudge enters, against written formulas and the force's own vjp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from bpeq import layers
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense, flatten, gradient_error
from bpeq.rules import (
    asymmetric_eqprop,
    continual_eqprop,
    eqprop,
    free_phase,
    nudged_phases,
    recurrent_backprop,
    vector_field_eqprop,
)
from bpeq.solvers import fixed_point
from bpeq.systems import hopfield
from bpeq.types import Batch, Cost

TIGHT = fixed_point(1e-14, 5000)
KEY = jax.random.key(0)


def network(name="tanh"):
    act = getattr(layers, name)
    return chain(flatten(), dense(6), act(), dense(5), act(), dense(4), act(), dense(3))


def image_network():
    """Between states: pooling, a drawn bias; and two weights and a gain in one connection."""
    act = layers.sigmoid
    return chain(
        *(layers.conv(3, 3), act(), layers.conv(4, 3, bias_init="normal"), layers.max_pool(2)),
        *(act(), flatten(), dense(5), layers.layer_norm(), dense(3)),
    )


SKIPS = {(1, 3): dense(4), (0, 2): chain(flatten(), dense(5))}
NETS = {"mlp": (network(), (2, 4), SKIPS), "image": (image_network(), (6, 6, 2), None)}


def at_rest(system, shape=(2, 4)):
    params, _ = system.init(KEY, shape)
    x = jax.random.normal(jax.random.key(1), (5, *shape))
    return params, x, system.clamp(params, x)


def random_state(system, params, clamped, seed=9):
    start = system.init_state(params, clamped)
    return tuple(jax.random.uniform(jax.random.key(seed + i), s.shape) for i, s in enumerate(start))


def feedback_pairs(network, params):
    """(W, B) of every leaf that feedback reads, by connection."""
    blocks = {block.name: block for block in layers.cut(network)}
    for name, back in params[-1]["feedback"].items():
        own = params[-2]["skips"][name] if name[0].isdigit() else params[blocks[name].slice]
        yield from zip(jax.tree.leaves(own), jax.tree.leaves(back), strict=True)


@pytest.mark.parametrize("angle", [0, 30, 90, 135, 180])
@pytest.mark.parametrize("net", NETS)
def test_feedback_is_drawn_at_the_angle_and_of_the_norm_of_the_forward_weights(net, angle):
    layered, shape, skips = NETS[net]
    system = hopfield(layered, skips=skips, feedback="untied", angle=angle)
    params, _ = system.init(KEY, shape)
    turned = 0
    for w, b in feedback_pairs(layered, params):
        w, b = np.asarray(w).ravel(), np.asarray(b).ravel()
        np.testing.assert_allclose(np.linalg.norm(b), np.linalg.norm(w), rtol=1e-13)
        if w.any() and (w != w[0]).any():  # a gain of ones or a bias of zeros has no second draw
            turned += 1
            cosine = w @ b / np.linalg.norm(w) ** 2
            assert abs(cosine - np.cos(np.radians(angle))) < 1e-13
        else:
            assert (w == b).all()
        if angle == 0:
            assert (w == b).all()
    assert turned == 4  # three weights and a skip's; three weights and a bias


def test_every_connection_but_the_inputs_carries_feedback():
    params, _ = hopfield(network(), skips=SKIPS, feedback="untied").init(KEY, (2, 4))
    assert sorted(params[-1]["feedback"]) == ["1_3", "dense_2", "dense_3", "dense_4"]
    assert sorted(params[-2]["skips"]) == ["0_2", "1_3"]
    tied, _ = hopfield(network(), skips=SKIPS).init(KEY, (2, 4))
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params[:-1], tied)
    assert all(jax.tree.leaves(same))


def test_untied_at_angle_zero_moves_as_the_tied_system_does():
    tied, untied = (
        hopfield(network(), skips=SKIPS, feedback=feedback, angle=0)
        for feedback in ("tied", "untied")
    )
    params, x, clamped = at_rest(untied)
    state = random_state(untied, params, clamped)
    ours = untied.sweep(params, clamped, state)
    theirs = tied.sweep(params[:-1], tied.clamp(params[:-1], x), state)
    assert all(bool((a == b).all()) for a, b in zip(ours, theirs, strict=True))


def test_an_untied_system_has_no_energy_and_eqprop_refuses_it():
    system = hopfield(network(), feedback="untied")
    assert system.energy is None
    assert system.denergy is None
    with pytest.raises(ValueError, match="has no energy"):
        eqprop(system, squared_error())


def test_an_untied_sweep_is_the_written_formula():
    """s₁ ← tanh(xW₁ + b₁ + s₂B₂ᵀ), s₂ ← s₁W₂ + b₂, in NumPy."""
    system = hopfield(chain(dense(4), layers.tanh(), dense(2)), feedback="untied", angle=60)
    params, x, clamped = at_rest(system, (3,))
    s1, s2 = map(np.asarray, random_state(system, params, clamped))
    w1, w2 = np.asarray(params[0]["w"]), np.asarray(params[2]["w"])
    b2 = np.asarray(params[-1]["feedback"]["dense_2"][0]["w"])
    assert np.abs(b2 - w2).max() > 0.1
    swept = system.sweep(params, clamped, (jnp.asarray(s1), jnp.asarray(s2)))
    s1 = np.tanh(np.asarray(x) @ w1 + s2 @ b2.T)
    np.testing.assert_allclose(swept[0], s1, atol=1e-14)
    np.testing.assert_allclose(swept[1], s1 @ w2, atol=1e-14)


@pytest.mark.parametrize(("feedback", "symmetric"), [("tied", True), ("untied", False)])
def test_the_forces_jacobian_is_symmetric_only_where_weights_are_tied(feedback, symmetric):
    system = hopfield(network("sigmoid"), skips=SKIPS, feedback=feedback)
    params, x, _ = at_rest(system)
    clamped = system.clamp(params, x[:1])
    state = random_state(system, params, clamped)
    flat, back = ravel_pytree(state)
    force = lambda u: ravel_pytree(  # noqa: E731
        system.force(params, clamped, back(u))
    )[0]
    jacobian = jax.jacfwd(force)(flat)
    gap = float(jnp.abs(jacobian - jacobian.T).max())
    assert gap < 1e-14 if symmetric else gap > 0.1


@pytest.mark.parametrize("net", NETS)
def test_untied_dforce_is_the_pull_back_of_the_force_by_forward_and_feedback_weights(net):
    network, shape, skips = NETS[net]
    system = hopfield(network, skips=skips, feedback="untied", angle=70)
    params, x, clamped = at_rest(system, shape)
    state, v = (random_state(system, params, clamped, seed) for seed in (9, 50))
    force = lambda p: system.force(p, system.clamp(p, x), state)  # noqa: E731
    exact = jax.vjp(force, params)[1](v)[0]
    ours = system.dforce(params, clamped, state, v)[0]
    assert jax.tree.structure(ours) == jax.tree.structure(params)
    assert gradient_error(ours, exact) < 1e-13
    read = [jnp.abs(leaf).max() for leaf in jax.tree.leaves(exact[-1]["feedback"])]
    assert float(max(read)) > 0.1


def test_untied_dforce_is_the_central_difference_of_the_force():
    """Along a random direction of all weights, without autodiff."""
    system = hopfield(network(), skips=SKIPS, feedback="untied")
    params, x, clamped = at_rest(system)
    state, v = (random_state(system, params, clamped, seed) for seed in (9, 50))
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(KEY, len(leaves))
    drawn = [jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    direction = jax.tree.unflatten(structure, drawn)

    def along(h):
        moved = trees.add(params, trees.scale(h, direction))
        return trees.dot(v, system.force(moved, system.clamp(moved, x), state))

    exact = (along(1e-5) - along(-1e-5)) / 2e-5
    ours = trees.dot(direction, system.dforce(params, clamped, state, v)[0])
    np.testing.assert_allclose(ours, exact, rtol=1e-9)


def test_the_nudge_of_an_untied_readout_comes_back_through_the_readouts_own_weights():
    net = chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2))
    system = hopfield(net, output="readout", feedback="untied")
    params, _, clamped = at_rest(system, (3,))
    assert sorted(params[-1]["feedback"]) == ["dense_2"]
    state = random_state(system, params, clamped)
    _, residuals = system.readout.forward(params, state)
    dparams, pulled = system.readout.backward(params, params, residuals, jnp.ones((5, 2)))
    np.testing.assert_allclose(pulled[1], jnp.ones((5, 2)) @ params[4]["w"].T, atol=1e-15)
    assert pulled[0] is None
    assert jax.tree.structure(dparams) == jax.tree.structure(params)


@pytest.mark.parametrize("nudge", ["inside", "outside"])
def test_the_push_enters_inside_sigma_or_outside_it(nudge):
    system = hopfield(chain(dense(4), layers.sigmoid(), dense(2), layers.sigmoid()), nudge=nudge)
    params, x, clamped = at_rest(system, (3,))
    s1, s2 = random_state(system, params, clamped)
    beta, y = 0.3, jnp.ones((5, 2))
    swept = system.sweep(params, clamped, (s1, s2), lambda s: (None, -beta * (s[1] - y)))
    sigma = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    s1 = sigma(np.asarray(x @ params[0]["w"] + s2 @ params[2]["w"].T))
    z2, push = s1 @ np.asarray(params[2]["w"]), beta * np.asarray(y - s2)
    expected = sigma(z2 + push) if nudge == "inside" else sigma(z2) + push
    np.testing.assert_allclose(swept[1], expected, atol=1e-14)
    np.testing.assert_allclose(swept[0], s1, atol=1e-14)  # which gets no push


def test_a_push_of_squared_error_outside_a_logistic_output_follows_the_cross_entropy():
    """σ⁻¹(s) = drive + push/σ′ to first order; (s − y)/(s(1−s)) is the cross-entropy's slope."""
    net = chain(dense(4), layers.tanh(), dense(2), layers.sigmoid())
    outside = hopfield(net, nudge="outside")
    params, x, _ = at_rest(outside, (3,))
    batch = Batch(x, jax.random.uniform(KEY, (5, 2)))
    entropy = Cost(
        "binary_cross_entropy",
        lambda s, y: -jnp.sum(y * jnp.log(s) + (1 - y) * jnp.log(1 - s), axis=1),
        lambda s, y: (s - y) / (s * (1 - s)),
    )
    ours = grads(eqprop(outside, squared_error(), TIGHT, TIGHT, beta=1e-4), params, batch)
    exact = grads(recurrent_backprop(hopfield(net), entropy, TIGHT, TIGHT), params, batch)
    other = grads(recurrent_backprop(hopfield(net), squared_error(), TIGHT, TIGHT), params, batch)
    assert gradient_error(ours, exact) < 1e-6
    assert gradient_error(ours, other) > 0.1


@pytest.mark.parametrize("rule", [eqprop, continual_eqprop, vector_field_eqprop])
def test_a_rule_nudged_outside_sigma_follows_that_cost_and_names_it(rule):
    net = chain(dense(4), layers.tanh(), dense(2), layers.shifted_sigmoid())
    outside = hopfield(net, nudge="outside")
    params, x, _ = at_rest(outside, (3,))
    batch = Batch(x, jnp.array([0, 1, 1, 0, 1]))
    objective = rule(outside, squared_error()).info.objective
    assert objective.name.startswith("a quarter of the binary cross-entropy")
    quarter = Cost(
        "quarter",
        lambda s, y: jnp.zeros(len(s)),
        lambda s, y: (s - jax.nn.one_hot(y, 2)) / (4 * s * (1 - s)),
    )
    rest = free_phase(hopfield(net), TIGHT, params, batch.x)
    betas = jnp.array([1e-4, -1e-4])
    phases, _ = nudged_phases(hopfield(net), quarter, TIGHT, params, rest, batch.y, betas)
    weights = jnp.array([0.5, -0.5]) / (1e-4 * len(batch.x))
    theirs = hopfield(net).denergy(params, rest.clamped, phases, weights)[0]
    assert gradient_error(grads(objective, params, batch), theirs) < 1e-6
    assert rule(hopfield(net), squared_error()).info.objective is None
    linear = hopfield(chain(dense(4), layers.tanh(), dense(2)), nudge="outside")  # σ′ = 1
    assert rule(linear, squared_error()).info.objective is None


@pytest.mark.parametrize("output", ["state", "readout"])
def test_that_objective_is_the_limit_of_eqprop_for_any_cost_and_readout(output):
    net = chain(dense(4), layers.tanh(), dense(3), layers.sigmoid())
    outside = hopfield(net, nudge="outside", output=output)
    params, x, _ = at_rest(outside, (3,))
    batch, cost = Batch(x, jnp.array([0, 1, 2, 0, 1])), softmax_cross_entropy()
    rule = eqprop(outside, cost, TIGHT, TIGHT, beta=1e-4)
    assert rule.info.objective.name.startswith("the slope (1/σ′) ∂C/∂s")
    ours = grads(rule, params, batch)
    assert gradient_error(ours, grads(rule.info.objective, params, batch)) < 1e-6
    assert gradient_error(ours, grads(rule.info.reference, params, batch)) > 0.01


def test_without_an_energy_the_rule_says_in_its_note_what_its_nudge_is():
    net = chain(dense(4), layers.tanh(), dense(2), layers.sigmoid())
    rule = vector_field_eqprop(hopfield(net, nudge="outside", feedback="untied"), squared_error())
    assert rule.info.objective is None
    assert (
        rule.info.note
        == "follows the binary cross-entropy (to first order: the nudge is outside σ)"
    )


@pytest.mark.parametrize("last", [(), (layers.sigmoid(),)], ids=["linear", "sigmoid"])
def test_asymmetric_ep_refuses_a_nudge_outside_sigma_and_names_what_serves(last):
    """Hidden units have a σ too, and the correction would stand outside of theirs."""
    outside = hopfield(chain(dense(4), layers.tanh(), dense(2), *last), nudge="outside")
    with pytest.raises(
        ValueError, match=r"outside of its σ.*allowed: nudge = 'inside', or the rule"
    ):
        asymmetric_eqprop(outside, squared_error())


def grads(rule, params, batch):
    params, state = rule.init(KEY, params)
    return jax.jit(rule.estimate)(params, batch, state, KEY)[0].grads


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"feedback": "loose"}, r"feedback = 'loose': must be 'tied' \| 'untied'"),
        ({"angle": -1.0}, "angle = -1.0: must be a number >= 0 and <= 180"),
        ({"angle": 181}, "angle = 181: must be a number >= 0 and <= 180"),
        ({"nudge": "beside"}, r"nudge = 'beside': must be 'inside' \| 'outside'"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"hopfield: {message}"):
        hopfield(network(), **settings)


NOT_HOLOMORPHIC = [
    (chain(dense(2), layers.tanh(), dense(2), layers.sigmoid(), dense(1)), None, ""),
    (chain(dense(2), layers.relu(), dense(2), layers.hard_sigmoid()), None, r"layer 1 \('relu'\) "),
    (chain(layers.conv(2, 3), layers.max_pool(2), layers.tanh()), None, r"layer 1 \('max_pool'\) "),
    (
        chain(layers.conv(2, 3), layers.tanh(), flatten(), dense(2)),
        {(0, 2): chain(layers.max_pool(2), flatten(), dense(2))},
        r"the skip 0-2 \('chain'\) ",
    ),
    (chain(layers.repeat(layers.max_pool(1), 2), layers.tanh()), None, r"layer 0 \('repeat'\) "),
]


@pytest.mark.parametrize(("net", "skips", "reason"), NOT_HOLOMORPHIC)
def test_the_first_part_that_is_not_complex_differentiable_is_named(net, skips, reason):
    found = hopfield(net, skips=skips).traits.not_holomorphic
    assert (found == "") is (reason == "")
    assert pytest.RaisesExc(ValueError, match=f"^{reason}").matches(ValueError(found))


def test_a_system_without_a_reason_is_complex_differentiable():
    """The sweep along an imaginary step against its forward derivative."""
    net = chain(layers.conv(3, 3), layers.soft_pool(2), layers.sigmoid(), flatten(), dense(3))
    system = hopfield(net, skips={(0, 2): chain(flatten(), dense(3))})
    assert system.traits.not_holomorphic == ""
    params, x, clamped = at_rest(system, (6, 6, 1))
    state, v = (random_state(system, params, clamped, seed) for seed in (9, 50))
    exact = jax.jvp(lambda s: system.sweep(params, clamped, s), (state,), (v,))[1]
    step = jax.tree.map(lambda s, ds: jax.lax.complex(s, 1e-30 * ds), state, v)
    complex_params, complex_x = jax.tree.map(lambda a: a.astype(complex), (params, x))
    swept = system.sweep(complex_params, system.clamp(complex_params, complex_x), step)
    for ours, expected in zip(swept, exact, strict=True):
        np.testing.assert_allclose(ours.imag / 1e-30, expected, atol=1e-12)
