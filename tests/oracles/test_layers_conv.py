"""Convolution and pooling against autodiff, complex steps, differences and plain loops."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax import lax

from bpeq import layers
from bpeq.layers import avg_pool, batch_norm, chain, conv, dense, flatten, max_pool, relu, soft_pool

few = settings(max_examples=4, deadline=None, derandomize=True)
sides = st.integers(4, 7)
POOLS = {"max": max_pool, "avg": avg_pool, "soft": soft_pool}


@few
@given(
    st.tuples(sides, sides, st.integers(1, 3)),
    st.integers(1, 4),
    st.integers(1, 3),
    st.sampled_from(["SAME", "VALID", 0, 1, 2]),
    st.booleans(),
)
def test_conv_backward_is_autodiff(oracle, shape, kernel, stride, padding, bias):
    oracle.autodiff(conv(2, kernel, stride, padding, bias=bias), shape)


@pytest.mark.parametrize("pool", POOLS)
@settings(few, max_examples=2)
@given(st.tuples(sides, sides, st.just(2)), st.integers(1, 3), st.sampled_from([None, 1, 2, 4]))
def test_pool_backward_is_autodiff(oracle, pool, shape, window, stride):
    oracle.autodiff(POOLS[pool](window, stride), shape, batch=2)


@pytest.mark.parametrize("pool", POOLS)
def test_pool_backward_is_autodiff_for_large_windows_side_by_side(oracle, pool):
    oracle.autodiff(POOLS[pool](5), (11, 6, 2), dtypes=(jnp.float64,))


@pytest.mark.parametrize(
    "layer", [conv(2, 3, 2), conv(2, 2, padding=1), avg_pool(2), avg_pool(3, 2), soft_pool(2)]
)
def test_holomorphic_layers_take_complex_numbers_with_plain_transposes(oracle, layer):
    oracle.autodiff(layer, (5, 4, 2), dtypes=(jnp.complex128,))


@pytest.mark.parametrize("layer", [conv(2, 3, 2), avg_pool(3, 2), soft_pool(2, 1, temperature=0.5)])
def test_backward_is_the_complex_step(oracle, layer):
    oracle.complex_step(layer, (5, 6, 2))


def test_max_pool_backward_is_a_central_difference(oracle):
    layer, x, v = max_pool(3, 2), oracle.normal(2, 7, 6, 2), oracle.normal(2, 7, 6, 2, seed=2)
    h = 1e-6  # far from any switch, where the layer is linear

    def both(x, v):
        y, kept = layer.forward((), x)
        dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        rise = layer.forward((), x + h * v)[0] - layer.forward((), x - h * v)[0]
        return jnp.sum(layer.backward((), (), kept, dy)[1] * v), jnp.sum(dy * rise) / (2 * h)

    np.testing.assert_allclose(*oracle.run(both, x, v), rtol=1e-8)


@pytest.mark.parametrize("mixed", ["x", "w"])
def test_conv_of_real_and_complex_is_two_real_convolutions(oracle, mixed):
    layer = conv(2, 3, bias=False)
    x, w = oracle.normal(2, 4, 4, 2, dtype=complex), oracle.normal(3, 3, 2, 2, dtype=complex)

    def forward(w, x):
        return oracle.run(lambda w, x: layer.forward({"w": w}, x)[0], w, x)

    full = forward(w if mixed == "w" else w.real.astype(complex), x)
    if mixed == "x":
        np.testing.assert_allclose(forward(w.real, x), full, atol=1e-13)
    else:
        both = [forward(w, part) for part in (x.real, x.imag)]
        np.testing.assert_allclose(both[0] + 1j * both[1], full, atol=1e-13)


def test_conv_forward_is_its_formula(oracle):
    x, params = oracle.normal(2, 5, 4, 2), oracle.draw(conv(3, 3, 2, padding=1), (5, 4, 2))
    y, *_ = oracle.call(conv(3, 3, 2, padding=1), params, x)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    expected = np.zeros((2, 3, 2, 3))
    for i, j in np.ndindex(3, 2):
        patch = padded[:, 2 * i : 2 * i + 3, 2 * j : 2 * j + 3]
        expected[:, i, j] = np.einsum("bhwc,hwcf->bf", patch, params["w"]) + params["b"]
    np.testing.assert_allclose(y, expected, rtol=1e-12)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize(("window", "stride"), [(2, None), (3, 2), (5, 5)])
def test_pool_forward_is_its_formula(oracle, pool, window, stride):
    x, step = np.asarray(oracle.normal(2, 7, 6, 2)), stride or window
    formula = {
        "max": lambda v: v.max(axis=(1, 2)),
        "avg": lambda v: v.mean(axis=(1, 2)),
        "soft": lambda v: (v * np.exp(v)).sum(axis=(1, 2)) / np.exp(v).sum(axis=(1, 2)),
    }[pool]
    y, *_ = oracle.call(POOLS[pool](window, stride), (), jnp.asarray(x))
    for i, j in np.ndindex(*y.shape[1:3]):
        patch = x[:, i * step : i * step + window, j * step : j * step + window]
        np.testing.assert_allclose(y[:, i, j], formula(patch), rtol=1e-12)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 1), (5, 5)])
def test_max_pool_gives_ties_to_the_first_in_window_order(oracle, window, stride):
    layer, x = max_pool(window, stride), np.random.default_rng(0).integers(0, 2, (2, 6, 7, 2)) / 1.0
    shape = (2, (6 - window) // stride + 1, (7 - window) // stride + 1, 2)
    dy = np.arange(1.0, 1.0 + np.prod(shape)).reshape(shape)
    *_, dx = oracle.call(layer, (), x, dy)
    expected = np.zeros(x.shape)
    for b, i, j, c in np.ndindex(*shape):
        patch = x[b, i * stride : i * stride + window, j * stride : j * stride + window, c]
        row, column = np.unravel_index(np.argmax(patch), (window, window))
        expected[b, i * stride + row, j * stride + column, c] += dy[b, i, j, c]
    np.testing.assert_array_equal(dx, expected)


def test_max_pool_lets_a_nan_through(oracle):
    x = np.zeros((2, 5, 5, 1))
    x[0, 0, 0, 0] = x[1, 0, 1, 0] = np.nan
    for window in (2, 5):
        y, *_ = oracle.call(max_pool(window), (), x)
        assert np.isnan(y[:, 0, 0, 0]).all()


def test_pools_keep_no_more_than_they_say():
    x = jnp.zeros((2, 4, 4, 3), jnp.float32)
    sizes = {
        name: sum(
            leaf.size * leaf.dtype.itemsize
            for leaf in jax.tree.leaves(jax.eval_shape(pool(2).forward, (), x)[1])
        )
        for name, pool in POOLS.items()
    }
    assert sizes == {"max": x.size // 4, "avg": 0, "soft": x.nbytes}


def test_conv_takes_its_transpose_from_feedback(oracle):
    def product(x, w):
        return lax.conv_general_dilated(
            x, w, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    oracle.feedback(
        conv(2, 3, 2),
        (5, 4, 2),
        lambda p, b, x: oracle.tied(product)(x, p["w"], b["w"]) + p["b"],
    )


def test_cnn_with_batch_norm_backward_is_autodiff_and_compiles_once(oracle):
    network = chain(
        conv(4, 3, bias_init="normal"),
        batch_norm(),
        relu(),
        max_pool(2),
        conv(3, 3, padding="VALID"),
        batch_norm(),
        relu(),
        flatten(),
        dense(2),
    )
    oracle.autodiff(network, (8, 8, 1), batch=4, train=True, limits=(1e-10, 1e-4))
    oracle.compiles_once(network, (8, 8, 1), train=True)


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (conv(2, 5, padding="VALID"), (4, 6, 1), "kernel = 5: is larger than the padded image"),
        (conv(2, 3), (4, 6), r"shape \(4, 6\), needs \(height, width, channels\)"),
        (
            max_pool(5),
            (4, 6, 1),
            "max_pool: window = 5: is larger than the image; images are 4 x 6",
        ),
        (avg_pool(2), (6,), "avg_pool: one example has shape"),
        (soft_pool(7), (6, 6, 1), "soft_pool: window = 7"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        layer.init(jax.random.key(0), shape)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: conv(2, 3, padding="same"), r"padding = 'same': must be 'SAME' \| 'VALID' or"),
        (lambda: conv(2, 3, padding=-1), "padding = -1"),
        (lambda: conv(0, 3), "features = 0: must be a whole number >= 1"),
        (lambda: max_pool(2, 0), "stride = 0: must be a whole number >= 1"),
        (lambda: soft_pool(2, temperature=0.0), "temperature = 0.0: must be a number > 0"),
    ],
)
def test_a_setting_out_of_range_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_max_pool_refuses_complex_numbers():
    with pytest.raises(ValueError, match="use soft_pool or avg_pool"):
        max_pool(2).forward((), jnp.zeros((1, 2, 2, 1), complex))


def test_conv_refuses_another_number_of_channels(oracle):
    params = oracle.draw(conv(2, 3), (4, 4, 1))
    with pytest.raises(ValueError, match="does not fit weights"):
        conv(2, 3).forward(params, jnp.zeros((1, 4, 4, 2)))


def test_conv_initialises_by_fan_in(oracle):
    layer = conv(64, 3, init="fan_in_uniform", bias_init="fan_in_uniform")
    params = oracle.run(lambda key: layer.init(key, (8, 8, 16))[0], jax.random.key(0))
    bound = (3 * 3 * 16) ** -0.5
    for leaf in params.values():
        assert 0.9 * bound < np.abs(leaf).max() <= bound


def test_pooling_and_convolution_can_stand_in_an_energy():
    assert not any(layer.no_energy for layer in (conv(2, 3), max_pool(2), avg_pool(2)))
    assert layers.chain(conv(2, 3), batch_norm()).no_energy
