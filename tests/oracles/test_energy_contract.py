"""The energy contract: energies that break it in one way each are caught and named; ours pass."""

import inspect
import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.analysis.energy_contract import check_energy
from bpeq.analysis.energy_contract._context import Context
from bpeq.analysis.energy_contract._corners import corner_finding
from bpeq.analysis.energy_contract._derivatives import symmetry_finding
from bpeq.analysis.energy_contract._equilibria import batch_independence_finding
from bpeq.analysis.energy_contract._holomorphy import holomorphic_finding
from bpeq.analysis.energy_contract._pieces import piecewise_operations
from bpeq.analysis.gradient_fidelity import gradient_fidelity
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, conv, dense, flatten, max_pool
from bpeq.rules import eqprop
from bpeq.solvers import fixed_point
from bpeq.systems import from_energy, from_field, hopfield, predictive, resistive
from bpeq.types import Batch

KEY = jax.random.key(0)
X = jax.random.normal(KEY, (2, 5))
W = 0.4 * jax.random.normal(jax.random.key(1), (4, 5))
OWN = {"init_state": lambda p, x: jnp.zeros(4), "readout": lambda p, s: s[:2]}
FEW = {"starts": 4, "sweeps": 600, "key": KEY}


def check(energy, params=W, x=X, **settings):
    return check_energy(energy, params, x, **{**FEW, **OWN, **settings})


def plain(coupling=lambda s: 0.0):
    """½|s|² − s·Wx + coupling(s)."""
    return lambda p, s, x: 0.5 * jnp.sum(s * s) - s @ (p @ x) + coupling(s)


def made(energy):
    parts = (OWN["init_state"], OWN["readout"], lambda key, shape: (W, (2,)))
    return from_energy(energy, *parts)


def looked_at(system, x=X, sweeps=50, energy=None):
    """What single findings are of, without the others."""
    y = jnp.zeros((len(x), 2))
    return Context(system, W, x, squared_error(), y, sweeps, energy)


def corners_of(energy):
    return corner_finding(looked_at(made(energy), energy=energy), KEY)


def verdicts(found):
    return {finding.name: finding.passed for finding in found}


def failing(found):
    return [name for name, passed in verdicts(found).items() if passed is False]


# --- one way each ------------------------------------------------------------------------------


@jax.custom_jvp
def one_percent_off(s):
    return 0.3 * jnp.sum(jnp.tanh(s))


@one_percent_off.defjvp
def _(primals, tangents):
    (s,), (ds,) = primals, tangents
    return one_percent_off(s), 1.01 * 0.3 * jnp.sum((1 - jnp.tanh(s) ** 2) * ds)


def test_a_custom_derivative_of_another_function_is_caught():
    found = check(plain(one_percent_off))
    assert failing(found) == ["gradient"]
    assert found.gradient.words.startswith("the force differs from central differences by")
    assert found.gradient.figure > 1e-3


def test_a_stop_gradient_that_matters_is_caught_in_state_and_in_weights():
    found = check(plain(lambda s: 0.3 * jnp.sum(jax.lax.stop_gradient(jnp.tanh(s)) * s)))
    assert failing(found) == ["gradient"]
    energy = lambda p, s, x: 0.5 * s @ s - s @ (jax.lax.stop_gradient(p["w"]) @ x) - p["b"] @ s  # noqa: E731
    found = check(energy, {"w": W, "b": jnp.ones(4)})
    assert failing(found) == ["gradient"]
    assert " of w differs" in found.gradient.words


def test_a_wrong_denergy_of_a_system_is_named():
    system = hopfield(chain(dense(4), layers.tanh(), dense(2)))
    params = jax.tree.map(lambda p: 0.3 * p, system.init(KEY, (5,))[0])

    def wrong(params, clamped, phases, weights):
        grads, dx = system.denergy(params, clamped, phases, weights)
        return ({**grads[0], "b": 1.001 * grads[0]["b"]}, *grads[1:]), dx

    found = check_energy(system._replace(denergy=wrong), params, X, **FEW)
    assert failing(found) == ["gradient"]
    assert found.gradient.words.startswith("∂E/∂θ of 0.b differs")
    np.testing.assert_allclose(found.gradient.figure, 0.0005, rtol=0.1)


