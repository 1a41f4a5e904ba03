"""Anderson acceleration, and loops that carry only what a sweep reads."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import costs, layers, rules, solvers, systems
from bpeq.core import trees
from bpeq.layers import chain, dense
from bpeq.rules._phases import free_phase, nudge, nudged_phases
from bpeq.solvers import anderson, fixed_point, fixed_steps
from bpeq.solvers._loops import memory
from bpeq.types import Batch


def net(name: str, scale: float = 1.0):
    sigma = layers.shifted_sigmoid
    shapes = {
        "one": ((6,), chain(dense(12), sigma(), dense(3), sigma())),
        "linear": ((6,), chain(dense(12), layers.tanh(), dense(3))),
        "deep": ((6,), chain(*(p for n in (9, 8, 7, 3) for p in (dense(n), sigma())))),
        "cnn": (
            (8, 8, 1),
            chain(
                layers.conv(4, kernel=3),
                layers.max_pool(2),
                layers.hard_sigmoid(),
                layers.conv(5, kernel=3),
                layers.max_pool(2),
                layers.hard_sigmoid(),
                layers.flatten(),
                dense(3),
            ),
        ),
    }
    shape, network = shapes[name]
    system = systems.hopfield(network)
    params, _ = system.init(jax.random.key(1), shape)
    params = trees.scale(scale, params)
    x = jax.random.uniform(jax.random.key(2), (16, *shape))
    clamped = system.clamp(params, x)
    push = nudge(system, costs.squared_error(), params, jnp.arange(16) % 3, jnp.asarray(-0.3))
    start = system.init_state(params, clamped)
    return (lambda push: lambda s: system.sweep(params, clamped, s, push)), push, start


NETS = ("one", "linear", "deep", "cnn")


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("nudged", [False, True])
@pytest.mark.parametrize("window", [1, 2, 4])
def test_anderson_reaches_the_equilibrium_of_plain_sweeps(name, nudged, window):
    """Weights of 0.4 times Glorot's: one equilibrium."""
    sweep, push, start = net(name, 0.4)
    step = sweep(push if nudged else None)
    plain, plainly = jax.jit(lambda s: fixed_point(1e-12, 5000)(step, s))(start)
    quick, info = jax.jit(lambda s: anderson(1e-12, 500, window=window)(step, s))(start)
    assert plainly.converged.all()
    assert info.converged.all()
    assert float(trees.max_abs(trees.sub(plain, quick)).max()) < 1e-8
    assert float(info.steps.mean()) < float(plainly.steps.mean())


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("window", [1, 2, 4])
def test_anderson_settles_in_no_saddle(name, window):
    """Among several equilibria it ends in a stable one: pushed away, plain sweeps come back."""
    sweep, _, start = net(name, 1.5)
    step = sweep(None)
    state, info = jax.jit(lambda s: anderson(1e-12, 4000, window=window)(step, s))(start)
    assert info.converged.all()
    pushed = jax.tree.map(lambda s: s + 1e-5 * jnp.cos(jnp.arange(s.size)).reshape(s.shape), state)
    back, again = jax.jit(lambda s: fixed_point(1e-12, 5000)(step, s))(pushed)
    assert again.converged.all()
    assert float(trees.max_abs(trees.sub(back, state)).max()) < 1e-4


@pytest.mark.parametrize("name", NETS)
def test_anderson_certifies_the_very_state_that_it_returns(name):
    sweep, push, start = net(name)
    state, info = anderson(1e-6)(sweep(push), start)
    residual = trees.max_abs(trees.sub(sweep(push)(state), state))
    np.testing.assert_allclose(info.residual, residual, atol=1e-14)
    assert (info.residual <= 1e-6).all()


def test_an_affine_map_is_solved_once_the_window_spans_it():
    """Anderson is GMRES on an affine map: exact after n + 1 sweeps, and one to certify it."""
    a = jax.random.normal(jax.random.key(0), (3, 3))
    a = 0.9 * a / jnp.linalg.norm(a, 2)
    solution = jnp.linalg.solve(jnp.eye(3) - a.T, jnp.ones(3))
    state, info = anderson(1e-7, window=3, near=99.0)(lambda s: s @ a + 1.0, jnp.zeros((1, 3)))
    np.testing.assert_allclose(state[0], solution, atol=1e-6)
    assert int(info.steps[0]) <= 6


