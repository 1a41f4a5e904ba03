"""Combinators against autodiff and each other, and the pair that is handed to users."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpeq import layers
from bpeq.core import trees
from bpeq.layers import (
    chain,
    conv,
    dense,
    dropout,
    embedding,
    flatten,
    gelu,
    relu,
    repeat,
    residual,
    sigmoid,
    softplus,
    tanh,
)

few = settings(max_examples=2, deadline=None, derandomize=True)


@few
@given(st.integers(1, 4), st.integers(1, 4), st.sampled_from([tanh, relu, gelu, sigmoid, softplus]))
def test_chain_backward_is_autodiff(oracle, n, features, activation):
    oracle.autodiff(chain(dense(features), activation(), dense(2)), (2, n), deep=True)


@few
@given(st.integers(1, 4), st.booleans())
def test_residual_backward_is_autodiff(oracle, n, shortcut):
    layer = residual(dense(n), tanh(), shortcut=dense(n) if shortcut else None)
    oracle.autodiff(layer, (n,))


@few
@given(st.integers(1, 3), st.integers(2, 3))
def test_repeat_backward_is_autodiff(oracle, n, copies):
    oracle.autodiff(repeat(chain(dense(n), tanh()), copies), (n,))


def test_combinators_backward_is_the_complex_step(oracle):
    skip = residual(conv(2, 3), tanh(), shortcut=conv(2, 1))
    oracle.complex_step(chain(repeat(residual(dense(2), tanh()), 2), skip, flatten()), (3, 2, 2))


def test_combinators_take_their_transposes_from_feedback(oracle):
    layer = chain(repeat(chain(dense(3), tanh()), 2), residual(tanh(), dense(3), shortcut=dense(3)))

    def forward(p, b, x):
        times = oracle.tied(jnp.matmul)

        def affine(x, p, b):
            return times(x, p["w"], b["w"]) + p["b"]

        for i in range(2):
            own, back = (jax.tree.map(lambda a, i=i: a[i], tree[0][0]) for tree in (p, b))
            x = jnp.tanh(affine(x, own, back))
        inner = affine(jnp.tanh(x), p[1]["inner"][1], b[1]["inner"][1])
        return affine(x, p[1]["shortcut"], b[1]["shortcut"]) + inner

    oracle.feedback(layer, (3,), forward)


def test_repeat_is_a_chain_of_copies(oracle):
    key = jax.random.key(5)
    one = residual(dense(3), tanh(), dropout(0.5))
    scanned, unrolled = repeat(one, 3), chain(*(one for _ in range(3)))
    params = oracle.run(lambda k: unrolled.init(k, (3,))[0], jax.random.key(1))
    stacked = oracle.run(lambda k: scanned.init(k, (3,))[0], jax.random.key(1))
    assert jax.tree.all(jax.tree.map(np.array_equal, stacked, trees.stack(list(params))))
    x = jnp.linspace(-1.0, 1.0, 6).reshape(2, 3)
    y, _, dparams, dx = oracle.call(unrolled, params, x, key=key)
    y_scanned, _, *ours = oracle.call(scanned, stacked, x, key=key)
    np.testing.assert_allclose(y_scanned, y, rtol=1e-13)
    assert layers.gradient_error(ours, [trees.stack(list(dparams)), dx]) < 1e-13


def test_custom_vjp_equals_autodiff(oracle):
    network = chain(embedding(5, 3), flatten(), dense(4), tanh(), dropout(0.5), dense(2))
    params, ids = oracle.draw(network, (2,)), jnp.array([[0, 1], [4, 4], [2, 3]])
    exported = layers.with_custom_vjp(network)

    def both(params, ids, key):
        def loss(apply):
            return lambda p: jnp.sum(jnp.square(apply(p, ids, key)))

        plain = loss(lambda p, x, key: layers.apply(network, p, x, key))
        return jax.value_and_grad(loss(exported))(params), jax.value_and_grad(plain)(params)

    for key in (None, jax.random.key(0)):
        ours, reference = oracle.run(both, params, ids, key)
        assert layers.gradient_error(ours, reference) < 1e-12


def test_custom_vjp_uses_the_hand_written_backward_also_under_vmap(oracle):
    layer, params = dense(2), oracle.draw(dense(2), (3,))
    doubled = layer._replace(
        backward=lambda *args: jax.tree.map(lambda a: 2 * a, layer.backward(*args))
    )
    x = oracle.normal(4, 1, 3)

    def gradients(apply):
        one = jax.grad(lambda p, x: jnp.sum(apply(p, x)), argnums=(0, 1))
        return oracle.run(jax.vmap(one, in_axes=(None, 0)), params, x)

    twice, once = (gradients(layers.with_custom_vjp(a)) for a in (doubled, layer))
    assert layers.gradient_error(twice, jax.tree.map(lambda a: 2 * a, once)) < 1e-15


@pytest.mark.parametrize(
    ("layer", "shape", "message"),
    [
        (residual(dense(3)), (2,), r"the layers end in shape \(3,\), the shortcut in \(2,\)"),
        (residual(conv(2, 9, padding=0)), (4, 4, 2), "residual: inner: layer 0 of the chain: conv"),
        (repeat(dense(3), 2), (2,), r"repeat: dense turns shape \(2,\) into \(3,\)"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(layer, shape, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: layer.init(jax.random.key(0), shape)[0])


def test_combinators_refuse_what_is_no_layer():
    with pytest.raises(ValueError, match="at least one layer"):
        residual()
    with pytest.raises(ValueError, match="must be a Layer"):
        residual(tanh)
    with pytest.raises(ValueError, match="n = 0: must be a whole number >= 1"):
        repeat(tanh(), 0)


def test_an_activation_inside_a_combinator_cannot_be_cut():
    for hidden in (residual(dense(2), tanh()), repeat(tanh(), 2)):
        with pytest.raises(ValueError, match="hides an activation"):
            layers.cut(chain(dense(2), hidden))