def test_a_field_without_an_energy_is_caught_with_its_asymmetry():
    matrix = jnp.array([[1.0, 0.5], [0.1, 2.0]])
    system = from_field(
        lambda p, s, x: p @ (x - s), lambda p, x: jnp.zeros(2), lambda p, s: s,
        lambda key, shape: (matrix, (2,)), step_size=0.3,
    )  # fmt: skip
    found = check_energy(system, matrix, jnp.ones((2, 2)), **FEW)
    assert failing(found) == ["symmetric"]
    m = np.asarray(matrix)
    exact = np.linalg.norm(m - m.T) / np.linalg.norm(m)
    assert found.symmetric.figure >= exact * (1 - 1e-9)  # at the equilibrium, or a sampled estimate
    assert found.gradient.words.startswith("no energy")


@pytest.mark.parametrize("skew", [0.0, 0.3])
def test_asymmetry_is_seen_along_random_lines_too(skew):
    """Where there is no dense Jacobian: by forward mode, and by differences without one."""
    matrix = jnp.eye(3) + skew * jnp.array([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])

    @jax.custom_vjp
    def reversed_only(s):
        return matrix @ s

    reversed_only.defvjp(lambda s: (matrix @ s, None), lambda _, g: (matrix.T @ g,))
    for pull in (lambda s: matrix @ s, reversed_only):
        system = from_field(
            lambda p, s, x, pull=pull: p * x - pull(s), lambda p, x: jnp.zeros(3), lambda p, s: s,
            lambda key, shape: (jnp.ones(()), (3,)), step_size=0.3,
        )  # fmt: skip
        y = jnp.zeros((2, 3))
        subject = Context(system, jnp.ones(()), X[:, :3], squared_error(), y, 200)
        found = symmetry_finding(subject, KEY, None)
        assert found.passed is (skew == 0.0)
        m = np.asarray(matrix)
        exact = np.linalg.norm(m - m.T) / np.linalg.norm(m)
        assert 0.2 * exact <= found.figure <= 3 * exact + 1e-8


def test_outputs_of_little_curvature_are_unbounded_under_a_negative_nudge():
    """K is the outputs' own curvature here: 0.05 and 1."""
    bent = jnp.array([0.05, 1.0, 1.0, 1.0])
    energy = lambda p, s, x: 0.5 * jnp.sum(bent * s * s) - s @ (p @ x)  # noqa: E731
    found = check(energy, beta=0.1, sweeps=2000)
    assert failing(found) == ["bounded"]
    np.testing.assert_allclose(found.bounded.figure, 0.05, rtol=1e-9)
    words = "K = 0.05: E − βC keeps its minimum for β < 0.05; the phase at −0.1 does not settle"
    assert found.bounded.words == words
    assert check(energy, beta=0.01, sweeps=2000).passed


def test_the_bound_on_beta_is_k_over_the_costs_curvature():
    """Cross-entropy of two classes bends by 2p(1 − p) at most, along (1, −1)."""
    y = jnp.array([0, 1])
    found = check(plain(), cost=softmax_cross_entropy(), y=y)
    output = np.asarray(W @ X.T).T[:, :2]
    p = 1 / (1 + np.exp(output[:, 1] - output[:, 0]))
    np.testing.assert_allclose(found.bounded.figure, 1 / (2 * p * (1 - p)).max(), rtol=1e-6)


def test_a_minimum_that_is_only_local_is_a_note():
    """√(1 + s²) grows like |s|, which −½βs² outweighs far away."""
    found = check(lambda p, s, x: jnp.sum(jnp.sqrt(1 + s * s)) - 0.1 * s @ (p @ x), beta=0.1)
    assert found.bounded.passed is None
    assert "far away E − βC falls without bound" in found.bounded.words
    assert found.passed


def test_several_equilibria_are_counted():
    """(s² − 1)²/4 in one unit has two wells."""
    energy = lambda p, s, x: (s[0] ** 2 - 1) ** 2 / 4 + 0.5 * jnp.sum(s[1:] ** 2) - s @ (p @ x)  # noqa: E731
    found = check(energy, params=0.01 * W, step_size=0.2, starts=12)
    assert failing(found) == ["unique"]
    assert found.unique.figure == 2
    assert found.unique.words == "random starts settle in 2 different states, up to 2 apart"


