"""The Hopfield system against its own energy: descent, stationarity, derivatives, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense, flatten
from bpeq.solvers import fixed_point
from bpeq.systems import hopfield

SMOOTH = ["tanh", "sigmoid", "shifted_sigmoid", "softplus"]


def net(name, depth=3, width=6):
    """A few blocks of one activation and a linear output."""
    blocks = [part for _ in range(depth) for part in (dense(width), getattr(layers, name)())]
    return chain(flatten(), *blocks, dense(3))


def at_rest(system, scale=0.7, seed=0, batch=5):
    params, _ = system.init(jax.random.key(seed), (2, 4))
    params = trees.scale(scale, params)
    x = jax.random.normal(jax.random.key(seed + 1), (batch, 2, 4))
    return params, x, system.clamp(params, x)


def energies(system, params, clamped, sweeps=60, seed=9):
    """E before every alternating sweep and after the last, from a random state, [sweeps, batch]."""
    state = jax.tree.map(
        lambda s: layers.sigmoid().activation.value(
            jax.random.normal(jax.random.key(seed), s.shape)
        ),
        system.init_state(params, clamped),
    )
    sweep = jax.jit(lambda s: system.sweep(params, clamped, s))
    energy = jax.jit(lambda s: system.energy(params, clamped, s))
    found = [energy(state)]
    for _ in range(sweeps):
        state = sweep(state)
        found.append(energy(state))
    return jnp.stack(found)


def largest_rise(found):
    """The largest rise from one sweep to the next, in units of 1 + |E|."""
    return float((jnp.diff(found, axis=0) / (1 + jnp.abs(found[:-1]))).max())


@pytest.mark.parametrize("name", [*SMOOTH, "relu", "hard_sigmoid", "linear"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_energy_never_rises_along_alternating_sweeps_of_affine_connections(name, depth):
    system = hopfield(net(name, depth))
    params, _, clamped = at_rest(
        system, scale=0.4 if name in ("relu", "linear", "softplus") else 2.0
    )
    found = energies(system, params, clamped)
    assert largest_rise(found) <= 1e-12
    assert float((found[0] - found[-1]).sum()) > 1e-3  # it did move


def pooled_net(pool, name, output="linear"):
    """Two convolutions with a pooling behind each, as a CNN on 6×6 images, and a dense output."""
    parts = [layers.conv(4, 3), pool, getattr(layers, name)()]
    parts += [layers.conv(5, 3), pool, getattr(layers, name)()]
    return chain(*parts, flatten(), dense(3), getattr(layers, output)())


def image_net(network, scale, seed=0):
    system = hopfield(network)
    params, _ = system.init(jax.random.key(seed), (8, 8, 2))
    params = trees.scale(scale, params)
    x = jax.random.normal(jax.random.key(seed + 1), (4, 8, 8, 2))
    return system, params, system.clamp(params, x)


@pytest.mark.parametrize("stride", [2, 1])
@pytest.mark.parametrize("pooling", ["avg_pool", "max_pool"])
@pytest.mark.parametrize("name", ["sigmoid", "hard_sigmoid", "shifted_sigmoid", "relu"])
def test_energy_never_rises_along_alternating_sweeps_of_a_pooled_cnn(pooling, name, stride):
    """Average-pooling is affine; max-pooling below s ≥ 0 is concave in E: both sweeps descend."""
    pool = getattr(layers, pooling)(2, stride)
    scale = 0.4 if name == "relu" else 2.0
    system, params, clamped = image_net(pooled_net(pool, name), scale)
    for seed in range(3):
        found = energies(system, params, clamped, seed=seed)
        assert largest_rise(found) <= 1e-12
        assert float((found[0] - found[-1]).sum()) > 1e-3


@pytest.mark.parametrize("name", ["tanh", "linear"])
def test_average_pooling_descends_below_signed_states_too(name):
    scale = 0.3 if name == "linear" else 2.0
    system, params, clamped = image_net(pooled_net(layers.avg_pool(2), name), scale)
    assert largest_rise(energies(system, params, clamped)) <= 1e-12


@pytest.mark.parametrize(
    ("pool", "name"),
    [
        # under another name, since hopfield refuses it
        (layers.max_pool(2)._replace(name="signed_max_pool"), "tanh"),
        (layers.soft_pool(2), "tanh"),
    ],
)
def test_energy_can_rise_with_signed_max_pooling_and_with_soft_pooling(pool, name):
    rises = []
    for seed in range(6):
        system, params, clamped = image_net(pooled_net(pool, name), 3.0, seed)
        rises.append(largest_rise(energies(system, params, clamped)))
    assert max(rises) > 1e-6


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([layers.max_pool(2), layers.tanh()], "'conv_2': the activation above max_pool takes neg"),
        ([layers.max_pool(2), flatten(), dense(3)], "'conv_2': 'dense' above max_pool in one conn"),
        ([layers.max_pool(2), flatten()], "'conv_2': the activation above max_pool takes negative"),
        (
            [layers.residual(layers.avg_pool(2), shortcut=layers.max_pool(2)), layers.tanh()],
            "'conv_2': the activation above max_pool takes negative",
        ),
        (
            [layers.residual(layers.avg_pool(2), shortcut=chain(layers.max_pool(2), dense(2)))],
            "'conv_2': 'dense' above max_pool in one connection",
        ),
    ],
)
def test_max_pooling_between_states_below_negative_activity_is_refused(parts, message):
    with pytest.raises(ValueError, match=f"hopfield: {message}"):
        hopfield(chain(layers.conv(2, 3), layers.tanh(), layers.conv(2, 3), *parts))


def test_max_pooling_beside_a_signed_path_below_states_that_are_not_negative_is_accepted():
    beside = layers.residual(layers.conv(2, 2, 2), shortcut=layers.max_pool(2))
    parts = [layers.conv(2, 3), layers.sigmoid(), beside, layers.sigmoid(), flatten(), dense(3)]
    system, params, clamped = image_net(chain(*parts), 2.0)
    assert largest_rise(energies(system, params, clamped)) <= 1e-12


def test_max_pooling_of_the_clamped_input_or_in_a_readout_is_no_part_of_the_descent():
    pool = layers.max_pool(2)
    hopfield(chain(layers.conv(2, 3), pool, layers.tanh(), flatten(), dense(3)))
    readout = [layers.conv(2, 3), pool, flatten(), dense(3)]
    hopfield(chain(layers.conv(2, 3), layers.tanh(), *readout), output="readout")


@pytest.mark.parametrize("schedule", ["alternating", "synchronous"])
@pytest.mark.parametrize("name", SMOOTH)
def test_fixed_points_of_the_sweep_are_stationary_points_of_the_energy(name, schedule):
    system = hopfield(net(name), schedule=schedule)
    params, _, clamped = at_rest(system, scale=0.3)
    state, info = fixed_point(1e-13, 2000)(
        lambda s: system.sweep(params, clamped, s), system.init_state(params, clamped)
    )
    assert info.converged.all()
    slope = jax.grad(lambda s: system.energy(params, clamped, s).sum())(state)
    assert float(trees.max_abs(slope).max()) < 1e-11


@pytest.mark.parametrize("output", ["state", "readout"])
def test_denergy_is_the_weighted_gradient_of_the_energy(output):
    system = hopfield(net("tanh"), output=output)
    params, x, clamped = at_rest(system)
    start = system.init_state(params, clamped)
    phases = jax.tree.map(
        lambda s: 0.5 * jax.random.uniform(jax.random.key(3), (4, *s.shape), s.dtype), start
    )
    weights = jnp.array([0.5, -1.5, 2.0, 0.3])

    def total(params):
        clamped = system.clamp(params, x)
        energies = jax.vmap(lambda s: system.energy(params, clamped, s).sum())(phases)
        return weights @ energies

    ours = system.denergy(params, clamped, phases, weights)[0]
    assert layers.gradient_error(ours, jax.grad(total)(params)) < 1e-14
    if output == "readout":  # no part of E: its weights get nothing
        assert float(jnp.abs(ours[-1]["w"]).max()) == 0.0


def test_force_is_minus_the_gradient_of_the_energy():
    system = hopfield(net("sigmoid"))
    params, _, clamped = at_rest(system)
    state = trees.scale(0.5, jax.tree.map(jnp.ones_like, system.init_state(params, clamped)))
    slope = jax.grad(lambda s: system.energy(params, clamped, s).sum())(state)
    np.testing.assert_allclose(
        trees.max_abs(trees.add(slope, system.force(params, clamped, state))), 0, atol=1e-13
    )


def test_dforce_is_the_pull_back_of_the_force():
    system = hopfield(net("tanh"))
    params, x, clamped = at_rest(system)
    state = jax.tree.map(lambda s: s + 0.3, system.init_state(params, clamped))
    v = jax.tree.map(lambda s: jax.random.normal(jax.random.key(5), s.shape), state)
    force = lambda p: system.force(p, system.clamp(p, x), state)  # noqa: E731
    reference = jax.vjp(force, params)[1](v)[0]
    assert layers.gradient_error(system.dforce(params, clamped, state, v)[0], reference) < 1e-14


@pytest.mark.parametrize("output", ["state", "readout"])
def test_readout_backward_is_its_vjp(output):
    system = hopfield(net("tanh"), output=output)
    params, _, clamped = at_rest(system)
    state = jax.tree.map(lambda s: s + 0.2, system.init_state(params, clamped))
    y, residuals = system.readout.forward(params, state)
    dy = jnp.cos(y)
    dparams, dstate = system.readout.backward(params, params, residuals, dy)
    ref_params, ref_state = jax.vjp(lambda p, s: system.readout.forward(p, s)[0], params, state)[1](
        dy
    )
    assert layers.gradient_error(dparams, ref_params) < 1e-14
    for ours, reference in zip(dstate, ref_state, strict=True):
        expected = jnp.zeros_like(reference) if ours is None else ours
        np.testing.assert_allclose(expected, reference, atol=1e-14)


def test_one_hidden_layer_sweeps_by_the_written_formula():
    """s₁ ← tanh(xW₁ + b₁ + s₂W₂ᵀ), then s₂ ← s₁W₂ + b₂ − β(s₂ − y), in NumPy."""
    system = hopfield(chain(dense(4), layers.tanh(), dense(2)))
    params, _ = system.init(jax.random.key(0), (3,))
    x = jax.random.normal(jax.random.key(1), (2, 3))
    clamped = system.clamp(params, x)
    state = (jnp.full((2, 4), 0.1), jnp.full((2, 2), -0.2))
    w1, b1, w2, b2 = (np.asarray(params[i][k]) for i in (0, 2) for k in ("w", "b"))
    y, beta = np.ones((2, 2)), 0.3
    swept = system.sweep(params, clamped, state, lambda s: (None, -beta * (s[1] - y)))
    s1 = np.tanh(np.asarray(x) @ w1 + b1 + np.asarray(state[1]) @ w2.T)
    s2 = s1 @ w2 + b2 - beta * (np.asarray(state[1]) - y)
    np.testing.assert_allclose(swept[0], s1, atol=1e-15)
    np.testing.assert_allclose(swept[1], s2, atol=1e-15)


def test_push_is_evaluated_inside_each_half_of_an_alternating_sweep():
    system = hopfield(chain(dense(1), layers.linear(), dense(1)))
    params = (
        {"w": jnp.ones((1, 1)), "b": jnp.zeros(1)},
        (),
        {"w": jnp.ones((1, 1)), "b": jnp.zeros(1)},
    )
    clamped = system.clamp(params, jnp.ones((1, 1)))
    seen = []

    def push(state):
        seen.append(float(state[0][0, 0]))
        return (None, state[0])

    swept = system.sweep(params, clamped, (jnp.zeros((1, 1)), jnp.zeros((1, 1))), push)
    assert seen == [0.0, 1.0]  # the second half sees the first half's new state
    assert [s.tolist() for s in swept] == [[[1.0]], [[2.0]]]


def test_synchronous_sweeps_of_a_symmetric_net_can_two_cycle_and_alternating_ones_do_not():
    network = chain(dense(1), layers.tanh(), dense(1), layers.tanh())
    params = (
        {"w": jnp.zeros((1, 1)), "b": jnp.zeros(1)},
        (),
        {"w": 3 * jnp.ones((1, 1)), "b": jnp.zeros(1)},
        (),
    )
    x, start = jnp.zeros((1, 1)), (jnp.array([[0.5]]), jnp.array([[-0.5]]))
    for schedule, settles in (("synchronous", False), ("alternating", True)):
        system = hopfield(network, schedule=schedule)
        clamped = system.clamp(params, x)
        sweep = lambda s, system=system, clamped=clamped: system.sweep(params, clamped, s)  # noqa: E731
        _, info = fixed_point(1e-9, 500)(sweep, start)
        assert bool(info.converged.all()) is settles


def test_gelu_is_refused_by_name_and_place():
    with pytest.raises(ValueError, match=r"layer 1 \('gelu'\) is not monotone"):
        hopfield(chain(dense(2), layers.gelu(), dense(1)))


def test_layers_that_couple_examples_are_refused_by_name_and_reason():
    centering = dense(2)._replace(name="centering", no_energy="couples the examples of a batch")
    with pytest.raises(ValueError, match=r"layer 0 \('centering'\) couples the examples"):
        hopfield(chain(centering, layers.tanh(), dense(1)))


def test_a_readout_without_a_hidden_block_is_refused():
    with pytest.raises(ValueError, match="needs a hidden block"):
        hopfield(chain(dense(2)), output="readout")


@pytest.mark.parametrize("cost", [squared_error(), softmax_cross_entropy()])
def test_hopfield_uses_the_networks_own_parameters(cost):
    network = net("tanh")
    ours, _ = hopfield(network).init(jax.random.key(4), (2, 4))
    theirs, _ = network.init(jax.random.key(4), (2, 4))
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), ours, theirs)))


def test_with_max_pooling_a_sweep_convolves_once_in_each_direction():
    """The pooling that a state drives is the one by which activity comes back to it."""
    connection = (layers.conv(3, kernel=3), layers.max_pool(2), layers.hard_sigmoid())
    system = hopfield(chain(*connection, *connection, layers.flatten(), dense(2)))
    params, _ = system.init(jax.random.key(0), (8, 8, 1))
    clamped = system.clamp(params, jnp.ones((2, 8, 8, 1)))
    state = system.init_state(params, clamped)
    program = jax.jit(system.sweep).lower(params, clamped, state).compile().as_text()
    assert program.count(" convolution(") == 2
