"""Loops that go on with the examples that still move."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import costs, layers, rules, systems
from bpeq.analysis.gradient_cost import count_macs
from bpeq.core import trees
from bpeq.layers import chain, dense
from bpeq.rules._phases import free_phase, nudged_phases
from bpeq.solvers import Sweep, anderson, fixed_point, fixed_steps, run_sweep
from bpeq.types import Batch

COST, BETAS = costs.squared_error(), jnp.array([0.1, -0.1])


def net(*widths: int, examples: int = 320):
    """A system of weights twice Glorot's, whose examples differ in how long they take."""
    parts = (p for n in widths for p in (dense(n, scale=2.0), layers.shifted_sigmoid()))
    system = systems.hopfield(chain(*parts))
    params, _ = system.init(jax.random.key(1), (6,))
    x = jax.random.normal(jax.random.key(2), (examples, 6))
    return system, params, x, jnp.arange(examples) % 3


def together(solver):
    """The solver, on steps that cannot be had for some of their examples."""
    return lambda step, state: solver(lambda s: step(s), state)


def counted(step, seen):
    """The step, which notes whenever its program runs, and on how many examples."""

    def on(step):
        def run(state, n):
            jax.debug.callback(lambda s: seen.append(len(s)), state[0])
            return run_sweep(step, state, n)

        return run

    return Sweep(on(step), lambda rows: Sweep(on(step.some(rows))))


@pytest.mark.parametrize("widths", [(40, 3), (30, 20, 3)])
@pytest.mark.parametrize("solver", [anderson(1e-11), fixed_point(1e-11)])
def test_unsettled_examples_that_go_on_alone_end_where_they_would_in_the_batch(widths, solver):
    system, params, x, y = net(*widths)
    rest, whole = (
        jax.jit(lambda x, s=s: free_phase(system, s, params, x))(x)
        for s in (solver, together(solver))
    )
    assert float(trees.max_abs(trees.sub(rest.state, whole.state)).max()) < 1e-9
    assert int(whole.info.steps.max()) > int(jnp.quantile(whole.info.steps, 0.9)) + 2
    np.testing.assert_array_equal(rest.info.steps, whole.info.steps)
    np.testing.assert_allclose(rest.info.residual, whole.info.residual, atol=1e-13)
    assert rest.info.converged.all()
    (state, info), (same, _) = (
        jax.jit(lambda y, s=s: nudged_phases(system, COST, s, params, rest, y, BETAS))(y)
        for s in (solver, together(solver))
    )
    assert info.converged.all()
    for ours, theirs in zip(state, same, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-9)


@pytest.mark.parametrize("solver", [anderson(1e-300, 9), fixed_point(1e-300, 9)])
def test_examples_that_never_settle_are_all_returned_as_they_are(solver):
    """More than fit the smaller batches."""
    system = systems.hopfield(chain(dense(4), layers.tanh(), dense(2)), schedule="synchronous")
    params, _ = system.init(jax.random.key(1), (3,))
    x = jax.random.normal(jax.random.key(2), (256, 3))
    rest = jax.jit(lambda x: free_phase(system, solver, params, x))(x)
    plain = jax.jit(lambda x: free_phase(system, together(solver), params, x))(x)
    assert not rest.info.converged.any()
    assert (rest.info.steps == 9).all()
    for ours, theirs in zip(rest.state, plain.state, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)


@pytest.mark.parametrize("steps", [8, 40, 400])
@pytest.mark.parametrize("damping", [0.0, 0.3])
def test_fixed_steps_of_the_examples_that_still_move_are_those_of_all(steps, damping):
    """In float32, where most come to rest to the last bit: by 8 steps few, by 400 all but a few."""
    system, params, x, y = net(40, 3)
    params, x = trees.cast((params, x), jnp.float32)
    solver = fixed_steps(steps, damping=damping)
    betas, found = BETAS.astype(jnp.float32), []
    for each in (solver, together(solver)):
        rest = jax.jit(lambda x, s=each: free_phase(system, s, params, x))(x)
        nudged = jax.jit(
            lambda y, s=each, r=rest: nudged_phases(system, COST, s, params, r, y, betas)
        )(y)
        found.append((rest, nudged))
    ours, theirs = found
    # Products of smaller batches round otherwise; slow examples carry that on for many sweeps.
    for a, b in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    np.testing.assert_array_equal(ours[0].info.converged, theirs[0].info.converged)