def test_a_bistable_hopfield_net_is_caught():
    """Means m of two layers, m₁ = σ(8 m₂ − 4) and m₂ = σ(8 m₁ − 4), hold each other low or high.

    Its states end at 0 and 1, and random starts lie beyond: what counts is that a sweep takes them.
    """
    sigma, low = layers.shifted_sigmoid(), jnp.full((8,), -0.5)
    system = hopfield(chain(dense(8), sigma, dense(8), sigma))
    up = {"w": jnp.full((8, 8), 2.0 / 8.0), "b": low}
    params = ({"w": jnp.zeros((5, 8)), "b": low}, (), up, ())
    found = check_energy(system, params, X, **{**FEW, "starts": 8}, spread=3.0)
    assert failing(found) == ["unique"]
    assert found.unique.figure == 2


def test_saturated_units_do_not_hide_the_derivatives():
    """Inputs of ±40 leave sigmoid units at 1e-17 and 1, where σ⁻¹ is steep without bound."""
    system = hopfield(chain(dense(4), layers.sigmoid(), dense(2)))
    params = jax.tree.map(lambda p: 0.3 * p, system.init(KEY, (5,))[0])
    found = check_energy(system, params, 100.0 * X, **FEW)
    assert found.gradient.passed
    assert found.symmetric.passed
    wrong = lambda *args: jax.tree.map(lambda g: 1.001 * g, system.force(*args))  # noqa: E731
    broken = check_energy(system._replace(force=wrong), params, 100.0 * X, **FEW)
    assert failing(broken) == ["gradient"]


def test_a_system_that_never_settles_is_no_unique_equilibrium():
    found = check(plain(), step_size=2.5)  # s ← s − 2.5 (s − Wx) overshoots for ever
    assert failing(found) == ["bounded", "unique"]
    assert "10 of 10 free phases did not settle in 600 sweeps" in found.unique.words


@pytest.mark.parametrize("part", ["energy", "sweep"])
def test_an_energy_or_a_sweep_that_looks_at_batch_mates_is_caught(part):
    system = made(plain())
    assert batch_independence_finding(looked_at(system), KEY).passed

    def energy(p, c, s):
        return system.energy(p, c, s) + 0.2 * jnp.sum(s * s.mean(axis=0), axis=-1)

    def sweep(p, c, s, push=None, hold=False):
        return system.sweep(p, c, s, push, hold) - 1e-6 * s.mean(axis=0)

    coupled = {"energy": energy, "sweep": sweep}[part]
    for x in (X, X[:1]):  # a single example has a copy beside it, in another state
        found = batch_independence_finding(looked_at(system._replace(**{part: coupled}), x), KEY)
        assert found.passed is False
        assert found.words.startswith(f"an example's {part} depends on its batch mates: by ")
    assert 1e-8 < found.figure < 1


PIECES = {
    "max": lambda s: jnp.sum(jnp.maximum(s, 0.1)),
    "min": lambda s: jnp.sum(jnp.minimum(s, 0.1)),
    "abs": lambda s: jnp.sum(jnp.abs(s)),
    "clamp": lambda s: jnp.sum(jax.lax.clamp(0.0, s, 1.0)),
    "sign": lambda s: jnp.sum(jnp.sign(s) * s),
    "gt": lambda s: jnp.sum(jnp.where(s > 0, s, 0.0)),
    "lt": lambda s: jnp.sum(s * (s < 0.0).astype(s.dtype)),
    "ge": lambda s: jnp.mean(jax.nn.leaky_relu(s)),
    "reduce_max": lambda s: jnp.max(s),
    "sort": lambda s: jnp.sort(s)[0],
    "argmax": lambda s: s[jnp.argmax(s)],
    "round": lambda s: jnp.sum(s - jnp.round(s)),
    "reduce_window_max": lambda s: jnp.sum(
        jax.lax.reduce_window(s, -jnp.inf, jax.lax.max, (2,), (2,), "VALID")
    ),
    "while": lambda s: jax.lax.while_loop(lambda c: c[0] < 3, lambda c: c + 1, s)[0],
}


