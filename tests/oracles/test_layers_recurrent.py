"""Recurrent layers against autodiff through an unrolled loop, complex steps and autodiff itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpeq.layers import chain, dense, embedding, gru, lstm, rnn

few = settings(max_examples=2, deadline=None, derandomize=True)
FACTORIES = {"rnn": rnn, "gru": gru, "lstm": lstm}


@pytest.mark.parametrize("name", FACTORIES)
@few
@given(st.integers(2, 4), st.integers(1, 3), st.integers(1, 3), st.sampled_from([True, False]))
def test_backward_through_time_is_autodiff(oracle, name, steps, n, features, sequences):
    oracle.autodiff(FACTORIES[name](features, return_sequences=sequences), (steps, n), batch=2)


@pytest.mark.parametrize("name", FACTORIES)
def test_backward_through_time_is_the_complex_step(oracle, name):
    oracle.complex_step(FACTORIES[name](3, return_sequences=True), (4, 2))


@pytest.mark.parametrize("name", FACTORIES)
def test_complex_numbers_are_not_conjugated(oracle, name):
    oracle.autodiff(FACTORIES[name](2), (3, 2), dtypes=(jnp.complex128,))


def unrolled(oracle, name, features, sequences):
    """The papers' equations step by step, with untied transposes; gates in the layers' order."""
    times = oracle.tied(jnp.matmul)
    sigma = jax.nn.sigmoid

    def forward(p, back, x):
        h = c = jnp.zeros((x.shape[0], features))
        out = []
        for t in range(x.shape[1]):
            z = times(x[:, t], p["w"], back["w"]) + p["b"]
            r = times(h, p["u"], back["u"])
            if name == "rnn":
                h = jnp.tanh(z + r)
            elif name == "lstm":
                i, f, g, o = jnp.split(z + r, 4, axis=1)
                c = sigma(f) * c + sigma(i) * jnp.tanh(g)
                h = sigma(o) * jnp.tanh(c)
            else:
                (z_r, z_z, z_n), (r_r, r_z, r_n) = jnp.split(z, 3, 1), jnp.split(r + p["c"], 3, 1)
                update = sigma(z_z + r_z)
                new = jnp.tanh(z_n + sigma(z_r + r_r) * r_n)
                h = (1 - update) * new + update * h
            out.append(h)
        return jnp.stack(out, axis=1) if sequences else h

    return forward


@pytest.mark.parametrize("name", FACTORIES)
@pytest.mark.parametrize("sequences", [True, False])
def test_forward_is_its_equations_and_transposes_come_from_feedback(oracle, name, sequences):
    layer = FACTORIES[name](2, return_sequences=sequences)
    oracle.feedback(layer, (3, 2), unrolled(oracle, name, 2, sequences))


def test_lstm_network_backward_is_autodiff_and_compiles_once(oracle):
    network = chain(embedding(5, 3), lstm(4, return_sequences=True), lstm(3), dense(2))
    ids = jnp.array([[0, 1, 2, 3, 4, 0], [4, 4, 1, 0, 2, 3]])
    oracle.autodiff(network, (6,), x=ids, deep=True)
    oracle.compiles_once(network, (6,), x=ids)


def test_lstm_starts_remembering_with_orthogonal_blocks(oracle):
    layer = lstm(2, forget_bias=3.0)
    params = oracle.run(lambda key: layer.init(key, (4, 1))[0], jax.random.key(0))
    assert params["b"].tolist() == [0.0, 0.0, 3.0, 3.0, 0.0, 0.0, 0.0, 0.0]
    for block in np.split(params["u"], 4, axis=1):
        np.testing.assert_allclose(block @ block.T, np.eye(2), atol=1e-12)


@pytest.mark.parametrize("name", FACTORIES)
def test_an_example_that_is_no_sequence_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}: one example has shape"):
        FACTORIES[name](3).init(jax.random.key(0), (4,))
