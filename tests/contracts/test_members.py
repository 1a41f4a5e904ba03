"""Every registered layer and rule is a row here, under one contract for each kind."""

import chex
import jax
import jax.numpy as jnp
import pytest

from bpeq import costs, layers, rules, solvers, systems
from bpeq.config.registry import KINDS
from bpeq.config.schema import fields, wires
from bpeq.core import trees
from bpeq.layers import chain, check, dense
from bpeq.types import Batch, Caution, Cost, Layer, System

IMAGE, VECTOR, SERIES, TOKENS = (6, 6, 2), (5,), (4, 6), (4,)
LAYERS = {
    "dense": (lambda: layers.dense(3), VECTOR),
    "flatten": (layers.flatten, IMAGE),
    "conv": (lambda: layers.conv(3, 3), IMAGE),
    "max_pool": (lambda: layers.max_pool(2), IMAGE),
    "avg_pool": (lambda: layers.avg_pool(2), IMAGE),
    "soft_pool": (lambda: layers.soft_pool(2), IMAGE),
    "batch_norm": (layers.batch_norm, VECTOR),
    "layer_norm": (layers.layer_norm, VECTOR),
    "dropout": (lambda: layers.dropout(0.5), VECTOR),
    "embedding": (lambda: layers.embedding(7, 3), TOKENS),
    "position_embedding": (lambda: layers.position_embedding(8), SERIES),
    "attention": (lambda: layers.attention(2), SERIES),
    "rnn": (lambda: layers.rnn(3), SERIES),
    "gru": (lambda: layers.gru(3), SERIES),
    "lstm": (lambda: layers.lstm(3), SERIES),
    "residual": (lambda: layers.residual(layers.dense(5), layers.tanh()), VECTOR),
    "repeat": (lambda: layers.repeat(layers.dense(5), 3), VECTOR),
    "chain": (lambda: layers.chain(layers.dense(2), layers.relu()), VECTOR),
    **{
        name: (getattr(layers, name), VECTOR)
        for name in "linear relu tanh sigmoid hard_sigmoid shifted_sigmoid softplus gelu".split()  # noqa: SIM905
    },
}
NETWORK = chain(dense(4), layers.tanh(), dense(3))
SETTLE = solvers.fixed_steps(5)
RULES = {
    "backprop": lambda: rules.backprop(NETWORK, costs.squared_error()),
    "autodiff": lambda: rules.autodiff(NETWORK, costs.squared_error()),
    "eqprop": lambda: rules.eqprop(
        systems.hopfield(NETWORK), costs.squared_error(), SETTLE, SETTLE
    ),
    "recurrent_backprop": lambda: rules.recurrent_backprop(
        systems.hopfield(NETWORK), costs.squared_error(), SETTLE, SETTLE
    ),
    "vector_field_eqprop": lambda: rules.vector_field_eqprop(
        systems.hopfield(NETWORK), costs.squared_error(), SETTLE, SETTLE
    ),
    "asymmetric_eqprop": lambda: rules.asymmetric_eqprop(
        systems.hopfield(NETWORK), costs.squared_error(), SETTLE, SETTLE
    ),
    "continual_eqprop": lambda: rules.continual_eqprop(
        systems.hopfield(NETWORK), costs.squared_error(), SETTLE, sweeps=5
    ),
    **{
        name: lambda name=name: getattr(rules, name)(NETWORK, costs.squared_error())
        for name in (
            *("feedback_alignment", "direct_feedback_alignment"),
            *("sign_symmetric", "kolen_pollack"),
        )
    },
    "bptt": lambda: rules.bptt(systems.hopfield(NETWORK), costs.squared_error(), sweeps=5),
    "predictive_coding": lambda: rules.predictive_coding(NETWORK, costs.squared_error()),
    "dual_propagation": lambda: rules.dual_propagation(NETWORK, costs.squared_error()),
    "target_propagation": lambda: rules.target_propagation(NETWORK, costs.squared_error()),
    "contrastive_hebbian": lambda: rules.contrastive_hebbian(
        systems.hopfield(NETWORK), costs.squared_error(), SETTLE, SETTLE
    ),
    "coupled_learning": lambda: rules.coupled_learning(
        systems.hopfield(NETWORK), costs.squared_error(), SETTLE, SETTLE
    ),
}
SYSTEMS = {
    "hopfield": lambda: systems.hopfield(NETWORK, skips={(0, 2): dense(3)}),
    "predictive": lambda: systems.predictive(NETWORK),
    "resistive": lambda: systems.resistive(chain(dense(4), layers.linear(), dense(3))),
}
NUDGINGS = ["one-sided", "centered", "random-sign", "holomorphic", "online"]