@pytest.mark.parametrize("name", PIECES)
def test_the_operation_in_pieces_is_named_with_its_line(name):
    function = PIECES[name]
    start = inspect.getsourcelines(function)[1]
    found = piecewise_operations(lambda s: 0.5 * jnp.sum(s * s) + function(s), jnp.ones(4))
    assert [operation.name for operation in found] == [name]
    file, _, line = found[0].where.rpartition(":")
    assert file == "test_energy_contract.py"
    assert start <= int(line) <= start + 2


def test_also_inside_jit_scan_and_a_derivative():
    def inside(s):
        return jax.lax.scan(lambda c, _: (jax.jit(jnp.abs)(c), None), s, length=2)[0].sum()

    assert [operation.name for operation in piecewise_operations(inside, jnp.ones(4))] == ["abs"]
    slope = piecewise_operations(jax.grad(inside), jnp.ones(4))
    assert {"abs"} < {operation.name for operation in slope}  # and what chooses the sign


WHOLE = {
    "logsumexp": jax.nn.logsumexp,
    "softmax": lambda s: jax.nn.softmax(s) @ s,
    "softplus": lambda s: jnp.sum(jax.nn.softplus(s)),
    "gelu": lambda s: jnp.sum(jax.nn.gelu(s)),
    "log cosh": lambda s: jnp.sum(jnp.log(jnp.cosh(s))),
    "guarded": lambda s: jnp.sum(jnp.where(s == 0, 1.0, jnp.sin(s) / jnp.where(s == 0, 1.0, s))),
    "comparison of the rest": lambda s: jnp.sum(jnp.where(jnp.arange(4) > 1, s, 0.0)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_what_is_computed_in_pieces_but_holomorphic_is_not_named(name):
    assert piecewise_operations(WHOLE[name], jnp.ones(4)) == []


def test_complex_parts_are_found_where_cauchy_and_riemann_fail():
    """vdot conjugates; on real numbers nothing of that is seen."""
    found = check(lambda p, s, x: 0.5 * jnp.vdot(s, s).real - s @ (p @ x))
    assert found.holomorphic.passed is None  # a note, unless it is asked for
    assert found.holomorphic.figure > 0.1
    assert found.holomorphic.words.startswith("not complex-differentiable: conj (test_energy")
    assert found.passed
    asked = check(plain(lambda s: jnp.sum(jnp.abs(s))), holomorphic=True)
    assert "holomorphic" in failing(asked)
    assert "abs (test_energy_contract.py:" in asked.holomorphic.words


def test_a_systems_own_word_on_being_holomorphic_is_checked():
    system = hopfield(chain(dense(4), layers.relu(), dense(2)))
    params = jax.tree.map(lambda p: 0.3 * p, system.init(KEY, (5,))[0])
    honest = check_energy(system, params, X, **FEW)
    assert honest.holomorphic.passed is None
    lying = system._replace(traits=system.traits._replace(not_holomorphic=""))
    for needed in (True, False):  # a note, unless a complex β is asked for
        found = check_energy(lying, params, X, **FEW, holomorphic=needed)
        assert failing(found) == (["holomorphic"] if needed else [])
        assert found.holomorphic.words.endswith("the system says that it is")


def holomorphy_of(coupling, needed=True):
    energy = plain(coupling)
    return holomorphic_finding(looked_at(made(energy), energy=energy), needed, KEY)


def stable_logsumexp(s):
    top = jnp.max(s)
    return top + jnp.log(jnp.sum(jnp.exp(s - top)))


def stable_softmax(s):
    powers = jnp.exp(s - jnp.max(s))
    return powers @ s / jnp.sum(powers)


def stable_pair(s):
    a, b = s[:2], s[2:]
    high, low = jnp.where(a >= b, a, b), jnp.where(a >= b, b, a)
    return jnp.sum(high + jnp.log1p(jnp.exp(low - high)))


def guarded_sinc(s):
    small = jnp.abs(s) < 1e-3
    series = 1 - s**2 / 6 + s**4 / 120
    return jnp.sum(jnp.where(small, series, jnp.sin(s) / jnp.where(small, 1.0, s)))


ONE_FUNCTION = {
    "stable log-sum-exp": (stable_logsumexp, "reduce_max"),
    "stable softmax": (stable_softmax, "reduce_max"),
    "a choice by order": (stable_pair, "ge"),
    "a series near zero": (guarded_sinc, "abs"),
    "a symmetric function of sorted units": (lambda s: jnp.exp(jnp.sort(s)).sum(), "sort"),
}


@pytest.mark.parametrize(("coupling", "name"), ONE_FUNCTION.values(), ids=ONE_FUNCTION)
def test_pieces_of_one_holomorphic_function_are_holomorphic(coupling, name):
    found = holomorphy_of(coupling)
    assert found.passed is True, found.words
    assert found.figure < 1e-8
    assert f"the pieces of {name} (test_energy" in found.words


SEVERAL = {
    "relu": lambda s: jnp.sum(jnp.maximum(s, 0.1)),
    "squared relu": lambda s: jnp.sum(jnp.maximum(s, 0.1) ** 2),
    "cube of relu": lambda s: jnp.sum(jnp.maximum(s, 0.1) ** 3),
    "largest": jnp.max,
    "in a window": lambda s: jnp.sum(
        jax.lax.reduce_window(s, -jnp.inf, jax.lax.max, (2,), (2,), "VALID")
    ),
    "beside a stable log-sum-exp": lambda s: stable_logsumexp(s) + jnp.sum(jnp.maximum(s, 0.1)),
    "|s|²": lambda s: jnp.sum(jnp.abs(s) ** 2),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_pieces_of_several_functions_are_not_holomorphic(name):
    assert holomorphy_of(SEVERAL[name]).passed is False
    assert holomorphy_of(SEVERAL[name], needed=False).passed is None


CORNERS = {  # what the literature calls clip(s, 0, 1), and the derivative that JAX gives it there
    "clamp": (lambda s: jax.lax.clamp(0.0, s, 1.0), "0"),
    "clip": (lambda s: jnp.clip(s, 0.0, 1.0), "½"),
    "where": (lambda s: jnp.where(s < 0, 0.0, jnp.where(s > 1, 1.0, s)), "1"),
}


@pytest.mark.parametrize(("clip", "value"), CORNERS.values(), ids=CORNERS)
def test_the_derivative_at_a_corner_is_told(clip, value):
    found = check(lambda p, s, x: 0.5 * jnp.sum(s * s) - clip(s) @ (p @ x + 2.0)).corners
    assert found.passed is None
    assert f"autodiff takes {value} for ∂E/∂s at 0, {value} for ∂E/∂s at 1" in found.words
    assert found.figure == {"0": 0, "½": 0.5, "1": 1}[value]
    assert ("start there, where gradient flow may not leave" in found.words) is (value == "0")


ELSEWHERE = {  # an energy whose corner is at no number of its program's
    "scaled": (lambda p, s, x: 0.1 * jnp.sum(jax.nn.relu(2.0 * s - 0.5)), "max", "0"),
    "two states": (lambda p, s, x: 0.1 * jnp.maximum(s[0], s[1] + 0.3), "max", "½"),
    "an input": (lambda p, s, x: 0.1 * jnp.sum(jnp.abs(s - 0.37 * x[:4])), "abs", "1"),
    "a weight": (
        lambda p, s, x: 0.1 * jnp.sum(jnp.where(s > p[0, 0], s - p[0, 0], 0.0)),
        "gt",
        "0",
    ),
}


@pytest.mark.parametrize(("corner", "name", "value"), ELSEWHERE.values(), ids=ELSEWHERE)
def test_a_corner_at_no_number_of_the_program_is_found_between_states(corner, name, value):
    """By bisection of the argument's sign; what autodiff takes, where the argument is zero."""
    found = corners_of(lambda p, s, x: plain()(p, s, x) + corner(p, s, x))
    assert found.passed is None
    line = inspect.getsourcelines(test_a_corner_at_no_number_of_the_program_is_found_between_states)
    place = rf"the force jumps where {name} \(test_energy_contract\.py:\d+\) turns: "
    assert re.match(place + f"autodiff takes {value} of the jump", found.words), found.words
    assert int(re.search(r":(\d+)", found.words)[1]) < line[1]


def test_pieces_that_join_smoothly_are_no_corner_and_those_not_met_are_named():
    smooth = corners_of(plain(lambda s: jnp.sum(jax.nn.relu(s - 0.3712) ** 2)))
    assert smooth.passed is True
    assert re.fullmatch(r"the force goes on where max \(test_energy_.*:\d+\) turns", smooth.words)
    for far in (lambda s: jnp.maximum(s[0] * s[0], -7.7), lambda s: jnp.sort(s)[0]):
        missed = corners_of(plain(far))
        assert missed.passed is None
        words = r"the program has (max|sort) \(test_.*:\d+\): no corner among the numbers tried"
        assert re.fullmatch(words, missed.words)


def test_a_systems_corners_are_those_of_its_activations():
    system = hopfield(chain(dense(4), layers.hard_sigmoid(), dense(2)))
    params = jax.tree.map(lambda p: 0.3 * p, system.init(KEY, (5,))[0])
    words = check_energy(system, params, X, **FEW).corners.words
    assert "autodiff takes 0 for σ at 0 (state 0), 0 for σ at 1 (state 0)" in words


# --- what we ship keeps it ---------------------------------------------------------------------


def shipped(network, shape, system=hopfield, scale=0.3, **settings):
    made = system(network, **settings)
    params = jax.tree.map(lambda p: scale * p, made.init(KEY, shape)[0])
    return made, params, jax.random.normal(jax.random.key(1), (2, *shape))


def hidden(name):
    sigma = getattr(layers, name)()
    return chain(dense(5), sigma, dense(4), sigma, dense(2))


SHIPPED = {
    **{
        f"hopfield {name}": lambda name=name: shipped(hidden(name), (5,))
        for name in ("tanh", "sigmoid", "shifted_sigmoid", "hard_sigmoid", "relu", "softplus")
    },
    "skips": lambda: shipped(hidden("tanh"), (5,), skips={(1, 3): dense(2)}),
    "convolutions": lambda: shipped(
        chain(conv(3, 3), max_pool(2), layers.hard_sigmoid(), conv(4, 3), layers.hard_sigmoid(),
              flatten(), dense(2)), (6, 6, 1), output="readout",
    ),
    "resistive, relu": lambda: shipped(hidden("relu"), (5,), resistive, 1.0),
    "predictive": lambda: shipped(hidden("gelu"), (5,), predictive, 0.5),
    "sequential": lambda: shipped(hidden("tanh"), (5,), predictive, 0.5, schedule="sequential"),
}  # fmt: skip


ALWAYS = ("hopfield tanh", "convolutions", "resistive, relu", "predictive")


@pytest.mark.parametrize(
    "name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.long) for n in SHIPPED]
)
def test_shipped_systems_keep_the_contract(name):
    system, params, x = SHIPPED[name]()
    cost = softmax_cross_entropy() if name == "convolutions" else squared_error()
    found = check_energy(system, params, x, cost=cost, y=jnp.array([0, 1]), **FEW)
    assert found.passed, str(found)
    assert found.unique.figure == 1
    assert found.bounded.figure > 0.1
    smooth = not any(word in name for word in ("hard", "relu", "convolutions", "predictive"))
    assert (found.holomorphic.passed is True) is smooth is (not system.traits.not_holomorphic)


def user_energy(p, s, x):
    pull = s["a"] @ (p @ x) + 0.3 * jnp.tanh(s["b"]) @ s["a"]
    return 0.5 * jnp.sum(s["a"] ** 2) + 0.5 * jnp.sum(s["b"] ** 2) - pull


def user_start(p, x):
    return {"a": jnp.zeros(4), "b": jnp.zeros(4)}


def test_a_users_energy_over_a_pytree_passes_plain_and_as_a_system():
    parts = {"init_state": user_start, "readout": lambda p, s: s["b"]}
    system = from_energy(user_energy, init=lambda key, shape: (W, (4,)), **parts)
    for energy, own in ((user_energy, parts), (system, {})):
        found = check_energy(energy, W, X, **FEW, **own)
        assert found.passed, str(found)
        assert all(finding.passed for finding in found)


def test_from_energy_serves_holomorphic_ep_as_the_contract_says():
    """Its derivatives on complex states: 4 points are exact to β⁴."""
    system = from_energy(user_energy, user_start, lambda p, s: s["b"], lambda key, shape: (W, (4,)))
    settle = fixed_point(1e-13, 400)
    rule = eqprop(system, squared_error(), settle, settle, nudging="holomorphic", beta=0.02)
    found = gradient_fidelity(rule, W, Batch(X, jnp.ones((2, 4))), key=KEY)
    assert found.total.relative_error < 1e-6


def test_a_projected_energy_passes_and_its_starts_are_projected():
    found = check(plain(), project=lambda s: jnp.clip(s, 0.0, 1.0))
    assert found.passed
    assert found.unique.figure == 1


@jax.custom_vjp
def reverse_only(s):
    return 0.3 * jnp.sum(jnp.tanh(s))


reverse_only.defvjp(
    lambda s: (reverse_only(s), s), lambda s, g: (g * 0.3 * (1 - jnp.tanh(s) ** 2),)
)


def test_an_energy_without_forward_mode_is_checked_all_the_same():
    found = check(plain(reverse_only))
    assert verdicts(found)["symmetric"] is True
    assert found.gradient.passed
    assert "K unknown: can't apply forward-mode" in found.bounded.words


def test_the_table_has_a_line_a_finding():
    found = check(plain())
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == list(found._fields)
    assert lines[3].split()[:3] == ["unique", "ok", "1"]


def test_a_plain_energy_needs_its_parts():
    with pytest.raises(ValueError, match="check_energy: readout = None: must be given"):
        check_energy(plain(), W, X, init_state=OWN["init_state"], key=KEY)
    with pytest.raises(ValueError, match=r"check_energy: beta = -1\.0: must be a number > 0"):
        check(plain(), beta=-1.0)


def test_an_integer_leaf_is_held_and_all_else_is_checked():
    """An exponent and a mask; in a plain energy, in a system, and where w's slope is wrong."""
    params = {"m": jnp.array([1, 2, 1, 1]), "n": jnp.asarray(2), "w": W}
    energy = lambda p, s, x: 0.5 * jnp.sum(p["m"].astype(s.dtype) * s ** p["n"]) - s @ (p["w"] @ x)  # noqa: E731
    found = check(energy, params)
    assert found.passed
    system = from_energy(
        energy, OWN["init_state"], OWN["readout"], lambda key, shape: (params, (2,))
    )
    same = check_energy(system, params, X, **FEW)
    assert same.passed
    assert same.bounded.figure == found.bounded.figure == 1.0
    wrong = lambda p, s, x: energy({**p, "w": jax.lax.stop_gradient(p["w"])}, s, x)  # noqa: E731
    assert check(wrong, params).gradient.words.startswith("∂force/∂θ of w differs")


MISTAKES = {
    "integer state": (
        plain(), {"init_state": lambda p, x: jnp.zeros(4, int)},
        "init_state gives int64[4]: a state must be of real floating numbers",
    ),
    "complex energy": (
        lambda p, s, x: plain()(p, s, x).astype(complex), {},
        "energy gives complex128[]: it must give one real floating number for each example",
    ),
    "boolean energy": (
        lambda p, s, x: jnp.sum(s) > 0, {},
        "energy gives bool[]: it must give one real floating number for each example",
    ),
    "shape of the state": (
        plain(), {"init_state": lambda p, x: jnp.zeros(3)},
        "energy fails at x float64[5] and state float64[3]: dot_general requires",
    ),
    "shape of a readout": (
        plain(), {"readout": lambda p, s: s @ p @ p},
        "readout fails at x float64[5] and state float64[4]: dot_general requires",
    ),
    "integer output": (
        plain(), {"readout": lambda p, s: jnp.argmax(s)},
        "readout gives int64[]: an output must be of real floating numbers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("energy", "changed", "line"), MISTAKES.values(), ids=MISTAKES)
def test_plain_mistakes_are_one_line(energy, changed, line):
    with pytest.raises(ValueError, match="^check_energy: " + re.escape(line)) as caught:
        check(energy, **changed)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("energy", "words"),
    [
        (lambda p, s, x: jnp.sum(jnp.log(s)) - s @ (p @ x), "energy is not finite where a free"),
        (lambda p, s, x: plain()(p, s, x) * jnp.nan, "energy is not finite where a free"),
        (lambda p, s, x: plain()(p, s, x) + jnp.sum(jnp.sqrt(s * s)), "force is not finite where"),
    ],
)
def test_what_is_not_finite_is_said_once(energy, words):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = check(energy, sweeps=50)
    assert failing(found) == ["gradient"]
    assert found.gradient.words.startswith(f"the {words}")
    assert {finding.words for finding in found[1:]} == {"not checked"}
