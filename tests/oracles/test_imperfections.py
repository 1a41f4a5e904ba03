"""Imperfect devices: each imperfection against its own formula, and what it does to EP's error."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from bpeq import layers, rules
from bpeq.analysis import equilibrium
from bpeq.core import trees
from bpeq.costs import squared_error
from bpeq.layers import chain, dense
from bpeq.rules import free_phase
from bpeq.settings import SettingError
from bpeq.solvers import anderson, fixed_point, fixed_steps
from bpeq.systems import hopfield, predictive, resistive
from bpeq.systems.devices import imperfect
from bpeq.training.loops import start, supervised
from bpeq.types import Batch

TIGHT = fixed_point(1e-14, 3000)
KEY = jax.random.key(0)
NETWORK = chain(dense(8), layers.tanh(), dense(6), layers.tanh(), dense(3))
CIRCUIT = chain(dense(8), layers.relu(), dense(3))
SYSTEMS = {
    "hopfield": lambda: hopfield(NETWORK),
    "readout": lambda: hopfield(NETWORK, output="readout"),
    "predictive": lambda: predictive(NETWORK),
    "resistive": lambda: resistive(CIRCUIT, gain=3.0),
}


def problem(name="hopfield", dtype=jnp.float64, batch=4, scale=0.4):
    system = SYSTEMS[name]()
    params = trees.cast(trees.scale(scale, system.init(KEY, (5,))[0]), dtype)
    x = jax.random.normal(jax.random.key(1), (batch, 5), dtype)
    y = jax.random.normal(jax.random.key(2), (batch, 3), dtype)
    return system, params, Batch(x, y)


def somewhere(system, params, x, seed=5):
    clamped = system.clamp(params, x)
    shapes = system.init_state(params, clamped)
    return clamped, jax.tree.map(
        lambda s: 0.5 * jax.random.normal(jax.random.key(seed), s.shape, s.dtype), shapes
    )


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(one, other)


def close(a, b):
    """Equal to the round-off of the float32 draws, which may differ from program to program."""
    for one, other in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)


def estimate(rule, params, batch, key=KEY):
    params, state = rule.init(key, params)
    return jax.jit(rule.estimate)(params, batch, state, key)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


# --- none at all -------------------------------------------------------------------------------


def test_no_imperfection_is_the_very_system_and_the_very_rule():
    system = hopfield(NETWORK)
    rule = rules.backprop(NETWORK, squared_error())
    assert imperfect(system, seed=7, mismatch_per="phase") is system
    assert imperfect(rule, seed=7) is rule


@pytest.mark.parametrize("name", SYSTEMS)
def test_imperfections_that_change_nothing_here_leave_every_bit(name):
    """Limits that no weight and no state reaches: estimates and outputs to the last bit."""
    system, params, batch = problem(name)
    wide = {f"{of}_{end}": s * 1e6 for of in ("weight", "state") for end, s in
            (("min", -1.0), ("max", 1.0))}  # fmt: skip
    few = fixed_steps(7)
    plain = rules.eqprop(system, squared_error(), few, few)
    wrapped = rules.eqprop(imperfect(system, **wide), squared_error(), few, few)
    same(estimate(plain, params, batch), estimate(wrapped, params, batch))
    same(plain.apply(params, batch.x), wrapped.apply(params, batch.x))


# --- noise -------------------------------------------------------------------------------------


def noise_of_a_sweep(system, noisy, params, x, state, push=None):
    clean = system.sweep(params, system.clamp(params, x), state, push)
    return trees.sub(noisy.sweep(params, noisy.clamp(params, x), state, push), clean)


def test_noise_is_normal_of_the_given_width_on_every_unit():
    system, params, batch = problem(batch=500)
    noisy = imperfect(system, noise=0.03)
    _, state = somewhere(system, params, batch.x)
    drawn = noise_of_a_sweep(system, noisy, params, batch.x, state)
    for leaf in drawn:
        assert stats.kstest(np.asarray(leaf).ravel() / 0.03, "norm").pvalue > 1e-3
    flat = np.concatenate([np.asarray(leaf) for leaf in drawn], axis=1)
    correlations = np.corrcoef(flat.T) - np.eye(flat.shape[1])
    assert np.abs(correlations).max() < 5 / np.sqrt(500)


def test_noise_differs_by_key_sweep_phase_and_example_and_not_by_the_state():
    system, params, batch = problem(batch=200)
    noisy = imperfect(system, noise=0.03)
    clamped, state = somewhere(noisy, params, batch.x)
    device = noisy.traits.device

    def draw(clamped, state=state):
        clean = system.sweep(params, clamped.own, state)
        gap = trees.sub(noisy.sweep(params, clamped, state), clean)
        return np.concatenate([np.asarray(leaf).ravel() for leaf in gap])

    draws = [
        draw(clamped),
        draw(device.seeded(clamped, jax.random.key(9))),
        draw(device.numbered(clamped, 1)),
        draw(device.nudged(clamped, 0)),
        draw(device.nudged(clamped, 1)),
        draw(clamped._replace(keys=jnp.roll(clamped.keys, 1))),
    ]
    for i in range(len(draws)):
        for j in range(i):
            assert abs(np.corrcoef(draws[i], draws[j])[0, 1]) < 5 / np.sqrt(draws[0].size)
    moved = jax.tree.map(lambda s: s + 0.1, state)
    np.testing.assert_allclose(draw(clamped, moved), draws[0], atol=1e-14)


def test_examples_of_one_input_draw_independent_noise():
    system, params, batch = problem()
    x = jnp.broadcast_to(batch.x[:1], (2000, 5))
    rule = rules.eqprop(imperfect(system, noise=0.03), squared_error(), fixed_steps(3))
    output = np.asarray(rule.apply(params, x, KEY)).reshape(1000, 2, 3)
    for unit in range(3):
        correlation = np.corrcoef(output[:, 0, unit], output[:, 1, unit])[0, 1]
        assert abs(correlation) < 3 / np.sqrt(1000)


@pytest.mark.parametrize("solver", [fixed_point(0.03, 60), anderson(0.03, 60)])
def test_noise_does_not_depend_on_how_a_solver_takes_a_batch_apart(solver):
    """Examples settle at different sweeps, and the others go on without them."""
    system, params, batch = problem(batch=160)
    noisy = imperfect(system, noise=0.01)
    whole = noisy._replace(traits=noisy.traits._replace(take_rows=None))
    ours, theirs = (free_phase(s, solver, params, batch.x) for s in (noisy, whole))
    assert len(np.unique(ours.info.steps)) > 2
    np.testing.assert_array_equal(ours.info.steps, theirs.info.steps)
    np.testing.assert_allclose(ours.output, theirs.output, atol=1e-12)


def test_a_solver_that_does_not_number_its_sweeps_is_refused_on_a_noisy_device():
    system, params, batch = problem()

    def once(step, state):
        return step(state), None

    with pytest.raises(SettingError) as failure:
        free_phase(imperfect(system, noise=0.01), once, params, batch.x)
    assert failure.value.setting == "noise"


def mean_errors(rule, params, batch, exact, betas, draws=12):
    """Root mean square over keys of the distance to the exact gradient, for each β."""

    @jax.jit
    def one(key, beta):
        grads = rule.estimate(params, batch, {"beta": beta}, key)[0].grads
        gap = trees.sub(grads, exact)
        return trees.dot(gap, gap) / trees.dot(exact, exact)

    keys = jax.random.split(KEY, draws)
    return [np.sqrt(np.mean([one(key, jnp.asarray(b)) for key in keys])) for b in betas]


def exact_of(system, params, batch):
    reference = rules.recurrent_backprop(system, squared_error(), TIGHT, TIGHT)
    return estimate(reference, params, batch).grads


@pytest.mark.long
@pytest.mark.parametrize("name", ["hopfield", "resistive"])
def test_eps_error_under_noise_grows_as_noise_over_beta(name):
    system, params, batch = problem(name)
    exact, few = exact_of(system, params, batch), fixed_steps(25)

    def errors(noise, betas):
        rule = rules.eqprop(imperfect(system, noise=noise), squared_error(), few, few)
        return mean_errors(rule, params, batch, exact, betas)

    betas = np.geomspace(0.004, 0.0005, 4)
    found = errors(1e-4, betas)
    slope = np.polyfit(np.log(betas), np.log(found), 1)[0]
    assert abs(slope + 1.0) < 0.15
    narrow = errors(1e-5, betas[1:2])[0]
    assert abs(np.log10(found[1] / narrow) - 1.0) < 0.15


def test_an_estimate_draws_its_noise_from_its_key_and_inference_from_the_seed():
    system, params, batch = problem()
    few = fixed_steps(5)
    rule = rules.eqprop(imperfect(system, noise=0.01), squared_error(), few, few)
    one, other = (estimate(rule, params, batch, jax.random.key(i)) for i in (0, 1))
    assert distance(one.grads, other.grads) > 1e-2
    same(one, estimate(rule, params, batch, jax.random.key(0)))
    output = rule.apply(params, batch.x)
    same(output, rule.apply(params, batch.x))
    assert float(jnp.abs(output - rule.apply(params, batch.x, KEY)).min()) > 0.0
    elsewhere = rules.eqprop(imperfect(system, noise=0.01, seed=1), squared_error(), few, few)
    assert float(jnp.abs(output - elsewhere.apply(params, batch.x)).min()) > 0.0


RULES = [
    *("continual_eqprop", "vector_field_eqprop", "asymmetric_eqprop", "recurrent_backprop"),
    *("contrastive_hebbian", "coupled_learning"),
]


@pytest.mark.parametrize("name", RULES)
def test_every_rule_on_a_noisy_system_draws_from_the_estimates_key(name):
    system, params, batch = problem()
    rule = getattr(rules, name)(imperfect(system, noise=0.01), squared_error(), fixed_steps(8))
    one, other = (estimate(rule, params, batch, jax.random.key(i)) for i in (0, 1))
    assert distance(one.grads, other.grads) > 1e-4
    assert not one.info["free"].converged.any()  # noise has no fixed point, and that is said


@pytest.mark.parametrize("name", ["hopfield", "predictive", "resistive"])
def test_an_output_that_is_held_has_neither_noise_nor_levels(name):
    system, params, batch = problem(name)
    device = imperfect(system, noise=0.01, state_bits=3, state_min=-1.0, state_max=1.0)
    _, state = somewhere(system, params, batch.x)
    state = system.write(state, batch.y)
    swept = device.sweep(params, device.clamp(params, batch.x), state, hold=True)
    np.testing.assert_array_equal(swept[-1], state[-1])
    clean = system.sweep(params, system.clamp(params, batch.x), state, hold=True)
    assert float(jnp.abs(swept[0] - clean[0]).max()) > 1e-3


def test_noise_on_few_levels_stays_on_them_and_goes_on():
    network = chain(dense(6), layers.hard_sigmoid(), dense(3), layers.hard_sigmoid())
    system = hopfield(network)
    params, _ = system.init(jax.random.key(3), (4,))
    x = jax.random.normal(KEY, (200, 4))
    device = imperfect(system, noise=0.5, state_bits=1, state_min=0.0, state_max=1.0)
    solver = fixed_steps(60, record=True)
    rest = free_phase(device, solver, params, x)
    path = np.concatenate([np.asarray(s) for s in rest.info.trajectory], axis=2)
    assert set(np.unique(path)) == {0.0, 1.0}
    stuck = [np.all(path[-30 + k :] == path[-30:][: 30 - k], axis=(0, 2)) for k in range(1, 10)]
    assert np.mean(np.any(stuck, axis=0)) < 0.1


# --- mismatch ----------------------------------------------------------------------------------


def factors(system, params, x):
    seen = system.clamp(params, x).seen
    pairs = zip(jax.tree.leaves(seen), jax.tree.leaves(params), strict=True)
    return np.concatenate([(np.asarray(a) / np.asarray(b)).ravel() for a, b in pairs])


def test_mismatch_multiplies_every_weight_by_one_plus_a_fixed_normal_number():
    system, params, batch = problem()
    params = jax.tree.map(lambda p: p + 1.0, params)  # no bias is zero
    small, large = (imperfect(system, mismatch=e) for e in (0.01, 0.1))
    n = (factors(small, params, batch.x) - 1.0) / 0.01
    np.testing.assert_allclose((factors(large, params, batch.x) - 1.0) / 0.1, n, atol=1e-4)
    assert stats.kstest(n, "norm").pvalue > 1e-3
    moved = jax.tree.map(lambda p: 3.0 * p, params)  # the device stays what it is
    np.testing.assert_allclose((factors(small, moved, batch.x) - 1) / 0.01, n, atol=1e-4)
    single = (factors(small, *trees.cast((params, batch.x), jnp.float32)) - 1.0) / 0.01
    np.testing.assert_allclose(single, n, atol=1e-3)
    other = (factors(imperfect(system, mismatch=0.01, seed=1), params, batch.x) - 1.0) / 0.01
    assert abs(np.corrcoef(n, other)[0, 1]) < 5 / np.sqrt(n.size)
    turned = factors(imperfect(system, mismatch=5.0), params, batch.x)
    assert turned.min() == 0.0  # no weight changes its sign


@pytest.mark.parametrize("name", SYSTEMS)
def test_on_one_mismatched_device_all_is_done_with_its_own_weights(name):
    """Energy, force, sweep, output and EP's estimate are those of the plain system at θ′."""
    system, params, batch = problem(name)
    device = imperfect(system, mismatch=0.1)
    clamped, state = somewhere(device, params, batch.x)
    seen = clamped.seen
    assert distance(seen, params) > 0.02
    own = system.clamp(seen, batch.x)
    for function in ("energy", "force", "sweep"):
        ours = getattr(device, function)(params, clamped, state)
        theirs = getattr(system, function)(seen, own, state)
        close(ours, theirs)
    few = fixed_steps(9)
    ours = estimate(rules.eqprop(device, squared_error(), few, few), params, batch)
    theirs = estimate(rules.eqprop(system, squared_error(), few, few), seen, batch)
    close(ours, theirs)


