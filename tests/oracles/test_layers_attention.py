"""Attention against autodiff, complex steps and its formula written out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpeq.layers import (
    attention,
    chain,
    dense,
    embedding,
    flatten,
    gelu,
    layer_norm,
    position_embedding,
    repeat,
    residual,
)

few = settings(max_examples=2, deadline=None, derandomize=True)


@few
@given(st.integers(2, 4), st.integers(1, 2), st.integers(1, 3), st.booleans())
def test_attention_backward_is_autodiff(oracle, steps, heads, size, causal):
    oracle.autodiff(attention(heads, causal), (steps, heads * size), batch=2)


@pytest.mark.parametrize("causal", [True, False])
def test_attention_backward_is_the_complex_step(oracle, causal):
    oracle.complex_step(attention(2, causal), (3, 4))


def test_attention_takes_complex_numbers_without_a_conjugate(oracle):
    oracle.autodiff(attention(2, causal=True), (3, 4), dtypes=(jnp.complex128,))


@pytest.mark.parametrize("causal", [True, False])
def test_attention_is_its_formula_and_transposes_come_from_feedback(oracle, causal):
    times = oracle.tied(jnp.matmul)

    def forward(p, back, x):
        q, k, v = (times(x, p[name]["w"], back[name]["w"]) + p[name]["b"] for name in "qkv")
        heads = []
        for part in (slice(0, 2), slice(2, 4)):
            scores = q[..., part] @ k[..., part].swapaxes(1, 2) / np.sqrt(2).item()
            if causal:
                scores = jnp.where(jnp.arange(3)[:, None] >= jnp.arange(3), scores, -jnp.inf)
            heads.append(jax.nn.softmax(scores, axis=-1) @ v[..., part])
        return times(jnp.concatenate(heads, axis=-1), p["o"]["w"], back["o"]["w"]) + p["o"]["b"]

    oracle.feedback(attention(2, causal), (3, 4), forward)


def test_causal_attention_sees_no_later_step(oracle):
    layer = attention(2, causal=True)
    params, x = oracle.draw(layer, (4, 4)), oracle.normal(1, 4, 4)
    both = jnp.concatenate([x, x.at[:, 2:].add(1.0)])
    y, changed = oracle.run(layer.forward, params, both)[0]
    assert np.array_equal(y[:2], changed[:2])
    assert not np.array_equal(y[2:], changed[2:])


def test_attention_is_stable_for_large_scores(oracle):
    layer = attention(1, causal=True)
    params = jax.tree.map(lambda a: 1e3 * np.asarray(a), oracle.draw(layer, (3, 2)))
    y, _, *gradients = oracle.call(layer, params, oracle.normal(1, 3, 2))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, gradients)))


def test_transformer_backward_is_autodiff_and_compiles_once(oracle):
    block = chain(
        residual(layer_norm(), attention(2, causal=True)),
        residual(layer_norm(), dense(6), gelu(), dense(4)),
    )
    network = chain(
        embedding(5, 4), position_embedding(3), repeat(block, 4), layer_norm(), flatten(), dense(2)
    )
    ids = jnp.array([[0, 1, 2], [4, 4, 1]])
    oracle.autodiff(network, (3,), x=ids, deep=True)
    oracle.compiles_once(network, (3,), x=ids)


def test_a_shape_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="heads = 3: must divide the 4 features"):
        attention(3).init(jax.random.key(0), (5, 4))
    with pytest.raises(ValueError, match=r"attention: one example has shape \(4,\)"):
        attention(2).init(jax.random.key(0), (4,))
