"""Convolutions of wide kernels as matrix products: XLA's own, by another way."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bpeq.analysis.gradient_cost import count_macs
from bpeq.layers import apply, conv
from bpeq.layers._conv import DIMENSIONS, convolve_rows

SHAPES = {
    "valid": ((3, 12, 11, 13), (5, 5, 13, 7), ((0, 0), (0, 0))),
    "full": ((3, 8, 7, 13), (5, 5, 13, 7), ((4, 4), (4, 4))),
    "uneven": ((2, 9, 9, 11), (6, 7, 11, 3), ((2, 3), (5, 1))),
    "cut off": ((2, 12, 12, 13), (5, 5, 13, 4), ((-2, 1), (-1, -2))),
    "one pixel": ((1, 5, 5, 64), (5, 5, 64, 1), ((0, 0), (0, 0))),
}


def plain(x, w, pads):
    return lax.conv_general_dilated(x, w, (1, 1), pads, dimension_numbers=DIMENSIONS)


def drawn(shape, seed):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize("name", SHAPES)
def test_products_over_rows_are_the_convolution(name):
    """Value, both derivatives, and over weights side by side, as seeds have them."""
    image, kernel, pads = SHAPES[name]
    x, w = drawn(image, 0), drawn(kernel, 1)
    ours = jax.jit(convolve_rows, static_argnums=2)
    np.testing.assert_allclose(ours(x, w, pads), plain(x, w, pads), atol=1e-12)
    seed = drawn(plain(x, w, pads).shape, 2)
    found, wanted = (
        jax.vjp(lambda x, w, f=f: f(x, w, pads), x, w)[1](seed) for f in (convolve_rows, plain)
    )
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12)
    pair = jnp.stack([w, 2.0 * w])
    both = jax.vmap(lambda w: convolve_rows(x, w, pads))(pair)
    np.testing.assert_allclose(both[1], 2.0 * plain(x, w, pads), atol=1e-11)


@pytest.mark.parametrize(
    ("features", "channels", "kernel", "stride", "dtype", "wanted"),
    [
        (4, 13, 5, 1, "float32", True),
        (4, 1, 5, 1, "float32", False),
        (4, 64, 3, 1, "float32", False),
        (4, 13, 5, 2, "float32", False),
        (4, 13, 5, 1, "bfloat16", False),
        (4, 13, 5, 1, "complex64", True),
    ],
)
def test_wide_and_deep_kernels_go_by_products(features, channels, kernel, stride, dtype, wanted):
    """XLA's convolution is then not in the forward's program, but in its derivative's."""
    layer = conv(features, kernel=kernel, stride=stride)
    params, _ = layer.init(jax.random.key(0), (12, 12, channels))
    params = jax.tree.map(lambda p: p.astype(dtype), params)
    x = drawn((2, 12, 12, channels), 3).astype(dtype)
    program = str(jax.make_jaxpr(lambda x: layer.forward(params, x)[0])(x))
    assert ("conv_general_dilated" not in program.split("jvp_jaxpr")[0]) == wanted


def test_the_gradient_by_hand_is_that_of_jax_grad_on_both_ways():
    """A kernel of 5 and 16 channels forward and back by products; the weights' by XLA."""
    layer = conv(16, kernel=5)
    params, _ = layer.init(jax.random.key(0), (9, 10, 16))
    x, seed = drawn((3, 9, 10, 16), 4), drawn((3, 9, 10, 16), 5)
    value, kept = layer.forward(params, x)
    np.testing.assert_allclose(value, apply(layer, params, x), atol=1e-12)
    ours = layer.backward(params, params, kept, seed)
    theirs = jax.vjp(lambda p, x: plain(x, p["w"], ((2, 2), (2, 2))) + p["b"], params, x)[1](seed)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-11)


def test_counts_are_of_the_convolution_whichever_way_it_goes():
    """Products over rows also multiply what they then cut off."""
    layer = conv(4, kernel=5, padding="VALID")
    params, _ = layer.init(jax.random.key(0), (12, 12, 13))
    x = jnp.ones((2, 12, 12, 13))
    assert count_macs(lambda x: layer.forward(params, x)[0], x) == 2 * 8 * 8 * 5 * 5 * 13 * 4