def test_eps_error_under_mismatch_between_phases_grows_as_one_over_beta_and_on_one_device_not():
    system, params, batch = problem()

    def errors(device, exact, betas):
        rule = rules.eqprop(device, squared_error(), TIGHT, TIGHT)
        return mean_errors(rule, params, batch, exact, betas, draws=1)

    between = imperfect(system, mismatch=0.01, mismatch_per="phase")
    betas = np.geomspace(0.01, 0.001, 4)
    found = errors(between, exact_of(system, params, batch), betas)
    assert abs(np.polyfit(np.log(betas), np.log(found), 1)[0] + 1.0) < 0.1
    device = imperfect(system, mismatch=0.01)
    seen = device.clamp(params, batch.x).seen
    betas = np.geomspace(0.03, 0.003, 4)
    own = errors(device, exact_of(system, seen, batch), betas)  # to its own: EP's bias alone
    assert abs(np.polyfit(np.log(betas), np.log(own), 1)[0] - 2.0) < 0.1


def test_each_nudged_phase_runs_on_a_device_of_its_own():
    """The centered contrast of two plain systems at the two draws, settled and written out."""
    system, params, batch = problem()
    device = imperfect(system, mismatch=0.05, mismatch_per="phase")
    beta = 0.2
    rule = rules.eqprop(device, squared_error(), TIGHT, TIGHT, beta=beta)
    clamped = device.clamp(params, batch.x)
    phases = []
    for n, sign in ((0, 1.0), (1, -1.0)):
        own = device.traits.device.nudged(clamped, jnp.asarray(n))
        assert distance(own.seen, clamped.seen) > 0.01
        drive = system.clamp(own.seen, batch.x)

        def push(s, sign=sign):
            return (None, None, -sign * beta * (s[-1] - batch.y))

        run = jax.jit(
            lambda s, seen=own.seen, drive=drive, push=push: TIGHT(
                lambda s: system.sweep(seen, drive, s, push), s
            )[0]
        )
        phases.append(run(jax.tree.map(jnp.zeros_like, device.init_state(params, clamped))))
    weights = jnp.array([1.0, -1.0]) / (2 * beta * 4)
    drive = system.clamp(clamped.seen, batch.x)
    expected = system.denergy(clamped.seen, drive, trees.stack(phases), weights)[0]
    assert distance(estimate(rule, params, batch).grads, expected) < 1e-5