CONTRASTS = {
    name: key
    for name, factory in KINDS["rules"].items()
    for key in ("beta", "eta", "step")
    if key in fields(factory)
}
"""Rules that divide a contrast, by the setting that they divide by."""


@pytest.mark.parametrize(
    ("kind", "rows"),
    [("layers", LAYERS), ("rules", RULES), ("systems", SYSTEMS)],
    ids=["layers", "rules", "systems"],
)
def test_every_registered_member_is_a_row(kind, rows):
    assert set(KINDS[kind]) == set(rows)


@pytest.mark.parametrize("name", LAYERS)
def test_layer_contract(name):
    """init's shape is forward's; backward mirrors params and x; the dtype stays as it is."""
    make, shape = LAYERS[name]
    layer = make()
    params, out = layer.init(jax.random.key(0), shape)
    for dtype in (jnp.float32, jnp.float64):
        params = trees.cast(params, dtype)
        x = jax.random.normal(jax.random.key(1), (2, *shape), dtype)
        if shape == TOKENS:
            x = jnp.array([[0, 3, 6, 1], [2, 2, 5, 4]], jnp.int32)

        def both(params, x):
            y, residuals = layer.forward(params, x)
            return y, *layer.backward(params, params, residuals, y)

        y, dparams, dx = jax.jit(both)(params, x)
        assert y.shape == (2, *out)
        assert y.dtype == dtype
        assert not jax.eval_shape(both, params, x)[0].weak_type
        assert jax.tree.map(jnp.shape, dparams) == jax.tree.map(jnp.shape, params)
        assert dx is None if shape == TOKENS else dx.shape == x.shape
        assert {leaf.dtype for leaf in jax.tree.leaves((dparams, dx))} == {jnp.dtype(dtype)}
        assert check(layer, params, x, key=jax.random.key(2)).passed


def estimates_of(rule):
    params, _ = NETWORK.init(jax.random.key(0), (5,))
    params, state = rule.init(jax.random.key(1), trees.cast(params, jnp.float32))
    x = jax.random.normal(jax.random.key(2), (4, 5), jnp.float32)
    return params, Batch(x, jnp.array([0, 1, 2, 0], jnp.int32)), state


@pytest.mark.parametrize("name", RULES)
def test_rule_contract(name):
    """grads mirror params; loss is the mean cost of output; apply gives that output."""
    rule = RULES[name]()
    assert rule.name == name
    params, batch, state = estimates_of(rule)
    estimate, after = rule.estimate(params, batch, state, jax.random.key(3))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    same = jax.tree.map(
        lambda g, p: g.shape == p.shape and g.dtype == p.dtype, estimate.grads, params
    )
    assert all(jax.tree.leaves(same))
    assert estimate.loss.dtype == jnp.float32
    chex.assert_trees_all_close(rule.apply(params, batch.x), estimate.output, rtol=1e-6)
    expected = costs.squared_error().value(estimate.output, batch.y).mean()
    chex.assert_trees_all_close(estimate.loss, expected, rtol=1e-6)


@pytest.mark.parametrize("name", RULES)
def test_second_call_of_a_rule_compiles_nothing(name):
    rule = RULES[name]()
    params, batch, state = estimates_of(rule)
    chex.clear_trace_counter()
    estimate = jax.jit(chex.assert_max_traces(rule.estimate, n=1))
    _, state = estimate(params, batch, state, jax.random.key(3))
    moved = jax.tree.map(lambda p: p + 1, params)
    estimate(moved, Batch(batch.x + 1, batch.y), state, jax.random.key(4))


