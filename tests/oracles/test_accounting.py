"""What a gradient costs, against counts by hand, SolveInfo, and a clock that we set."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import costs, rules, solvers, systems
from bpeq.analysis import gradient_fidelity
from bpeq.analysis.gradient_cost import (
    compiled_gradient,
    count_macs,
    measure_gradients,
    seconds_of,
)
from bpeq.layers import chain, dense, tanh
from bpeq.types import Batch, Estimate, LearningRule

CUBE = 2**3  # multiply-accumulates of one product of 2×2 matrices


def shrink(x: jax.Array) -> jax.Array:
    """x ← x x / 4 until its corner is at most 1: for c·1, log2(log 4 / log(4/c)) rounds, upward."""
    return jax.lax.while_loop(lambda x: x[0, 0] > 1, lambda x: x @ x / 4, x)


def rounds(corner: float) -> int:
    taken = 0
    while corner > 1:
        corner, taken = corner**2 / 4, taken + 1
    return taken


def scaled(*corners: float) -> jax.Array:
    return jnp.stack([c * jnp.eye(2) for c in corners])


# --- multiply-accumulates ----------------------------------------------------------------------


@pytest.mark.parametrize("corner", [0.5, 1.5, 3.0, 3.9])
def test_a_while_loop_counts_the_rounds_that_it_took(corner):
    assert count_macs(shrink, corner * jnp.eye(2)) == rounds(corner) * CUBE


def test_loops_side_by_side_run_until_the_slowest_is_done():
    """Two batches of two: a product of four 2×2 matrices a round."""
    corners = np.array([[0.5, 1.5], [3.0, 3.9]])
    x = jnp.stack([scaled(*row) for row in corners])
    assert count_macs(jax.vmap(jax.vmap(shrink)), x) == max(map(rounds, corners.flat)) * 4 * CUBE


def test_copies_that_are_done_stay_while_the_others_go_on():
    """A second loop starts from what the first one left: were it 0.0…, it would take no round."""

    def twice(x: jax.Array) -> jax.Array:
        return shrink(4 * shrink(x))

    left = [c for c in (1.9, 3.9)]
    for i, corner in enumerate(left):
        while corner > 1:
            corner = corner**2 / 4
        left[i] = 4 * corner
    expected = (max(map(rounds, (1.9, 3.9))) + max(map(rounds, left))) * 2 * CUBE
    assert count_macs(jax.vmap(twice), scaled(1.9, 3.9)) == expected


@pytest.mark.parametrize("reverse", [False, True])
def test_a_scan_over_loops_counts_each_and_hands_on_its_carry(reverse):
    """The carry grows the next start by what the loops before it left."""
    corners = [1.5, 3.0, 3.9]

    def program(xs: jax.Array) -> Any:
        def one(carry: jax.Array, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = shrink(x + 0.01 * carry)
            return y, y

        last, ys = jax.lax.scan(one, jnp.zeros((2, 2)), xs, reverse=reverse)
        return shrink(3 * ys[0] + 0 * last)

    expected, carry, ys = 0, 0.0, []
    for corner in corners[:: -1 if reverse else 1]:
        corner += 0.01 * carry
        while corner > 1:
            corner, expected = corner**2 / 4, expected + 1
        carry = corner
        ys.append(corner)
    expected += rounds(3 * ys[-1 if reverse else 0])
    assert count_macs(program, scaled(*corners)) == expected * CUBE


def test_a_loop_in_a_loop_counts_every_round_of_both():
    def program(x: jax.Array) -> jax.Array:
        def again(pair: Any) -> Any:
            i, y = pair
            return i + 1, shrink(y @ (3.9 * jnp.eye(2)))

        return jax.lax.while_loop(lambda pair: pair[0] < 3, again, (0, x))[1]

    inner, corner = 0, 0.9
    for _ in range(3):
        corner *= 3.9
        while corner > 1:
            corner, inner = corner**2 / 4, inner + 1
    assert count_macs(program, 0.9 * jnp.eye(2)) == (3 + inner) * CUBE


@pytest.mark.parametrize("taken", [0, 1])
def test_of_a_choice_between_loops_the_one_taken_counts(taken):
    def program(i: jax.Array, x: jax.Array) -> jax.Array:
        return jax.lax.switch(i, [shrink, lambda x: shrink(x @ x / 3.0)], x)

    counts = [rounds(1.5), 1 + rounds(1.5**2 / 3.0)]
    assert count_macs(program, jnp.asarray(taken), 1.5 * jnp.eye(2)) == counts[taken] * CUBE


def test_without_loops_nothing_is_computed_to_count():
    def program(x: jax.Array) -> jax.Array:
        return jax.pure_callback(pytest.fail, jax.ShapeDtypeStruct((2, 2), x.dtype), x) @ x

    assert count_macs(program, jnp.eye(2)) == CUBE


def relaxing() -> tuple[Any, ...]:
    """eqprop that settles to a residual: 5 inputs, 4 hidden units, 3 outputs, a batch of 6."""
    network = chain(dense(4), tanh(), dense(3), tanh())
    settle = solvers.fixed_point(1e-7, 300)
    rule = rules.eqprop(systems.hopfield(network), costs.squared_error(), settle, settle)
    params, _ = network.init(jax.random.key(0), (5,))
    params, state = rule.init(jax.random.key(1), params)
    x = jax.random.normal(jax.random.key(2), (6, 5))
    return rule, params, Batch(x, jnp.arange(6, dtype=jnp.int32) % 3), state, jax.random.key(3)


def test_eqprop_to_a_residual_costs_the_sweeps_that_it_made():
    """As with a fixed number of sweeps, but a phase's loop ends with its slowest example."""
    rule, *args = relaxing()
    info = jax.jit(rule.estimate)(*args)[0].info
    batch, first, second = 6, 5 * 4, 4 * 3
    free, nudged = int(info["free"].steps.max()), int(info["nudged"].steps.max())
    assert int(info["free"].steps.min()) < free
    contrast = first + 2 * second + 4  # as test_compare counts it
    expected = batch * (first + (free + 2 * nudged) * 2 * second + contrast)
    assert count_macs(rule.estimate, *args) == expected