def test_each_clamped_phase_runs_on_a_device_of_its_own():
    system, params, batch = problem()
    device = imperfect(system, mismatch=0.05, mismatch_per="phase")
    clamped = device.clamp(params, batch.x)
    own = device.traits.device.nudged(clamped, jnp.asarray(0))

    def settle(seen, drive, state, hold):
        sweep = lambda s: system.sweep(seen, drive, s, hold=hold)  # noqa: E731
        return jax.jit(lambda s: TIGHT(sweep, s)[0])(state)

    free = settle(clamped.seen, clamped.own, device.init_state(params, clamped), False)
    held = settle(own.seen, own.own, system.write(free, batch.y), True)
    weights = jnp.array([1.0, -1.0]) / 4
    expected = system.denergy(clamped.seen, clamped.own, trees.stack([held, free]), weights)[0]
    rule = rules.contrastive_hebbian(device, squared_error(), TIGHT, TIGHT)
    assert distance(estimate(rule, params, batch).grads, expected) < 1e-5


# --- levels and limits -------------------------------------------------------------------------


def levels(a, bits, low, high):
    step = (high - low) / (2**bits - 1)
    return low + step * np.round((np.clip(a, low, high) - low) / step)


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_states_and_weights_are_quantised_by_the_written_formula(bits):
    system, params, batch = problem()
    of_states = {"state_bits": bits, "state_min": -0.9, "state_max": 0.8}
    of_weights = {"weight_bits": bits, "weight_min": -0.5, "weight_max": 0.4}
    clamped, state = somewhere(system, params, batch.x)
    device = imperfect(system, **of_states)
    ours = device.sweep(params, device.clamp(params, batch.x), state)
    for a, b in zip(ours, system.sweep(params, clamped, state), strict=True):
        np.testing.assert_allclose(a, levels(np.asarray(b), bits, -0.9, 0.8), atol=1e-15)
        assert len(np.unique(np.asarray(a).round(12))) <= 2**bits
    seen = imperfect(system, **of_weights).clamp(params, batch.x).seen
    for a, b in zip(jax.tree.leaves(seen), jax.tree.leaves(params), strict=True):
        np.testing.assert_allclose(a, levels(np.asarray(b), bits, -0.5, 0.4), atol=1e-15)