def test_an_accelerated_example_does_not_depend_on_its_batch_mates():
    sweep, push, start = net("deep")
    among, _ = anderson(1e-9)(sweep(push), start)
    cut = jax.tree.map(lambda s: s[:1], start)

    def alone(s):
        padded = jax.tree.map(lambda part: jnp.repeat(part, 16, axis=0), s)
        return jax.tree.map(lambda part: part[:1], sweep(push)(padded))

    state, _ = anderson(1e-9)(alone, cut)
    for one, many in zip(state, among, strict=True):
        np.testing.assert_allclose(one[0], many[0], atol=1e-14)


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_anderson_never_takes_nan_or_infinity_for_settled(bad):
    _, info = anderson(1e-3, 50)(lambda s: s * bad, jnp.ones((2, 1)))
    assert not info.converged.any()
    start = jnp.array([[0.0], [jnp.nan], [0.0]])
    state, info = anderson(1e-6, 300, near=99.0)(lambda s: 0.9 * s + 1.0, start)
    assert info.converged.tolist() == [True, False, True]
    np.testing.assert_allclose(state[::2], 10.0, atol=1e-4)


def test_without_a_fixed_point_anderson_reports_failure():
    _, info = anderson(1e-9, 40)(lambda s: s + 1.0, jnp.zeros((2, 1)))
    assert not info.converged.any()
    assert info.steps.tolist() == [40, 40]


def test_acceleration_does_not_keep_a_saddle_that_plain_sweeps_leave():
    """s = tanh 2s at rest near 0, the saddle: plain sweeps end at ±0.957."""
    start = jnp.array([[1e-3], [-1e-6], [0.3]])
    state, info = anderson(1e-10, window=2, near=99.0)(lambda s: jnp.tanh(2.0 * s), start)
    assert info.converged.all()
    np.testing.assert_allclose(state[:, 0], [0.9575040, -0.9575040, 0.9575040], atol=1e-7)


def test_an_unsettled_example_takes_plain_sweeps_in_the_second_half():
    seen = []

    def step(s):
        seen.append(s)
        return s + 1.0

    with jax.disable_jit():
        anderson(1e-9, 40, near=99.0)(step, jnp.zeros((1, 1)))
    path = np.array([float(s[0, 0]) for s in seen if not isinstance(s, jax.core.Tracer)])
    np.testing.assert_array_equal(np.diff(path[-18:-1]), 1.0)


def test_a_residual_that_has_doubled_sends_an_example_back_to_a_plain_sweep():
    """f = 1 − s/10 up to s = 5, and −50 beyond: the secant through 0 and 1 leads to 10."""
    seen = []

    def step(s):
        seen.append(s)
        return s + jnp.where(s <= 5.0, 1.0 - 0.1 * s, -50.0)

    with jax.disable_jit():
        anderson(1e-9, 8, window=1, near=99.0)(step, jnp.zeros((1, 1)))
    path = [float(s[0, 0]) for s in seen if not isinstance(s, jax.core.Tracer)]
    np.testing.assert_allclose(path[:4], [0.0, 1.0, 10.0, -40.0], atol=1e-9)


@pytest.mark.parametrize("near", [0.9, 0.5, 0.1, 0.02])
def test_an_example_is_accelerated_once_its_residual_is_near(near):
    """s ← 0.9 s + 1 from 0 has residuals 0.9^k; a secant at any two of them solves it."""
    _, info = anderson(1e-9, near=near)(lambda s: 0.9 * s + 1.0, jnp.zeros((1, 1)))
    plain = max(1, int(np.ceil(np.log(near) / np.log(0.9))))  # sweeps, the first knows no change
    assert info.steps.tolist() == [plain + 2]


