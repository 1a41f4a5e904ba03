"""Where free phases start: never what a settled one ends in, only how many sweeps it takes."""

import inspect

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpeq import layers, rules
from bpeq.config.registry import KINDS
from bpeq.config.schema import fields, wires
from bpeq.core import trees
from bpeq.costs import squared_error
from bpeq.layers import chain, dense
from bpeq.rules._relaxing import Remembering
from bpeq.settings import checked
from bpeq.solvers import fixed_point, fixed_steps
from bpeq.systems import from_field, hopfield, predictive, resistive
from bpeq.systems.devices import imperfect
from bpeq.training.loops import epoch_scan, over_seeds, start, supervised, train
from bpeq.types import Batch, Solver, System

KEY = jax.random.key(0)
NETWORK = chain(dense(9), layers.tanh(), dense(7), layers.tanh(), dense(3))
CIRCUIT = chain(dense(9), layers.relu(), dense(7), layers.relu(), dense(3))
SYSTEMS = {
    "hopfield": lambda: hopfield(NETWORK),
    "skips": lambda: hopfield(NETWORK, skips={(0, 2): dense(7)}),
    "predictive": lambda: predictive(NETWORK),
    "resistive": lambda: resistive(CIRCUIT, gain=10.0),
}
RELAXING = [name for name, factory in KINDS["rules"].items() if System in wires(factory).values()]
SETTLE = fixed_point(1e-11, 3000)


def problem(name="hopfield", scale=0.6, n=6):
    system = SYSTEMS[name]()
    params = trees.scale(scale, system.init(KEY, (5,))[0])
    x = jax.random.normal(jax.random.key(1), (n, 5))
    y = jax.random.normal(jax.random.key(2), (n, 3))
    return system, params, Batch(x, y, jnp.arange(n))


def started(rule, params, x, batch_size):
    """(params, state) with room for what the rule remembers."""
    params, state = rule.init(KEY, params)
    return params, state if rule.prepare is None else rule.prepare(params, state, x, batch_size)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


# --- the settings ------------------------------------------------------------------------------


def test_every_rule_on_a_system_has_both_settings_and_says_so():
    assert len(RELAXING) >= 6
    for name in RELAXING:
        factory = KINDS["rules"][name]
        assert wires(factory)["evaluation"] is Solver, name
        assert fields(factory)["start"][1] == "own", name
        assert "evaluation: solver of the free phases of inference" in inspect.getdoc(factory)
        assert "start: where an estimate's free phase starts" in inspect.getdoc(factory)


@pytest.mark.parametrize("name", RELAXING)
def test_by_default_a_rule_is_its_kernel_alone_to_the_last_bit(name):
    system, params, batch = problem()
    factory = KINDS["rules"][name]
    plain = checked(inspect.unwrap(factory))(system, squared_error())
    rule = factory(system, squared_error())
    assert rule.prepare is None
    state = rule.init(KEY, params)[1]
    ours, theirs = (jax.jit(r.estimate)(params, batch, state, KEY) for r in (rule, plain))
    same(ours, theirs)
    same(rule.apply(params, batch.x), plain.apply(params, batch.x))


@pytest.mark.parametrize("name", RELAXING)
def test_inference_settles_by_the_evaluation_solver_and_training_by_its_own(name):
    system, params, batch = problem()
    factory, few = KINDS["rules"][name], fixed_steps(2)
    plain = factory(system, squared_error())
    rule = factory(system, squared_error(), evaluation=few)
    clamped = system.clamp(params, batch.x)
    state, _ = few(lambda s: system.sweep(params, clamped, s), system.init_state(params, clamped))
    np.testing.assert_array_equal(rule.apply(params, batch.x), state[-1])
    assert float(jnp.abs(plain.apply(params, batch.x) - state[-1]).max()) > 1e-3
    state = rule.init(KEY, params)[1]
    ours, theirs = (jax.jit(r.estimate)(params, batch, state, KEY) for r in (rule, plain))
    same(ours, theirs)


def test_evaluation_of_a_noisy_device_has_the_noise_too():
    system, params, batch = problem()
    device = imperfect(system, noise=0.1)
    rule = rules.eqprop(device, squared_error(), evaluation=fixed_steps(3))
    clean = rules.eqprop(system, squared_error(), evaluation=fixed_steps(3))
    gap = rule.apply(params, batch.x) - clean.apply(params, batch.x)
    assert 0.03 < float(jnp.std(gap)) < 0.3
    other = rule.apply(params, batch.x, jax.random.key(4))
    assert float(jnp.abs(rule.apply(params, batch.x) - other).min()) > 0.0