def test_limits_clip_states_and_weights_and_one_side_is_enough():
    system, params, batch = problem()
    _, state = somewhere(system, params, batch.x)
    device = imperfect(system, state_max=0.1, weight_min=-0.2)
    ours = device.sweep(params, device.clamp(params, batch.x), state)
    seen = device.clamp(params, batch.x).seen
    same(seen, jax.tree.map(lambda w: jnp.maximum(w, -0.2), params))
    theirs = system.sweep(seen, system.clamp(seen, batch.x), state)
    same(ours, jax.tree.map(lambda s: jnp.minimum(s, 0.1), theirs))
    assert float(jnp.max(ours[0])) == 0.1


def test_errors_pass_straight_through_levels_and_not_past_limits():
    """Implicit differentiation on many levels is nearly that of the smooth system."""
    system, params, batch = problem()
    device = imperfect(system, state_bits=14, state_min=-3.0, state_max=3.0)
    settle = fixed_point(1e-3, 500)
    rule = rules.recurrent_backprop(device, squared_error(), settle, TIGHT)
    ours = estimate(rule, params, batch).grads
    assert distance(ours, exact_of(system, params, batch)) < 0.02
    limit = imperfect(system, weight_max=-5.0)
    slope = jax.grad(lambda p: limit.clamp(p, batch.x).own.drives[0].sum())(params)
    assert float(trees.dot(slope, slope)) == 0.0