@pytest.mark.parametrize("name", ["fixed_steps", "fixed_point", "anderson"])
def test_sweeps_of_the_whole_batch_end_once_a_quarter_of_it_moves(name):
    solver = {
        "fixed_steps": fixed_steps(200),
        "fixed_point": fixed_point(1e-4),
        "anderson": anderson(1e-4),
    }[name]
    system, params, x, _ = net(40, 3, examples=128)
    params, x = trees.cast((params, x), jnp.float32)
    seen = []

    def count(step, state):
        return solver(counted(step, seen), state)

    rest = jax.block_until_ready(jax.jit(lambda x: free_phase(system, count, params, x))(x))
    jax.effects_barrier()
    whole, part = seen.count(128), seen.count(32)
    assert whole + part == len(seen)
    slowest = 198 if name == "fixed_steps" else int(rest.info.steps.max())
    assert 3 <= whole < slowest
    assert part >= 1


def test_a_rule_of_fixed_steps_is_differentiated_as_a_plain_loop():
    """By jax.grad through `apply`, forwards and backwards, and over weights side by side."""
    system, params, x, y = net(20, 3, examples=80)

    def loss(solver):
        rule = rules.eqprop(system, COST, solver, fixed_steps(3))
        return lambda params, x: jnp.sum(COST.value(rule.apply(params, x), y))

    few = fixed_steps(30)
    ours, theirs = loss(few), loss(together(few))
    for a, b in zip(
        *(jax.tree.leaves(jax.jit(jax.grad(f, argnums=(0, 1)))(params, x)) for f in (ours, theirs)),
        strict=True,
    ):
        assert np.abs(b).max() > 1e-3
        np.testing.assert_allclose(a, b, atol=1e-12)
    pair = jax.tree.map(lambda w: jnp.stack([w, 0.5 * w]), params)
    for a, b in zip(
        *(
            jax.tree.leaves(jax.vmap(jax.grad(f), in_axes=(0, None))(pair, x))
            for f in (ours, theirs)
        ),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, atol=1e-12)
    values = [jax.jvp(lambda p, f=f: f(p, x), (params,), (params,)) for f in (ours, theirs)]
    np.testing.assert_allclose(*values, rtol=1e-12)


def test_an_estimate_of_labels_and_keys_is_batched_over_seeds():
    """vmap over all that an estimate is given: what the loops close over is of every kind."""
    system, params, x, y = net(20, 3, examples=80)
    rule = rules.eqprop(system, COST, fixed_steps(30), fixed_steps(30))
    pair = jax.tree.map(lambda w: jnp.stack([w, 0.5 * w]), params)
    batch = Batch(jnp.stack([x, x[::-1]]), jnp.stack([y, y[::-1]]))
    keys = jax.random.split(jax.random.key(7), 2)
    state = jax.vmap(rule.init)(keys, pair)[1]
    both = jax.jit(jax.vmap(rule.estimate))(pair, batch, state, keys)[0].grads
    for n in (0, 1):
        own = jax.tree.map(lambda a, n=n: a[n], (pair, batch, state, keys))
        alone = rule.estimate(*own)[0].grads
        for a, b in zip(jax.tree.leaves(both), jax.tree.leaves(alone), strict=True):
            np.testing.assert_allclose(a[n], b, atol=1e-12)


def test_a_fixed_number_of_sweeps_counts_as_that_many_products():
    """Whatever comes to rest before, and without running anything."""
    system, params, x, _ = net(40, 3, examples=128)
    solver = fixed_steps(200)

    def free(solver):
        return lambda x: free_phase(system, solver, params, x).output

    assert count_macs(free(solver), x) == count_macs(free(together(solver)), x)
    assert count_macs(free(solver), x) > 128 * 200 * 2 * 40 * 3


@pytest.mark.parametrize(
    ("steps", "examples", "loops"), [(30, 64, 2), (30, 16, 2), (30, 15, 0), (3, 640, 0)]
)
def test_fixed_steps_look_for_what_rests_only_where_that_can_pay(steps, examples, loops):
    system, params, x, _ = net(40, 3, examples=examples)
    program = jax.make_jaxpr(lambda x: free_phase(system, fixed_steps(steps), params, x).output)(x)
    assert str(program).split("jvp_jaxpr")[0].count("while[") == loops


def test_a_solve_keeps_no_tracer_of_its_program():
    """16 examples and 8 sweeps: the solver then traces the sweep apart from the caller."""

    def settled(drive, state):
        def some(rows):
            return Sweep(lambda s, n: 0.5 * s + drive[rows])

        step = Sweep(lambda s, n: 0.5 * s + drive, some)
        return fixed_steps(8)(step, state)[0]

    drive = jnp.ones((16, 2))
    with jax.checking_leaks():
        state = jax.jit(settled)(drive, jnp.zeros((16, 2)))
    np.testing.assert_allclose(state, 2.0 * (1.0 - 0.5**8))