def test_near_keeps_accelerated_phases_of_a_pooled_net_on_the_path_of_plain_sweeps():
    """Weights of twice Glorot's: many equilibria."""
    sweep, _, start = net("cnn", 2.0)
    plain, info = jax.jit(lambda s: fixed_point(1e-12, 5000)(sweep(None), s))(start)
    assert info.converged.all()
    elsewhere = []
    for near in (1e9, 1e-3):
        state, _ = jax.jit(lambda s, n=near: anderson(1e-12, 5000, near=n)(sweep(None), s))(start)
        elsewhere.append(int((trees.max_abs(trees.sub(state, plain)) > 1e-8).sum()))
    assert elsewhere[0] > 0
    assert elsewhere[1] == 0


def test_complex_states_are_accelerated_too():
    rate = jnp.array([[0.5 + 0.6j]])
    state, info = anderson(1e-10, near=99.0)(lambda s: rate * s + 1.0, jnp.zeros((1, 1), complex))
    np.testing.assert_allclose(state, 1 / (1 - rate), atol=1e-9)
    assert int(info.steps[0]) <= 4


def test_a_sweep_of_one_hidden_layer_reads_only_the_outputs():
    sweep, push, start = net("one")
    for step in (sweep(None), sweep(push)):
        assert [leaf.shape for leaf in memory(step, start).pick(start)] == [(16, 3)]
    assert memory(lambda s: (s[1], s[0]), (jnp.zeros(1), jnp.zeros(1))).whole


def test_a_sweep_that_reads_nothing_is_settled_by_its_second_evaluation():
    """A single layer, whose units wait for no others."""
    system = systems.hopfield(chain(dense(4), layers.tanh(), dense(2)), output="readout")
    params, _ = system.init(jax.random.key(1), (3,))
    clamped = system.clamp(params, jnp.ones((5, 3)))
    for solver in (anderson(1e-12), fixed_point(1e-12), fixed_steps(2)):
        start = system.init_state(params, clamped)
        state, info = solver(lambda s: system.sweep(params, clamped, s), start)
        np.testing.assert_allclose(state[0], jnp.tanh(clamped.drives[0]), atol=1e-15)
        assert info.converged.all()
        assert info.steps.tolist() == [2] * 5


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_fixed_steps_that_carry_less_are_plain_iteration(name, steps):
    sweep, push, start = net(name)
    state, info = fixed_steps(steps)(sweep(push), start)
    before = after = start
    for _ in range(steps):
        before, after = after, sweep(push)(after)
    for ours, theirs in zip(state, after, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-14)
    np.testing.assert_allclose(info.residual, trees.max_abs(trees.sub(after, before)), atol=1e-14)


@pytest.mark.parametrize("name", ["centered", "holomorphic", "asymmetric"])
def test_a_rule_by_anderson_gives_the_gradient_of_plain_sweeps(name):
    """On a batch whose last examples go on alone, if the rule's nudge can be taken apart."""
    network = chain(dense(12), layers.shifted_sigmoid(), dense(3), layers.shifted_sigmoid())
    cost, feedback = costs.squared_error(), "untied" if name == "asymmetric" else "tied"
    system = systems.hopfield(network, feedback=feedback)
    params, _ = system.init(jax.random.key(1), (6,))
    batch = Batch(jax.random.uniform(jax.random.key(2), (64, 6)), jnp.arange(64) % 3)
    found = []
    for solver in (fixed_point(1e-12, 5000), anderson(1e-12)):
        if name == "asymmetric":
            rule = rules.asymmetric_eqprop(system, cost, solver, solver)
        else:
            rule = rules.eqprop(system, cost, solver, solver, beta=0.1, nudging=name)
        trained, state = rule.init(jax.random.key(3), params)
        estimate = jax.jit(rule.estimate)(trained, batch, state, jax.random.key(4))[0]
        found.append(estimate.grads)
    for plain, quick in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_allclose(quick, plain, atol=1e-9)


def test_anderson_compiles_once_for_all_numbers_of_sweeps():
    sizes = []
    for most in (10, 1000):
        program = jax.jit(lambda s, most=most: solvers.anderson(1e-6, most)(lambda s: 0.9 * s, s))
        sizes.append(len(program.lower(jnp.ones((4, 3))).as_text()))
    assert abs(sizes[0] - sizes[1]) < 10