@pytest.mark.parametrize("optimizer", [optax.sgd(0.5), optax.adam(0.05)], ids=["sgd", "adam"])
@pytest.mark.parametrize("kind", ["system", "rule"])
def test_stored_weights_keep_to_their_limits_after_every_update(kind, optimizer):
    system, params, batch = problem()
    limits = {"weight_min": 0.0, "weight_max": 0.3}
    if kind == "system":
        few = fixed_steps(10)
        rule = rules.eqprop(imperfect(system, **limits), squared_error(), few, few)
    else:
        rule = imperfect(rules.backprop(NETWORK, squared_error()), **limits)
    step, carry = supervised(rule, optimizer), start(rule, optimizer, params, KEY)
    with jax.numpy_dtype_promotion("standard"):
        for _ in range(3):
            carry, _ = jax.jit(step)(carry, batch, KEY)
    low, high = (f([f(w) for w in jax.tree.leaves(carry.params)]) for f in (np.min, np.max))
    assert (low, high) == (0.0, 0.3)


def test_limits_come_on_top_of_what_the_system_allows():
    system, params, _ = problem("resistive")
    device = imperfect(system, weight_max=0.2)
    allowed = device.traits.project(jax.tree.map(lambda w: w - 0.3, params))
    assert min(float(w.min()) for w in jax.tree.leaves(allowed)) == 0.0
    assert max(float(w.max()) for w in jax.tree.leaves(device.traits.project(params))) == 0.2


