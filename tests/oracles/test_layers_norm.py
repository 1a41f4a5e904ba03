"""Normalisation, dropout and embeddings against autodiff, complex steps and their formulas."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpeq import layers
from bpeq.layers import (
    batch_norm,
    chain,
    dense,
    dropout,
    embedding,
    layer_norm,
    position_embedding,
    relu,
    repeat,
    residual,
    tanh,
)

few = settings(max_examples=2, deadline=None, derandomize=True)
shapes = st.lists(st.integers(1, 4), min_size=1, max_size=3).map(tuple)


@pytest.mark.parametrize("train", [True, False])
@few
@given(shapes, st.integers(2, 4))
def test_batch_norm_backward_is_autodiff(oracle, train, shape, batch):
    oracle.autodiff(batch_norm(0.1), shape, batch=batch, train=train)


@few
@given(shapes.map(lambda shape: (*shape, 3)))
def test_layer_norm_backward_is_autodiff(oracle, shape):
    oracle.autodiff(layer_norm(0.1), shape)


@few
@given(shapes, st.floats(0.0, 0.9))
def test_dropout_backward_is_autodiff(oracle, shape, rate):
    oracle.autodiff(dropout(rate), shape, train=True)
    oracle.autodiff(dropout(rate), shape)


@few
@given(shapes, st.integers(1, 5))
def test_embedding_backward_is_autodiff(oracle, shape, vocabulary):
    ids = jnp.asarray(np.random.default_rng(0).integers(0, vocabulary, (3, *shape)))
    oracle.autodiff(embedding(vocabulary, 2), shape, x=ids)


@few
@given(st.integers(1, 5), st.integers(1, 3))
def test_position_embedding_backward_is_autodiff(oracle, steps, n):
    oracle.autodiff(position_embedding(5), (steps, n))


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_backward_is_the_complex_step(oracle, train):
    oracle.complex_step(batch_norm(), (3, 2, 4), train=train)


def test_layer_norm_backward_is_the_complex_step(oracle):
    oracle.complex_step(layer_norm(), (3, 4))


def test_layer_norm_takes_complex_numbers(oracle):
    oracle.autodiff(layer_norm(), (3, 4), dtypes=(jnp.complex128,))


def test_dropout_and_embeddings_backward_are_the_complex_step(oracle):
    oracle.complex_step(dropout(0.5), (6,), train=True)
    oracle.complex_step(position_embedding(5), (4, 3))
    oracle.complex_step(embedding(5, 3), (4,), x=jnp.array([[0, 2, 2, 4], [1, 2, 3, 4]]))


def scaled(oracle, p, b, normal):
    return oracle.tied(lambda a, gain: a * gain)(normal, p["gain"], b["gain"]) + p["bias"]


def test_layer_norm_takes_the_gain_of_its_errors_from_feedback(oracle):
    def forward(p, b, x):
        mean, variance = jnp.mean(x, -1, keepdims=True), jnp.var(x, -1, keepdims=True)
        return scaled(oracle, p, b, (x - mean) / jnp.sqrt(variance + 1e-5))

    oracle.feedback(layer_norm(), (3, 4), forward)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_takes_the_gain_of_its_errors_from_feedback(oracle, train):
    def forward(p, b, x):
        mean, variance = jnp.mean(x, (0, 1)), jnp.var(x, (0, 1))
        if not train:
            mean, variance = jax.lax.stop_gradient((p["mean"], p["variance"]))
        return scaled(oracle, p, b, (x - mean) / jnp.sqrt(variance + 1e-5))

    oracle.feedback(batch_norm(), (3, 4), forward, train=train)


def test_batch_norm_absorbs_running_averages(oracle):
    layer, x = batch_norm(decay=0.75), oracle.normal(8, 2, 3)
    params = oracle.draw(layer, (2, 3))
    _, kept, *_ = oracle.call(layer, params, x, key=jax.random.key(0))
    new = oracle.run(layer.absorb, params, kept)
    x = np.asarray(x)
    for name, batch in (("mean", x.mean((0, 1))), ("variance", x.var((0, 1)))):
        np.testing.assert_allclose(new[name], 0.75 * params[name] + 0.25 * batch, rtol=1e-12)
    assert np.array_equal(new["gain"], params["gain"])


def deep():
    """Batch normalisation inside every combinator, and twice in a row where copies repeat."""
    return chain(
        dense(4),
        batch_norm(),
        relu(),
        dropout(0.9),
        residual(dense(4), batch_norm(), tanh(), shortcut=chain(dense(4), batch_norm())),
        repeat(chain(dense(4), batch_norm(), tanh()), 3),
        batch_norm(),
    )


def test_calibrate_makes_evaluation_normalise_like_training_on_one_batch(oracle):
    with_dropout, x = deep(), oracle.normal(16, 3)
    without = chain(*(part for part in with_dropout.parts if part.name != "dropout"))
    params = oracle.draw(with_dropout, (3,))
    fitted = oracle.run(lambda p: layers.calibrate(with_dropout, p, x), params)
    evaluated, *_ = oracle.call(with_dropout, fitted, x)
    trained, *_ = oracle.call(without, params[:3] + params[4:], x, key=jax.random.key(0))
    np.testing.assert_allclose(evaluated, trained, rtol=1e-9, atol=1e-9)
    for old, new in ((params[0], fitted[0]), (params[1]["gain"], fitted[1]["gain"])):
        assert jax.tree.all(jax.tree.map(np.array_equal, old, new))


def test_calibrate_leaves_what_a_rule_has_appended_as_it_is(oracle):
    """As Kolen–Pollack's D, which mirrors the network's own entries."""
    network, x = chain(dense(3), batch_norm(), dense(2)), oracle.normal(8, 3)
    own = oracle.draw(network, (3,))
    feedback = {"feedback": oracle.draw(network, (3,))}
    fitted = oracle.run(lambda p: layers.calibrate(network, p, x), (*own, feedback))
    alone = oracle.run(lambda p: layers.calibrate(network, p, x), own)
    assert jax.tree.all(jax.tree.map(np.array_equal, fitted, (*alone, feedback)))
    assert np.abs(fitted[1]["mean"] - own[1]["mean"]).max() > 0.1


def test_calibrate_ends_on_nan_and_leaves_other_networks_alone(oracle):
    network = chain(batch_norm(), batch_norm())
    params = oracle.draw(network, (2,))
    x = np.full((3, 2), np.nan)
    fitted = oracle.run(lambda p, x: layers.calibrate(network, p, x), params, x)
    assert np.isnan(fitted[1]["mean"]).all()
    plain = oracle.draw(dense(2), (3,))
    assert layers.calibrate(dense(2), plain, oracle.normal(3, 3)) is plain


def test_batch_norm_in_every_combinator_backward_is_autodiff(oracle):
    oracle.autodiff(deep(), (3,), batch=8, train=True, limits=(1e-10, 1e-4))


def test_dropout_keeps_the_mean_and_its_share(oracle):
    layer, x = dropout(0.25), np.ones((100, 1000))
    y, mask, *_ = oracle.call(layer, (), x, key=jax.random.key(3))
    assert abs(float(y.mean()) - 1.0) < 0.01
    assert abs(float(mask.mean()) - 0.75) < 0.01
    assert mask.dtype == bool
    assert layer.forward((), x)[0] is x
    assert layer.forward((), x)[1] is None


def test_embedding_refuses_ids_that_it_has_no_vector_for(oracle):
    layer, params = embedding(5, 2), oracle.draw(embedding(5, 2), ())
    for bad in (5, -1):
        ids = jnp.array([0, bad])
        with pytest.raises(ValueError, match=f"id {bad} is out of range: allowed 0 to 4"):
            layer.forward(params, ids)
        y, kept = jax.jit(layer.forward)(params, ids)  # cannot look, and says NaN
        assert jnp.isnan(y[1]).all()
        assert jnp.isfinite(y[0]).all()
        dparams, dx = layer.backward(params, params, kept, jnp.ones_like(y))
        assert dx is None
        assert dparams["table"].tolist() == [[1.0, 1.0]] + 4 * [[0.0, 0.0]]
    with pytest.raises(ValueError, match="ids must be integers, got float64"):
        layer.forward(params, jnp.array([0.0]))


def test_a_shape_that_does_not_fit_is_refused(oracle):
    key = jax.random.key(0)
    with pytest.raises(
        ValueError, match="position_embedding: length = 5: must be at least the 6 steps"
    ):
        position_embedding(5).init(key, (6, 2))
    with pytest.raises(ValueError, match="6 steps"):
        position_embedding(5).forward({"table": jnp.zeros((5, 2))}, jnp.zeros((1, 6, 2)))
    with pytest.raises(ValueError, match="needs \\(steps, features\\)"):
        position_embedding(5).init(key, (5,))
    for factory in (batch_norm, layer_norm):
        params = oracle.draw(factory(), (3,))
        with pytest.raises(ValueError, match="does not fit 3"):
            factory().forward(params, jnp.zeros((2, 4)))
        with pytest.raises(ValueError, match="needs one axis"):
            factory().init(key, ())
    with pytest.raises(ValueError, match="batch_size = 1: one value for each channel"):
        batch_norm().forward(oracle.draw(batch_norm(), (3,)), jnp.zeros((1, 3)), key)
    with pytest.raises(ValueError, match=r"rate = 1.0: must be a number >= 0 and < 1"):
        dropout(1.0)


def test_layers_without_an_energy_say_so():
    assert "batch" in batch_norm().no_energy
    assert "mask" in dropout(0.5).no_energy
    for combine in (residual, chain, lambda layer: repeat(layer, 2)):
        assert combine(dropout(0.5)).no_energy == dropout(0.5).no_energy
    assert not any(part.no_energy for part in (layer_norm(), embedding(3, 2)))