def recorder(seen):
    """A solver that keeps the step it is given, and takes one sweep."""

    def solve(step, state):
        seen.append((step, state))
        return fixed_steps(1)(step, state)

    return solve


SYSTEMS = {
    "hopfield": lambda: systems.hopfield(chain(dense(5), layers.tanh(), dense(3))),
    "synchronous": lambda: systems.hopfield(
        chain(dense(5), layers.tanh(), dense(3)), schedule="synchronous", skips={(0, 2): dense(3)}
    ),
    "readout": lambda: systems.hopfield(chain(dense(5), layers.tanh(), dense(3)), output="readout"),
    "predictive": lambda: systems.predictive(chain(dense(5), layers.tanh(), dense(3))),
}


@pytest.mark.parametrize("name", ["hopfield", "synchronous", "readout", "predictive"])
def test_a_step_on_some_rows_is_the_step_there(name):
    """In a free phase, and in nudged ones, whose rows count through the batch once a phase."""
    system, seen, batch = SYSTEMS[name](), [], 7
    cost = costs.softmax_cross_entropy() if name == "readout" else costs.squared_error()
    params, _ = system.init(jax.random.key(1), (4,))
    x, y = jax.random.normal(jax.random.key(2), (batch, 4)), jnp.arange(batch) % 3
    rest = free_phase(system, recorder(seen), params, x)
    betas = jnp.array([0.3, -0.2])
    nudged_phases(system, cost, recorder(seen), params, rest, y, betas)
    for (step, state), rows in zip(seen, ([2, 0, 6], [13, 3, 8, 7]), strict=True):
        chosen = jnp.array(rows)
        moved = step.some(chosen)(jax.tree.map(lambda s, c=chosen: s[c], state))
        for ours, whole in zip(jax.tree.leaves(moved), jax.tree.leaves(step(state)), strict=True):
            np.testing.assert_allclose(ours, whole[chosen], atol=1e-14)
    step, state = seen[1]  # all phases of one batch: each as it would be by itself
    parts = [
        jax.tree.map(lambda s, n=n: s[n * batch :][:batch], (state, step(state))) for n in (0, 1)
    ]
    for beta, (own, whole) in zip(betas, parts, strict=True):
        alone = system.sweep(params, rest.clamped, own, nudge(system, cost, params, y, beta))
        for ours, theirs in zip(jax.tree.leaves(alone), jax.tree.leaves(whole), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-14)


@pytest.mark.parametrize("apart", [True, False])
def test_rows_of_what_is_clamped_are_taken_as_the_system_declares(apart):
    """The drive's batch is its last axis here; without `take_rows` the batch stays whole."""
    own = systems.hopfield(chain(dense(6), layers.tanh(), dense(3)))

    def clamp(params, x):
        clamped = own.clamp(params, x)
        return [clamped._replace(drives=(clamped.drives[0].T, None)), 2.0]

    def back(clamped):
        return clamped[0]._replace(drives=(clamped[0].drives[0].T, None))

    def take_rows(clamped, rows):
        return [clamped[0]._replace(drives=(clamped[0].drives[0][:, rows], None)), clamped[1]]

    system = own._replace(
        clamp=clamp,
        init_state=lambda params, clamped: own.init_state(params, back(clamped)),
        sweep=lambda params, clamped, *rest: own.sweep(params, back(clamped), *rest),
        traits=own.traits._replace(take_rows=take_rows if apart else None),
    )
    params, _ = system.init(jax.random.key(1), (4,))
    x, seen = jax.random.normal(jax.random.key(2), (6, 4)), []
    rest = free_phase(system, recorder(seen), params, x)
    nudged_phases(
        system, costs.squared_error(), recorder(seen), params, rest, x[:, :3], jnp.array([0.3, -1])
    )
    for (step, state), rows in zip(seen, ([2, 0, 5], [11, 3, 8]), strict=True):
        assert (step.some is not None) == apart
        if apart:
            chosen = jnp.array(rows)
            moved = step.some(chosen)(jax.tree.map(lambda s, c=chosen: s[c], state))
            for ours, whole in zip(moved, step(state), strict=True):
                np.testing.assert_allclose(ours, whole[chosen], atol=1e-14)