# --- one device around another -----------------------------------------------------------------


def test_a_wrapped_noisy_device_still_draws_its_noise_from_the_estimates_key():
    system, params, batch = problem()
    few = fixed_steps(5)
    for device in (
        imperfect(imperfect(system, noise=0.01), mismatch=0.1),
        imperfect(imperfect(system, mismatch=0.1), noise=0.01),
    ):
        rule = rules.eqprop(device, squared_error(), few, few)
        one, other = (estimate(rule, params, batch, jax.random.key(i)).grads for i in (0, 1))
        assert distance(one, other) > 1e-2
        same(one, estimate(rule, params, batch, jax.random.key(0)).grads)


def test_noise_of_two_devices_adds_up():
    system, params, batch = problem(batch=500)
    device = imperfect(imperfect(system, noise=0.03), noise=0.04)
    clean, state = somewhere(system, params, batch.x)
    clamped = device.traits.device.seeded(device.clamp(params, batch.x), jax.random.key(3))
    swept = device.sweep(params, clamped, state)
    drawn = trees.sub(swept, system.sweep(params, clean, state))
    for leaf in drawn:
        assert stats.kstest(np.asarray(leaf).ravel() / 0.05, "norm").pvalue > 1e-3


@pytest.mark.parametrize("per", [("phase", "device"), ("device", "phase"), ("phase", "phase")])
def test_a_wrapped_device_keeps_a_draw_of_its_own_for_each_phase(per):
    system, params, batch = problem()
    inner, outer = ({"mismatch": e, "mismatch_per": p, "seed": s}
                    for e, p, s in zip((0.05, 0.1), per, (1, 2), strict=True))  # fmt: skip
    device = imperfect(imperfect(system, **inner), noise=0.01, **outer)
    clamped = device.clamp(params, batch.x)
    nth = device.traits.device.nudged(clamped, jnp.asarray(1))
    for before, after, kind in zip(
        (clamped.own.seen, clamped.seen), (nth.own.seen, nth.seen), per, strict=True
    ):
        moved = distance(after, before) > 0.01
        assert moved or kind == "device"
    assert (distance(nth.seen, clamped.seen) > 0.01) is (per[1] == "phase")
    alone = imperfect(system, **inner)
    own = alone.clamp(nth.seen, batch.x)
    own = own if per[0] == "device" else alone.traits.device.nudged(own, jnp.asarray(1))
    close(nth.own.seen, own.seen)