# --- sweeps, memory, time ----------------------------------------------------------------------


def test_sweeps_are_the_examples_mean_of_all_phases():
    rule, *args = relaxing()
    info = jax.device_get(jax.jit(rule.estimate)(*args)[0].info)
    expected = info["free"].steps.mean() + info["nudged"].steps.mean(axis=1).sum()
    assert compiled_gradient(rule, *args).sweeps == pytest.approx(expected, rel=1e-12)
    params, batch, state, key = args
    found = gradient_fidelity.gradient_fidelity(rule, params, batch, key=key, state=state)
    assert found.sweeps == pytest.approx(expected, rel=1e-12)


def rule_of(grads: Any) -> LearningRule:
    """A rule of one parameter, whose gradient is grads(w, x)."""

    def estimate(params: Any, batch: Batch, state: Any, key: Any) -> tuple[Estimate, Any]:
        return Estimate(grads(params, batch.x), jnp.zeros(()), batch.x, {}), state

    return LearningRule("own", lambda key, params: (params, ()), lambda p, x, key=None: x, estimate)


def test_bytes_are_those_of_what_lies_between_arguments_and_results():
    """x xᵀ of 300 × 300 float64 numbers, from 300 numbers to one."""
    rule = rule_of(lambda w, x: w * jnp.sort(x @ x.T, axis=1)[:, 0].sum())
    batch = Batch(jnp.ones((300, 1)), jnp.ones(300))
    gradient = compiled_gradient(rule, jnp.ones(()), batch, (), jax.random.key(0))
    (cost,) = measure_gradients({"own": gradient}).values()
    assert 300 * 300 * 8 <= cost.bytes <= 4 * 300 * 300 * 8
    assert (cost.sweeps, cost.macs) == (0, 300 * 300)


def test_seconds_are_warm_medians_of_calls_in_turn(monkeypatch):
    """By the clock: a first call of 9 s, then 3, 1, 2, 40, 2.5; the other one ten times that."""
    takes, now, order = [9.0, 3.0, 1.0, 2.0, 40.0, 2.5], [0.0], []

    def call(name: str, times: float, left: list[float]) -> jax.Array:
        order.append(name)
        now[0] += times * left.pop(0)
        return jnp.zeros(())

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    calls = [partial(call, "a", 1.0, [*takes]), partial(call, "b", 10.0, [*takes])]
    assert seconds_of(calls) == [2.5, 25.0]
    assert order == ["a", "b"] * 6


def test_turns_go_on_until_the_budget_of_all_is_spent(monkeypatch):
    """0.5 s a call, of 0.125 and 0.025 s: more than six turns of 0.15 s, so seven, and a first."""
    now, made = [0.0], []

    def call(takes: float) -> jax.Array:
        made.append(takes)
        now[0] += takes
        return jnp.zeros(())

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    seconds_of([partial(call, 0.125), partial(call, 0.025)])
    assert len(made) == 2 * (1 + 7)


def test_seconds_are_those_of_one_gradient():
    def slow(w: Any, x: Any) -> Any:
        def wait(x: Any) -> Any:
            time.sleep(0.05)
            return x

        return w + jax.pure_callback(wait, jax.ShapeDtypeStruct(x.shape, x.dtype), x).sum()

    def quick(w: Any, x: Any) -> Any:
        return w + x.sum()

    batch, key = Batch(jnp.ones(3), jnp.ones(3)), jax.random.key(0)
    gradients = {
        f.__name__: compiled_gradient(rule_of(f), jnp.ones(()), batch, (), key)
        for f in (slow, quick)
    }
    found = measure_gradients(gradients)
    assert 0.05 <= found["slow"].seconds < 0.09
    assert found["quick"].seconds < 0.02