@pytest.mark.parametrize("name", SYSTEMS)
def test_system_contract(name):
    """A fixed point of the sweep has no force; denergy and dforce mirror params; dtypes stay."""
    system = SYSTEMS[name]()
    assert system.name == name
    params, out = system.init(jax.random.key(0), (5,))
    params = trees.cast(trees.scale(0.5, params), jnp.float32)
    assert out == (3,)
    x = jax.random.normal(jax.random.key(2), (4, 5), jnp.float32)
    clamped = system.clamp(params, x)
    start = system.init_state(params, clamped)
    state, info = solvers.fixed_point(1e-6)(lambda s: system.sweep(params, clamped, s), start)
    assert info.converged.all()
    force = system.force(params, clamped, state)
    assert float(trees.max_abs(force).max()) < 1e-5
    assert system.readout.forward(params, state)[0].shape == (4, 3)
    assert system.energy(params, clamped, state).shape == (4,)
    phases = jax.tree.map(lambda s: s[None], state)
    for made in (
        system.denergy(params, clamped, phases, jnp.ones(1, jnp.float32))[0],
        system.dforce(params, clamped, state, state)[0],
    ):
        assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, params)
        assert {leaf.dtype for leaf in jax.tree.leaves((made, state, force))} == {jnp.dtype("f4")}


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_held_output_stays_and_the_other_units_come_to_rest(name):
    """Where a system has a `write`: no force is left on what is not clamped, some on what is."""
    system = SYSTEMS[name]()
    if system.write is None:
        pytest.skip("its output is no state")
    params = trees.scale(0.5, system.init(jax.random.key(0), (5,))[0])
    clamped = system.clamp(params, jax.random.normal(jax.random.key(2), (4, 5)))
    start = system.init_state(params, clamped)
    output = system.readout.forward(params, start)[0] + 0.3
    state, info = solvers.fixed_point(1e-12)(
        lambda s: system.sweep(params, clamped, s, hold=True), system.write(start, output)
    )
    assert info.converged.all()
    chex.assert_trees_all_equal(system.readout.forward(params, state)[0], output)
    force = system.force(params, clamped, state)
    _, free_part = jax.vjp(lambda s: system.write(s, output), state)
    assert float(trees.max_abs(free_part(force)[0]).max()) < 1e-10
    assert float(trees.max_abs(force).max()) > 1e-2


@pytest.mark.parametrize("nudging", NUDGINGS)
def test_changing_beta_compiles_nothing(nudging):
    rule = rules.eqprop(
        systems.hopfield(NETWORK), costs.squared_error(), SETTLE, SETTLE, nudging=nudging
    )
    params, batch, state = estimates_of(rule)
    chex.clear_trace_counter()
    estimate = jax.jit(chex.assert_max_traces(rule.estimate, n=1))
    first, _ = estimate(params, batch, state, jax.random.key(3))
    half = {"beta": state["beta"] / 2}
    second, _ = estimate(params, batch, half, jax.random.key(3))
    gap = trees.max_abs(trees.sub(first.grads[0]["w"], second.grads[0]["w"]))
    assert float(gap.max()) > 0


def test_backprop_and_autodiff_agree_on_the_same_batch():
    by_hand, by_jax = RULES["backprop"](), RULES["autodiff"]()
    params, batch, _ = estimates_of(by_hand)
    params, batch = trees.cast((params, batch), jnp.float64)
    a = by_hand.estimate(params, batch, (), jax.random.key(0))[0]
    b = by_jax.estimate(params, batch, (), jax.random.key(0))[0]
    assert layers.gradient_error(a.grads, b.grads) < 1e-15
    assert float(a.loss) == float(b.loss)


@pytest.mark.parametrize("name", CONTRASTS)
def test_a_nudge_below_the_dtypes_floor_earns_a_warning(name):
    """1,000 ε: 1.2e-4 in float32, 2.2e-13 in float64; above it none, for warnings are errors."""
    parts = {Cost: costs.squared_error(), Layer: NETWORK, System: systems.hopfield(NETWORK)}
    words = {k: parts[w] for k, w in wires(KINDS["rules"][name]).items() if w in parts}
    key, setting = jax.random.key(0), CONTRASTS[name]
    for dtype, floor in ((jnp.float32, "0.0001"), (jnp.float64, "2e-13")):
        params = trees.cast(NETWORK.init(key, VECTOR)[0], dtype)
        for factor in (0.9, 1.1):
            value = factor * 1000 * float(jnp.finfo(dtype).eps)
            rate = {"rate": value / 10} if name == "continual_eqprop" else {}
            rule = getattr(rules, name)(**words, **rate, **{setting: value})
            if factor > 1:
                rule.init(key, params)
                continue
            with pytest.warns(Caution, match=f"^{name}: {setting} = .* is below {floor}, where"):
                rule.init(key, params)


def test_only_rules_with_a_contrast_are_meant():
    names = "eqprop continual_eqprop vector_field_eqprop asymmetric_eqprop coupled_learning "
    assert set(CONTRASTS) == {*names.split(), "dual_propagation", "target_propagation"}