# --- rules without a system, references, refusals ----------------------------------------------


def test_a_wrapped_rule_estimates_and_infers_at_the_devices_weights():
    _, params, batch = problem()
    plain = rules.backprop(NETWORK, squared_error())
    settings = {"mismatch": 0.1, "weight_bits": 4, "weight_min": -1.0, "weight_max": 1.0}
    device = imperfect(plain, **settings)
    seen = imperfect(hopfield(NETWORK), **settings).clamp(params, batch.x).seen
    assert distance(seen, params) > 0.02
    close(estimate(device, params, batch), estimate(plain, seen, batch))
    close(device.apply(params, batch.x), plain.apply(seen, batch.x))
    assert device.info.reference is plain.info.reference


def test_kolen_pollack_on_a_device_has_the_feedback_weights_themselves_limited():
    """B is clipped, quantised and mismatched as W is, by its own draw; D = B − W is kept."""
    plain = rules.kolen_pollack(NETWORK, squared_error())
    params, _ = plain.init(KEY, NETWORK.init(KEY, (5,))[0])
    both = lambda p: (p[:-1], trees.add(p[:-1], p[-1]["feedback"]))  # noqa: E731
    limits = {"weight_min": 0.0, "weight_max": 0.3}
    for a, b in zip(both(imperfect(plain, **limits).absorb(params, {})), both(params), strict=True):
        close(a, jax.tree.map(lambda w: jnp.clip(w, 0.0, 0.3), b))
    _, _, batch = problem()
    device = imperfect(plain, weight_bits=3, **limits)
    seen = [jax.tree.map(lambda w: jnp.asarray(levels(np.asarray(w), 3, 0.0, 0.3)), part)
            for part in both(params)]  # fmt: skip
    held = (*seen[0], {"feedback": trees.sub(seen[1], seen[0])})
    close(estimate(device, params, batch), estimate(plain, held, batch))
    hold, store = plain.info.device_weights
    close(store(hold(params)), params)
    close(hold(params)[-1]["feedback"], both(params)[1])


def test_feedback_weights_of_an_untied_system_are_limited_as_the_forward_ones():
    """vector_field_eqprop's Kolen–Pollack keeps B itself."""
    system = hopfield(NETWORK, feedback="untied")
    params, _ = system.init(KEY, (5,))
    _, _, batch = problem()
    few = fixed_steps(5)
    rule = rules.vector_field_eqprop(
        imperfect(system, weight_min=0.0, weight_max=0.2), squared_error(), few, few,
        kolen_pollack=True, network=NETWORK,
    )  # fmt: skip
    same(rule.absorb(params, {}), jax.tree.map(lambda w: jnp.clip(w, 0.0, 0.2), params))
    clipped = jax.tree.map(lambda w: jnp.clip(w, 0.0, 0.2), params)
    theirs = rules.vector_field_eqprop(
        system, squared_error(), few, few, kolen_pollack=True, network=NETWORK
    )
    close(estimate(rule, params, batch).grads, estimate(theirs, clipped, batch).grads)