# --- the starts --------------------------------------------------------------------------------


def test_the_feed_forward_pass_of_a_hopfield_net_is_its_networks():
    system, params, batch = problem()
    state = system.traits.forward(params, system.clamp(params, batch.x))
    y, x = NETWORK.forward(params, batch.x)[0], batch.x
    for l, i in enumerate((0, 2, 4)):
        x = x @ params[i]["w"] + params[i]["b"]
        x = jnp.tanh(x) if i < 4 else x
        np.testing.assert_allclose(state[l], x, atol=1e-14)
    np.testing.assert_allclose(state[-1], y, atol=1e-14)


def test_the_feed_forward_pass_adds_skips_and_a_circuits_averages():
    system, params, batch = problem("skips")
    state = system.traits.forward(params, system.clamp(params, batch.x))
    skip = params[-1]["skips"]["0_2"]
    first = np.tanh(batch.x @ params[0]["w"] + params[0]["b"])
    second = first @ params[2]["w"] + params[2]["b"] + batch.x @ skip["w"] + skip["b"]
    np.testing.assert_allclose(state[1], np.tanh(second), atol=1e-14)
    system, params, batch = problem("resistive")
    state = system.traits.forward(params, system.clamp(params, batch.x))
    v = 10.0 * np.concatenate([batch.x, -batch.x], axis=1)
    for i, ours in zip((0, 2, 4), state, strict=True):
        g, (plus, minus) = np.asarray(params[i]["w"]), np.asarray(params[i]["b"])
        v = (v @ g + 10.0 * (plus - minus)) / (g.sum(axis=0) + plus + minus)
        turned = np.where(np.arange(v.shape[1]) % 2 == 0, 1, -1)
        v = v if i == 4 else turned * np.maximum(turned * v, 0)
        np.testing.assert_allclose(ours, v, atol=1e-12)


def climbing():
    """A system whose sweep adds one: the output counts sweeps since the start."""
    return from_field(
        lambda p, s, x: jnp.ones_like(s), lambda p, x: 0.25 * x, lambda p, s: s,
        lambda key, shape: (jnp.ones(()), (2,)), step_size=1.0,
    )  # fmt: skip


def outputs_of(start, batches, n=6, size=3):
    """The free outputs of one-sweep phases on a climbing system, batch after batch."""
    once = fixed_steps(1)
    rule = rules.vector_field_eqprop(climbing(), squared_error(), once, once, start=start)
    x = jnp.arange(2.0 * n).reshape(n, 2)
    params, state = started(rule, jnp.ones(()), x, size)
    found = []
    for rows in batches:
        rows = jnp.asarray(rows)
        made, state = rule.estimate(params, Batch(x[rows], x[rows], rows), state, KEY)
        found.append(made.output - 0.25 * x[rows])
    return found, x


def test_zeros_start_at_zeros_and_own_where_the_system_says():
    (own,), x = outputs_of("own", [[0, 1, 2]])
    np.testing.assert_array_equal(own, jnp.ones((3, 2)))
    (zeros,), _ = outputs_of("zeros", [[0, 1, 2]])
    np.testing.assert_array_equal(zeros + 0.25 * x[:3], jnp.ones((3, 2)))


def test_carried_starts_where_the_previous_batchs_phase_ended_row_by_row():
    (first, second, third), x = outputs_of("carried", [[0, 1, 2], [5, 3, 4], [0, 1, 2]])
    np.testing.assert_array_equal(first, jnp.ones((3, 2)))
    ended = 0.25 * x[:3] + 1.0
    np.testing.assert_array_equal(second + 0.25 * x[jnp.array([5, 3, 4])], ended + 1.0)
    np.testing.assert_array_equal(third + 0.25 * x[:3], ended + 2.0)


def test_kept_starts_where_each_examples_own_last_phase_ended_in_any_order():
    batches = [[0, 1, 2], [2, 3, 0], [4, 2, 1], [0, 5, 2]]
    found, _ = outputs_of("kept", batches)
    visits = np.zeros(6, int)
    for rows, ours in zip(batches, found, strict=True):
        visits[rows] += 1
        np.testing.assert_array_equal(ours[:, 0], visits[rows])


