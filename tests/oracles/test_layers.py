"""The first layers against `jax.vjp`, closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpeq import layers
from bpeq.core import trees
from bpeq.layers import chain, check, check_network, cut, deltas, dense, flatten
from bpeq.types import Layer

MONOTONE = ["linear", "relu", "tanh", "sigmoid", "hard_sigmoid", "shifted_sigmoid", "softplus"]
ACTIVATIONS = [*MONOTONE, "gelu"]
FEW = settings(max_examples=4, deadline=None, derandomize=True)
widths = st.integers(1, 7)


def at(layer: Layer, shape: tuple[int, ...], seed: int, dtype=jnp.float64):
    """Parameters and an input for one example of `shape`, three examples a batch."""
    params, _ = layer.init(jax.random.key(seed), shape)
    x = jax.random.normal(jax.random.key(seed + 1), (3, *shape), dtype)
    return trees.cast(params, dtype), x


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@FEW
@given(n=widths, m=widths, middle=st.lists(widths, max_size=2), bias=st.booleans())
def test_dense_backward_is_its_vjp(dtype, n, m, middle, bias):
    layer = dense(m, bias=bias, bias_init="normal")
    row = check(layer, *at(layer, (*middle, n), n, dtype), key=jax.random.key(m))
    assert row.passed, row


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@pytest.mark.parametrize("name", ACTIVATIONS)
@FEW
@given(shape=st.lists(widths, min_size=1, max_size=3), seed=st.integers(0, 99))
def test_activation_backward_is_its_vjp(name, dtype, shape, seed):
    layer = getattr(layers, name)()
    row = check(layer, *at(layer, tuple(shape), seed, dtype), key=jax.random.key(seed))
    assert row.passed, row


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32])
@FEW
@given(sizes=st.lists(widths, min_size=1, max_size=4), name=st.sampled_from(ACTIVATIONS))
def test_chain_backward_is_its_vjp(dtype, sizes, name):
    parts = [part for size in sizes for part in (dense(size), getattr(layers, name)())]
    network = chain(flatten(), *parts, dense(2))
    params, x = at(network, (2, 3), len(sizes), dtype)
    rows = check_network(network, params, x, key=jax.random.key(0))
    assert all(row.passed for row in rows), rows


def test_check_catches_a_wrong_sign_a_missing_factor_and_a_nan():
    good = dense(3)
    params, x = at(good, (4,), 0)

    def broken(change):
        def backward(params, feedback, residuals, dy):
            return change(*good.backward(params, feedback, residuals, dy))

        return good._replace(backward=backward)

    for change in (
        lambda dp, dx: (dp, -dx),
        lambda dp, dx: ({**dp, "b": 1.001 * dp["b"]}, dx),
        lambda dp, dx: (dp, dx.at[0, 0].set(jnp.nan)),
    ):
        assert not check(broken(change), params, x, key=jax.random.key(1)).passed


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slope_is_the_central_difference_of_the_value(name):
    activation = getattr(layers, name)().activation
    z, h = np.linspace(-2.3, 2.7, 41), 1e-5
    slope = (activation.value(z + h) - activation.value(z - h)) / (2 * h)
    np.testing.assert_allclose(activation.slope(jnp.asarray(z)), slope, atol=2e-10)


@pytest.mark.parametrize("name", MONOTONE)
def test_potential_slope_inverts_the_activation(name):
    """A′(σ(z)) = z wherever σ is strictly monotone."""
    activation = getattr(layers, name)().activation
    z = (
        jnp.linspace(0.05, 0.95, 19)
        if name in ("relu", "hard_sigmoid")
        else jnp.linspace(-2, 2, 19)
    )
    inverse = jax.vmap(jax.grad(activation.potential))(activation.value(z))
    np.testing.assert_allclose(inverse, z, atol=1e-12)


@pytest.mark.parametrize(
    "name", [n for n in MONOTONE if getattr(layers, n)().activation.holomorphic]
)
def test_holomorphic_activations_have_the_complex_step_slope(name):
    activation = getattr(layers, name)().activation
    z = jnp.linspace(-2.0, 2.0, 11)
    h = 1e-7  # its square is below round-off
    step = activation.value(jax.lax.complex(z, jnp.full_like(z, h))).imag / h
    np.testing.assert_allclose(step, activation.slope(z), rtol=1e-8)


def test_corner_slopes_are_zero_as_documented_and_to_autodiff():
    corners = jnp.array([0.0, 1.0])
    for name, z in (("hard_sigmoid", corners), ("relu", corners[:1])):
        value = getattr(layers, name)().activation.value
        assert jax.vmap(jax.grad(value))(z).tolist() == [0.0] * len(z)
    assert layers.hard_sigmoid().activation.slope(corners).tolist() == [0.0, 0.0]
    assert float(layers.relu().activation.slope(jnp.array(0.0))) == 0.0


def test_named_values_of_the_activations():
    assert float(layers.shifted_sigmoid().activation.value(jnp.array(0.5))) == 0.5
    assert layers.hard_sigmoid().activation.value(jnp.array([-1.0, 0.3, 2.0])).tolist() == [
        0,
        0.3,
        1,
    ]
    gelu = layers.gelu().activation.value(jnp.array(1.0))
    np.testing.assert_allclose(gelu, 0.8413447460685429, rtol=1e-14)  # 1·Φ(1)


def test_deltas_follow_the_textbook_recursion():
    """δ_L = ∂C/∂a ⊙ σ′(z_L), δ_l = (w_{l+1}ᵀ δ_{l+1}) ⊙ σ′(z_l), written out in NumPy."""
    network = chain(dense(4), layers.sigmoid(), dense(3), layers.tanh())
    params, x = at(network, (5,), 3)
    w1, b1, w2, b2 = (np.asarray(params[i][k]) for i in (0, 2) for k in ("w", "b"))
    z1 = np.asarray(x) @ w1 + b1
    a1 = 1 / (1 + np.exp(-z1))
    z2 = a1 @ w2 + b2
    error = np.tanh(z2) - 1.0
    delta2 = error * (1 - np.tanh(z2) ** 2)
    delta1 = (delta2 @ w2.T) * a1 * (1 - a1)
    _, residuals = network.forward(params, x)
    found = deltas(network, params, residuals, jnp.asarray(error))
    np.testing.assert_allclose(found[0], delta1, atol=1e-15)
    np.testing.assert_allclose(found[1], delta2 @ w2.T, atol=1e-15)
    np.testing.assert_allclose(found[2], delta2, atol=1e-15)
    np.testing.assert_allclose(found[3], error, atol=0)
    grads, dx = network.backward(params, params, residuals, jnp.asarray(error))
    np.testing.assert_allclose(grads[2]["w"], a1.T @ delta2, atol=1e-14)
    np.testing.assert_allclose(grads[0]["b"], delta1.sum(axis=0), atol=1e-14)
    np.testing.assert_allclose(dx, delta1 @ w1.T, atol=1e-14)


def test_feedback_is_read_where_errors_pass_back_and_nowhere_else():
    network = chain(dense(4), layers.tanh(), dense(3))
    params, x = at(network, (5,), 0)
    other, _ = at(network, (5,), 7)
    y, residuals = network.forward(params, x)
    dy = jnp.ones_like(y)
    straight, dx = network.backward(params, params, residuals, dy)
    crossed, dx_crossed = network.backward(params, other, residuals, dy)
    assert (crossed[2]["w"] == straight[2]["w"]).all()  # the last layer's never passes a transpose
    slope = 1 - jnp.tanh(x @ params[0]["w"] + params[0]["b"]) ** 2
    hidden = (dy @ other[2]["w"].T) * slope
    np.testing.assert_allclose(crossed[0]["w"], x.T @ hidden, atol=1e-14)
    np.testing.assert_allclose(dx_crossed, hidden @ other[0]["w"].T, atol=1e-14)
    assert float(jnp.abs(dx - dx_crossed).max()) > 0.1


def test_cut_gives_connections_activations_and_their_parameters():
    network = chain(flatten(), dense(4), layers.tanh(), chain(dense(3), layers.relu()), dense(2))
    blocks = cut(network)
    assert [b.name for b in blocks] == ["dense_1", "dense_2", "dense_3"]
    assert [(b.slice.start, b.slice.stop) for b in blocks] == [(0, 2), (3, 4), (5, 6)]
    params, x = at(network, (2, 2), 1)
    for block in blocks:
        z, _ = block.connection.forward(params[block.slice], x)
        x = block.activation.value(z)
    whole, _ = network.forward(params, at(network, (2, 2), 1)[1])
    np.testing.assert_array_equal(x, whole)


def test_cut_refuses_an_activation_without_a_connection_before_it():
    with pytest.raises(ValueError, match=r"layer 2 \('relu'\): an activation with no connection"):
        cut(chain(dense(2), layers.tanh(), layers.relu()))


@pytest.mark.parametrize("features", [0, -3, 2.5, True, "4"])
def test_dense_refuses_features_that_are_no_count(features):
    with pytest.raises(ValueError, match=r"dense: features = .*must be .*>= 1"):
        dense(features)


@pytest.mark.parametrize(
    ("name", "bound"), [("fan_in_uniform", 0.1), ("glorot_uniform", (6 / 150) ** 0.5)]
)
def test_uniform_initialisers_fill_their_bound(name, bound):
    w = dense(50, init=name, bias_init="fan_in_uniform").init(jax.random.key(0), (100,))[0]["w"]
    assert float(jnp.abs(w).max()) <= bound
    np.testing.assert_allclose(w.std(), bound / 3**0.5, rtol=0.02)


@pytest.mark.parametrize("place", [0, 1])
def test_a_nan_gradient_fails_the_check_in_whatever_leaf_it_is(place):
    ours = [np.ones(2), np.ones(3)]
    ours[place] = np.array([np.nan, 1.0, 1.0][: len(ours[place])])
    assert np.isnan(layers.gradient_error(ours, [np.ones(2), np.ones(3)]))
    assert not layers.gradient_error([np.ones(2), np.ones(3)], ours) <= 1e300  # nor against one
    wrong = dense(2)._replace(
        backward=lambda p, f, kept, dy: (
            {"w": jnp.full_like(p["w"], jnp.nan), "b": jnp.sum(dy, 0)},
            dy @ p["w"].T,
        )
    )
    params, _ = wrong.init(jax.random.key(0), (3,))
    row = check(wrong, params, jnp.ones((2, 3)), key=jax.random.key(1))
    assert not row.passed


@pytest.mark.parametrize("layer", [layers.batch_norm(), layers.dropout(0.5)])
def test_what_differs_in_training_is_checked_in_training_too(layer):
    def broken(params, feedback, kept, dy):
        dparams, dx = layer.backward(params, feedback, kept, dy)
        trained = len(jax.tree.leaves(kept)) != len(jax.tree.leaves(layer.forward(params, x)[1]))
        return dparams, jax.tree.map(lambda d: (1.5 if trained else 1.0) * d, dx)

    x = jax.random.normal(jax.random.key(2), (4, 3))
    network = chain(dense(3), layer)
    params, _ = network.init(jax.random.key(0), (3,))
    rows = check_network(network, params, x, key=jax.random.key(1))
    names = [row.name for row in rows]
    assert names[1:3] == [f"1: {layer.name}", f"1: {layer.name}, training"]
    assert names[3:] == ["whole network", "whole network, training"]
    assert all(row.passed for row in rows)
    wrong = chain(dense(3), layer._replace(backward=broken))
    failed = [
        r.name for r in check_network(wrong, params, x, key=jax.random.key(1)) if not r.passed
    ]
    assert failed == [f"1: {layer.name}, training", "whole network, training"]


def test_no_error_passes_below_integers():
    ids = jnp.array([[[0, 3], [1, 2]]])
    below = chain(flatten(), layers.embedding(5, 3))
    two = layers.residual(layers.embedding(5, 3), shortcut=layers.embedding(5, 3))
    for layer, x in ((below, ids), (two, ids[0])):
        params, _ = layer.init(jax.random.key(0), x.shape[1:])
        y, kept = layer.forward(params, x)
        dparams, dx = layer.backward(params, params, kept, jnp.ones_like(y))
        assert dx is None
        reference = jax.grad(lambda p, layer=layer, x=x: layer.forward(p, x)[0].sum())(params)
        assert layers.gradient_error(dparams, reference) < 1e-15


def test_a_nan_passes_every_activation():
    for name in "linear relu tanh sigmoid hard_sigmoid shifted_sigmoid softplus gelu".split():  # noqa: SIM905
        value = getattr(layers, name)().activation.value
        assert np.isnan(float(value(jnp.asarray(jnp.nan)))), name


def test_numpy_scalars_as_settings_promote_nothing():
    for layer in (
        layers.dropout(np.float64(0.5)),
        layers.layer_norm(np.float64(1e-5)),
        layers.batch_norm(np.float64(1e-5), decay=np.float64(0.9)),
    ):
        params = trees.cast(layer.init(jax.random.key(0), (3,))[0], jnp.float32)
        x = jnp.ones((2, 3), jnp.float32)
        y, kept = layer.forward(params, x, jax.random.key(1))
        assert y.dtype == jnp.float32
        if layer.absorb:
            after = jax.tree.leaves(layer.absorb(params, kept))
            assert {leaf.dtype for leaf in after} == {jnp.dtype("float32")}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: dense(2, bias="false"), "bias = 'false': must be true or false"),
        (lambda: layers.lstm(2, forget_bias=float("nan")), "forget_bias = nan: must be"),
        (lambda: dense(2, init=np.zeros(2)), "init = array.*: must be 'zeros'"),
        (lambda: layers.attention(1, causal="no"), "causal = 'no': must be true or false"),
    ],
)
def test_settings_without_a_range_are_checked_for_their_type(make, message):
    with pytest.raises(ValueError, match=message):
        make()
