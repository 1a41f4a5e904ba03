"""The depth study: errors block by block, theory in closed form, its step and its smoke setting."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import integrate

from bpeq.config.loading import load_config
from bpeq.config.networks import build_networks
from bpeq.config.registry import load_study
from bpeq.costs import softmax_cross_entropy
from bpeq.layers import batch_norm, chain, dense, flatten, relu, repeat, residual, sigmoid
from bpeq.rules import backprop
from bpeq.training.loops import Carry, start, supervised
from bpeq.types import Batch


@pytest.fixture(scope="module")
def study(studies):
    return load_study("depth/study.py", studies).__globals__


@pytest.fixture(scope="module")
def nets(studies):
    return {
        k: v.layer
        for k, v in build_networks(load_config(studies.parent / "configs/depth.toml")).items()
    }


@pytest.fixture(scope="module")
def batch():
    x = jax.random.uniform(jax.random.key(0), (6, 3, 3, 1))
    return Batch(x, jnp.array([0, 1, 2, 0, 1, 2]))


@pytest.mark.parametrize(
    "block",
    [chain(dense(5), sigmoid()), residual(batch_norm(), relu(), dense(5))],
    ids=["plain", "residual + batch norm"],
)
def test_errors_are_the_gradients_with_respect_to_every_blocks_output(study, batch, block):
    net = study["deepened"](chain(flatten(), dense(5), repeat(block, 9), relu(), dense(3)), 4)
    key = jax.random.key(3)
    params, _ = net.init(key, (3, 3, 1))
    found = study["profile"](net, batch, params, key)
    assert found.errors.shape == (4,)

    def cost(h, own, done):
        """From the output of hidden layer `done` + 1 on, copy by copy."""
        for i in range(done, 3):
            h = block.forward(jax.tree.map(lambda leaf: leaf[i], own), h, key)[0]  # noqa: B023
        h = net.parts[3].forward((), h)[0]
        return softmax_cross_entropy().value(net.parts[4].forward(params[4], h)[0], batch.y).sum()

    h = net.parts[1].forward(params[1], batch.x.reshape(6, 9))[0]
    for done in range(4):
        dh = jax.grad(cost)(h, params[2], done)
        expected = np.sqrt((np.asarray(dh) ** 2).sum(axis=1).mean())
        np.testing.assert_allclose(found.errors[done], expected, rtol=1e-10)
        if done < 3:
            own = jax.tree.map(lambda leaf: leaf[done], params[2])  # noqa: B023
            dw = jax.grad(cost, argnums=1)(h, params[2], done)
            w = next(leaf[done] for leaf in jax.tree.leaves(dw) if leaf.ndim == 3)
            np.testing.assert_allclose(found.weights[done], jnp.linalg.norm(w), rtol=1e-10)
            h = block.forward(own, h, key)[0]
    np.testing.assert_allclose(
        found.spread, np.sqrt(np.var(h, axis=0).mean() / np.mean(np.square(h))), rtol=1e-10
    )


def test_a_factor_is_what_one_layer_multiplies_the_error_by(study):
    norms = np.array([[8.0, 4.0, 2.0, 1.0], [1.0, 3.0, 9.0, 27.0]])  # the layer at the input first
    np.testing.assert_allclose(study["factor"](norms), [2, 1 / 3], rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_norms_neither_underflow_nor_overflow(study, scale):
    a = jnp.array([3.0, 4.0], jnp.float32) * jnp.float32(scale)
    np.testing.assert_allclose(study["norm"](a), 5 * scale, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("relu", 1.0),
        ("relu_batch_norm", math.sqrt(math.pi / (math.pi - 1))),
        ("relu_layer_norm", 1.0),
        ("relu_residual", math.sqrt(2)),
    ],
)
def test_mean_field_factors_in_closed_form(study, nets, name, expected):
    x = jax.random.uniform(jax.random.key(0), (8, 28, 28, 1))
    np.testing.assert_allclose(study["mean_field"](nets[name], x, 5), [expected] * 4, rtol=1e-3)


def test_mean_field_factors_of_skips_fall_as_the_state_grows(study, nets):
    """√(1 + g E[φ′²] / q) with g E[φ′²] = 1; q grows by g var φ = 1 − 1/π a block."""
    x = jax.random.uniform(jax.random.key(0), (8, 28, 28, 1))
    q = 2 * np.var(x, axis=0).mean() + (1 - 1 / math.pi) * np.arange(4)
    found = study["mean_field"](nets["relu_residual_batch_norm"], x, 5)
    np.testing.assert_allclose(found, np.sqrt(1 + 1 / q), rtol=1e-3)


def test_mean_field_factor_of_sigmoids_at_the_fixed_point_of_their_variance(study, nets):
    logistic = lambda z: 1 / (1 + math.exp(-z))  # noqa: E731

    def mean(f, q):
        bell = lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)  # noqa: E731
        return integrate.quad(lambda z: bell(z) * f(math.sqrt(q) * z), -10, 10)[0]

    q = 0.25
    for _ in range(30):
        q = mean(lambda z: logistic(z) ** 2, q)
    expected = math.sqrt(mean(lambda z: (logistic(z) * (1 - logistic(z))) ** 2, q))
    assert round(expected, 3) == 0.236
    x = jax.random.uniform(jax.random.key(0), (8, 28, 28, 1))
    np.testing.assert_allclose(study["mean_field"](nets["sigmoid"], x, 12)[-1], expected, rtol=1e-5)


def test_every_seeds_weights_stand_once_for_each_optimizer(study):
    assert study["each"](2, jnp.arange(3)).tolist() == [[0, 0], [1, 1], [2, 2]]


def test_optimizers_side_by_side_are_each_of_them_alone(study, batch):
    net = chain(flatten(), dense(4), sigmoid(), batch_norm(), dense(3))  # no bias before a norm
    rule = backprop(net, softmax_cross_entropy())
    ways = {"sgd": optax.sgd(0.3), "adam": optax.adam(0.02)}
    params, _ = net.init(jax.random.key(0), (3, 3, 1))
    together = Carry(
        jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), params),
        tuple(way.init(params) for way in ways.values()),
        (),
    )
    alone = {name: start(rule, way, params, jax.random.key(1)) for name, way in ways.items()}
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        for i in range(3):
            key = jax.random.key(i)
            together, losses = study["side_by_side"](rule, ways)(together, batch, key)
            for name, way in ways.items():
                alone[name], one = supervised(rule, way)(alone[name], batch, key)
                np.testing.assert_allclose(losses[f"{name}_loss"], one["loss"], rtol=1e-12)
    for i, name in enumerate(ways):
        for a, b in zip(
            jax.tree.leaves(together.params), jax.tree.leaves(alone[name].params), strict=True
        ):
            np.testing.assert_allclose(a[i], b, rtol=1e-10, atol=1e-14)


@pytest.mark.long
def test_smoke(call, studies, tmp_path):
    """On digits: sigmoids vanish as theory says, batch norm and bare skips explode."""
    config, sets = (
        studies.parent / "configs" / "depth.toml",
        ("study.smoke=true", "data.name=digits"),
    )
    words = [word for pair in sets for word in ("--set", pair)]
    said = call("run", config, "--seeds", 1, *words, "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, [])
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["pictures"] == ["gradients.png", "training.png"]
    found = summary["metrics"]
    for name, factor in (("sigmoid", 0.236), ("relu_batch_norm", 1.21), ("relu_residual", 1.41)):
        assert found[f"gradient_factor_{name}"]["mean"] == pytest.approx(factor, rel=0.1)
    assert found["spread_sigmoid_20"]["mean"] < 1e-6
    for optimizer in ("sgd", "momentum", "rmsprop", "adam"):
        assert found[f"test_error_sigmoid_20_{optimizer}"]["mean"] > 0.8
    assert found["test_error_relu_residual_3_adam"]["mean"] < 0.6