@pytest.mark.long
@pytest.mark.parametrize("start", ["carried", "kept"])
def test_a_batch_that_has_no_place_starts_anew_and_leaves_the_memory_as_it_is(start):
    system, params, batch = problem()
    rule = rules.eqprop(system, squared_error(), SETTLE, SETTLE, start=start)
    params, state = started(rule, params, batch.x, 6)
    _, state = rule.estimate(params, batch, state, KEY)
    assert state.memory.known.all()
    alien = Batch(batch.x[:2], batch.y[:2])
    plain = rules.eqprop(system, squared_error(), SETTLE, SETTLE)
    made, after = rule.estimate(params, alien, state, KEY)
    same(made, plain.estimate(params, alien, plain.init(KEY, params)[1], KEY)[0])
    same(after, state)
    forgetful, untouched = rule.estimate(params, alien, rule.init(KEY, params)[1], KEY)
    same(forgetful, made)
    assert not isinstance(untouched, Remembering)


def test_a_state_that_has_diverged_is_not_kept():
    system, params, batch = problem()
    rule = rules.eqprop(system, squared_error(), fixed_steps(3), fixed_steps(1), start="kept")
    params, state = started(rule, params, batch.x, 6)
    broken = batch._replace(x=batch.x.at[1].set(jnp.nan))
    _, state = rule.estimate(params, broken, state, KEY)
    assert state.memory.known.tolist() == [True, False, True, True, True, True]
    assert jnp.isfinite(rule.estimate(params, batch, state, KEY)[0].output).all()


# --- the result --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SYSTEMS)
def test_no_start_changes_the_certified_equilibrium_and_good_ones_save_sweeps(name):
    """Two updates apart: phases settled to 1e-11 agree to 1e-8, from wherever they started."""
    system, params, batch = problem(name)
    sweeps, made = {}, {}
    for begin in ("own", "zeros", "feedforward", "carried", "kept"):
        rule = rules.eqprop(system, squared_error(), SETTLE, SETTLE, beta=0.05, start=begin)
        weights, state = started(rule, params, batch.x, 6)
        estimate = jax.jit(rule.estimate)
        for _ in range(2):
            found, state = estimate(weights, batch, state, KEY)
            assert found.info["free"].converged.all()
            assert found.info["free"].end is None
            weights = trees.sub(weights, trees.scale(1e-4, found.grads))
        sweeps[begin], made[begin] = float(found.info["free"].steps.mean()), found
    for found in made.values():
        np.testing.assert_allclose(found.output, made["own"].output, atol=1e-8)
        gap = trees.sub(found.grads, made["own"].grads)
        assert float(jnp.sqrt(trees.dot(gap, gap))) < 1e-7
    if name == "predictive":  # whose own start is the equilibrium
        assert sweeps["feedforward"] == sweeps["own"] == 1.0
        assert sweeps["zeros"] > sweeps["kept"]
    else:
        assert sweeps["own"] == sweeps["zeros"] > sweeps["kept"] == sweeps["carried"]
        assert sweeps["feedforward"] < sweeps["zeros"] + (name == "resistive")


@pytest.mark.parametrize("name", [r for r in RELAXING if "free" in wires(KINDS["rules"][r])])
def test_every_rule_with_a_free_solver_keeps_its_examples_states(name):
    system, params, batch = problem()
    factory = KINDS["rules"][name]
    rule = factory(system, squared_error(), start="kept")
    params, state = started(rule, params, batch.x, 6)
    estimate = jax.jit(rule.estimate)
    first, state = estimate(params, batch, state, KEY)
    second, state = estimate(params, batch, state, KEY)
    assert float(first.info["free"].steps.min()) > 3.0
    assert second.info["free"].steps.tolist() == [1] * 6  # it measures that it is settled
    np.testing.assert_allclose(first.output, second.output, atol=1e-5)
    assert estimate._cache_size() == 1


@pytest.mark.parametrize("name", ["eqprop", "bptt"])
@pytest.mark.parametrize("start", ["zeros", "feedforward"])
def test_starts_without_memory_hold_for_inference_too(name, start):
    system, params, batch = problem("predictive")
    rule = KINDS["rules"][name](system, squared_error(), start=start, evaluation=fixed_steps(1))
    clamped = system.clamp(params, batch.x)
    begin = system.traits.forward(params, clamped)
    begin = trees.zeros(begin) if start == "zeros" else begin
    expected = system.sweep(params, clamped, begin)[-1]
    np.testing.assert_array_equal(rule.apply(params, batch.x), expected)