def test_statistics_of_batch_normalisation_are_no_weights():
    network = chain(dense(4), layers.batch_norm(), layers.relu(), dense(3))
    device = imperfect(rules.backprop(network, squared_error()), weight_max=0.1)
    params, _ = network.init(KEY, (5,))
    batch = Batch(jnp.ones((4, 5)) * jnp.arange(4.0)[:, None], jnp.ones((4, 3)))
    plain = rules.backprop(network, squared_error())
    clipped = jax.tree.map(lambda w: jnp.minimum(w, 0.1), params)
    keep = {k: params[1][k] for k in ("mean", "variance")}
    clipped = (clipped[0], {**clipped[1], **keep}, *clipped[2:])
    same(device.apply(params, batch.x), plain.apply(clipped, batch.x))
    info = device.estimate(params, batch, (), KEY)[0].info
    written = device.absorb(params, info)
    same({k: written[1][k] for k in keep}, {k: plain.absorb(params, info)[1][k] for k in keep})
    assert float(written[0]["w"].max()) <= 0.1


def test_references_and_curvature_are_the_ideal_systems():
    system, params, batch = problem()
    device = imperfect(system, noise=0.1, mismatch=0.2)
    assert device.ideal is system
    assert imperfect(device, state_max=0.1).ideal is system
    ours = rules.eqprop(device, squared_error()).info.reference
    same(estimate(ours, params, batch).grads, exact_reference(system, params, batch))
    np.testing.assert_array_equal(
        equilibrium.curvature(device, params, batch.x).smallest,
        equilibrium.curvature(system, params, batch.x).smallest,
    )


def exact_reference(system, params, batch):
    return estimate(rules.eqprop(system, squared_error()).info.reference, params, batch).grads


def test_holomorphic_ep_runs_with_noise_and_mismatch_and_is_refused_on_levels():
    system, params, batch = problem()
    device = imperfect(system, noise=1e-9, mismatch=0.1)
    seen = device.clamp(params, batch.x).seen
    few = fixed_steps(60)
    rule = rules.eqprop(device, squared_error(), few, few, nudging="holomorphic", beta=0.05)
    assert distance(estimate(rule, params, batch).grads, exact_of(system, seen, batch)) < 1e-3
    clipped = imperfect(system, state_max=1.0)
    with pytest.raises(ValueError, match="quantised or limited states are not holomorphic"):
        rules.eqprop(clipped, squared_error(), nudging="holomorphic")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"noise": -1.0}, "noise = -1.0: must be a number >= 0"),
        ({"state_bits": 0}, "state_bits = 0: must be"),
        ({"state_bits": 4}, "state_bits = 4: needs state_min and state_max"),
        ({"weight_bits": 4, "weight_min": 0.0}, "weight_bits = 4: needs weight_min and weight_max"),
        ({"weight_min": 1.0, "weight_max": 0.0}, "weight_max = 0.0: must be > weight_min = 1.0"),
        ({"mismatch_per": "unit"}, r"mismatch_per = 'unit': must be 'device' \| 'phase'"),
    ],
)
def test_settings_that_make_no_device_are_refused(settings, message):
    with pytest.raises(ValueError, match=f"imperfect: {message}"):
        imperfect(hopfield(NETWORK), **settings)


@pytest.mark.parametrize(
    "settings", [{"noise": 0.1}, {"state_min": 0.0}, {"mismatch": 0.1, "mismatch_per": "phase"}]
)
def test_imperfect_states_of_a_rule_are_refused(settings):
    with pytest.raises(ValueError, match="the rule 'backprop' settles no states"):
        imperfect(rules.backprop(NETWORK, squared_error()), **settings)


def test_float32_stays_and_a_second_estimate_compiles_nothing():
    system, params, batch = problem(dtype=jnp.float32)
    device = imperfect(
        system, noise=0.01, mismatch=0.1, state_bits=6, state_min=-2.0, state_max=2.0
    )
    rule = rules.eqprop(device, squared_error(), fixed_steps(4), fixed_steps(4))
    state = rule.init(KEY, params)[1]
    run = jax.jit(rule.estimate)
    made = run(params, batch, state, KEY)[0]
    run(trees.add(params, made.grads), batch, state, jax.random.key(1))
    assert run._cache_size() == 1
    assert {leaf.dtype for leaf in jax.tree.leaves(made.grads)} == {jnp.dtype(jnp.float32)}
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(made.grads))