def test_noise_and_memory_go_together():
    system, params, batch = problem()
    device = imperfect(system, noise=1e-3)
    few = fixed_steps(4)
    rule = rules.eqprop(device, squared_error(), few, few, start="kept")
    params, state = started(rule, params, batch.x, 6)
    first, state = rule.estimate(params, batch, state, KEY)
    again, after = rule.estimate(params, batch, state, jax.random.key(1))
    settled = rules.eqprop(system, squared_error(), SETTLE).apply(params, batch.x)
    before, now = (float(jnp.abs(m.output - settled).max()) for m in (first, again))
    assert now < before
    gap = trees.sub(state.memory.states, after.memory.states)
    assert float(jnp.abs(gap[-1]).min()) > 0.0


def test_a_noisy_device_starts_where_the_setting_says_under_every_key():
    system, params, batch = problem("predictive")
    device = imperfect(system, noise=1e-9)
    once = fixed_steps(1)
    rule = rules.eqprop(device, squared_error(), once, once, start="zeros")
    clamped = system.clamp(params, batch.x)
    zeros = trees.zeros(system.init_state(params, clamped))
    expected = system.sweep(params, clamped, zeros)[-1]
    made = rule.estimate(params, batch, rule.init(KEY, params)[1], KEY)[0]
    np.testing.assert_allclose(made.output, expected, atol=1e-7)


# --- training ----------------------------------------------------------------------------------


def test_training_brings_the_memory_and_sweeps_fall_from_epoch_to_epoch():
    system, params, batch = problem(n=12)
    settle = fixed_point(1e-8, 500)
    results = {}
    for begin in ("own", "carried", "kept"):
        rule = rules.eqprop(system, squared_error(), settle, settle, start=begin)
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
            results[begin] = train(
                rule, optax.sgd(1e-4), params, batch, epochs=3, batch_size=4, key=KEY
            )
    sweeps = {k: np.asarray(r.metrics["sweeps_free"]) for k, r in results.items()}
    np.testing.assert_allclose(
        results["kept"].metrics["loss"], results["own"].metrics["loss"], atol=1e-5
    )
    np.testing.assert_allclose(sweeps["kept"][0], sweeps["own"][0], rtol=0.05)
    assert sweeps["kept"][2] < 0.8 * sweeps["own"][2]
    assert isinstance(results["carried"].state, Remembering)
    assert results["kept"].state.memory.known.all()


def test_seeds_side_by_side_each_keep_their_own_memory():
    system, params, batch = problem(n=8)
    settle = fixed_point(1e-9, 500)
    rule = rules.eqprop(system, squared_error(), settle, settle, start="kept")
    optimizer, keys = optax.sgd(0.01), jax.random.split(KEY, 2)
    both = jax.tree.map(lambda p: jnp.stack([p, 0.5 * p]), params)
    begin = lambda p, k: start(rule, optimizer, p, k, batch.x, 4)  # noqa: E731
    rows = jnp.array([[0, 1, 2, 3, 4, 5], [2, 3, 4, 5, 6, 7]])
    with jax.numpy_dtype_promotion("standard"):
        run = epoch_scan(supervised(rule, optimizer), 4)
        alone = [
            jax.jit(run, static_argnums=6)(
                begin(jax.tree.map(lambda p, i=i: p[i], both), keys[i]),
                *(batch.x, batch.y, rows[i], keys[i], jnp.asarray(0), 3),
            )[0]
            for i in range(2)
        ]
        carry = jax.vmap(begin)(both, keys)
        carry, _ = over_seeds(run)(carry, batch.x, batch.y, rows, keys, jnp.asarray(0), 3)
    for i, one in enumerate(alone):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], carry)
        chex.assert_trees_all_close(own.params, one.params, atol=1e-9)
        chex.assert_trees_all_close(own.rule, one.rule, atol=1e-7)
        assert not own.rule.memory.known[jnp.array([6, 7] if i == 0 else [0, 1])].any()


# --- refusals ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda s, c: rules.bptt(s, c, start="kept"),
            "bptt: start = 'kept': the rule runs no free phase of its own; allowed here: 'own'",
        ),
        (
            lambda s, c: rules.eqprop(s, c, nudging="online", start="carried"),
            "eqprop: start = 'carried': the rule runs no free phase of its own",
        ),
        (
            lambda s, c: rules.recurrent_backprop(climbing(), c, start="feedforward"),
            "recurrent_backprop: start = 'feedforward': the units of 'from_field' have no order",
        ),
        (
            lambda s, c: rules.eqprop(s, c, start="ones"),
            r"eqprop: start = 'ones': must be 'own' \| 'zeros' \| 'feedforward' \| "
            r"'carried' \| 'kept'",
        ),
    ],
)
def test_a_start_that_a_rule_cannot_have_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make(hopfield(NETWORK), squared_error())
