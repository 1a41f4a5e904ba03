"""Layers against PyTorch's autograd on the same weights, where PyTorch is installed."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    torch = pytest.importorskip("torch")

KEY = jax.random.key(0)


@pytest.fixture(params=[(np.float32, 1e-4), (np.float64, 1e-10)], ids=["float32", "float64"])
def same(request, oracle):
    """Compares y, dx and all dparams of a layer with those of a torch function."""
    dtype, tolerance = request.param

    def compare(layer, shape, theirs, *, axes=(), train=False, batch=3):
        """theirs(params, x) -> y on torch tensors; `axes` moves x and y into torch's order."""
        params = jax.tree.map(lambda a: np.asarray(a, dtype), oracle.draw(layer, shape))
        x = np.asarray(oracle.normal(batch, *shape), dtype)
        y, kept, dparams, dx = oracle.call(
            layer, params, x, _wave(layer, params, x, train), _key(train)
        )
        at, own = _torch(x), jax.tree.map(_torch, params)
        y_torch = theirs(own, at.permute(*axes) if axes else at)
        y_torch = y_torch.permute(*np.argsort(axes).tolist()) if axes else y_torch
        y_torch.backward(torch.from_numpy(_wave(layer, params, x, train)))
        expected = jax.tree.map(
            lambda a: np.zeros(a.shape) if a.grad is None else a.grad.numpy(), own
        )
        np.testing.assert_allclose(y, y_torch.detach().numpy(), rtol=tolerance, atol=tolerance)
        assert layers.gradient_error((dparams, dx), (expected, at.grad.numpy())) <= tolerance
        return params, kept

    compare.tolerance = tolerance
    return compare


def _key(train):
    return KEY if train else None


def _wave(layer, params, x, train):
    """An output error without symmetries."""
    like = jax.eval_shape(lambda p, x: layer.forward(p, x, _key(train))[0], params, x)
    return np.cos(np.arange(like.size)).reshape(like.shape).astype(like.dtype)


def _torch(a):
    return torch.from_numpy(np.array(a)).requires_grad_()


IMAGE = (0, 3, 1, 2)
nn = torch.nn.functional


@pytest.mark.parametrize(("stride", "padding"), [(1, 0), (2, 1), (1, "SAME")])
def test_conv(same, stride, padding):
    def theirs(p, x):
        pad = padding if padding != "SAME" else "same"
        return nn.conv2d(x, p["w"].permute(3, 2, 0, 1), p["b"], stride, pad)

    same(layers.conv(4, 3, stride, padding), (7, 6, 2), theirs, axes=IMAGE)


@pytest.mark.parametrize(("window", "stride"), [(2, 2), (3, 2), (3, 1)])
def test_max_and_average_pooling(same, window, stride):
    for ours, theirs in (("max_pool", nn.max_pool2d), ("avg_pool", nn.avg_pool2d)):
        layer = getattr(layers, ours)(window, stride)
        same(layer, (7, 6, 2), lambda p, x, f=theirs: f(x, window, stride), axes=IMAGE)


def test_max_pool_breaks_ties_alike():
    x = np.random.default_rng(0).integers(0, 2, (2, 6, 6, 3)).astype(float)
    y, kept = layers.max_pool(3, 2).forward((), jnp.asarray(x))
    at = _torch(x)
    pooled = nn.max_pool2d(at.permute(*IMAGE), 3, 2).permute(0, 2, 3, 1)
    dy = np.arange(1.0, 1.0 + y.size).reshape(y.shape)
    pooled.backward(torch.from_numpy(dy))
    np.testing.assert_array_equal(
        layers.max_pool(3, 2).backward((), (), kept, jnp.asarray(dy))[1], at.grad.numpy()
    )


@pytest.mark.parametrize("shape", [(4,), (3, 2, 4)])
def test_batch_norm_in_training(same, shape):
    layer, running = layers.batch_norm(decay=0.9), {}

    def theirs(p, x):
        running.update({name: p[name].detach().clone() for name in ("mean", "variance")})
        return nn.batch_norm(
            x, running["mean"], running["variance"], p["gain"], p["bias"], True, 0.1, 1e-5
        )

    axes = IMAGE if len(shape) == 3 else ()
    params, kept = same(layer, shape, theirs, axes=axes, train=True, batch=5)
    new = layer.absorb(params, kept)
    np.testing.assert_allclose(new["mean"], running["mean"], rtol=same.tolerance, atol=1e-6)
    count = 5 * int(np.prod(shape[:-1]))  # theirs is corrected by m/(m − 1), ours is not
    batch = (running["variance"].numpy() - 0.9 * params["variance"]) * (count - 1) / count
    np.testing.assert_allclose(
        new["variance"], 0.9 * params["variance"] + batch, rtol=same.tolerance
    )


def test_batch_norm_in_evaluation(same):
    def theirs(p, x):
        mean, variance = p["mean"].detach(), p["variance"].detach()
        return nn.batch_norm(x, mean, variance, p["gain"], p["bias"], False, 0.1, 1e-5)

    same(layers.batch_norm(), (3, 2, 4), theirs, axes=IMAGE)


def test_layer_norm(same):
    same(
        layers.layer_norm(),
        (3, 5),
        lambda p, x: nn.layer_norm(x, (5,), p["gain"], p["bias"], 1e-5),
    )


@pytest.mark.parametrize("causal", [True, False])
def test_attention(same, causal):
    def theirs(p, x):
        module = torch.nn.MultiheadAttention(6, 2, batch_first=True, dtype=x.dtype)
        names = {
            "in_proj_weight": torch.cat([p[n]["w"].T for n in "qkv"]),
            "in_proj_bias": torch.cat([p[n]["b"] for n in "qkv"]),
            "out_proj.weight": p["o"]["w"].T,
            "out_proj.bias": p["o"]["b"],
        }
        mask = torch.ones(4, 4, dtype=torch.bool).triu(1) if causal else None
        arguments = {"need_weights": False, "attn_mask": mask}
        return torch.func.functional_call(module, names, (x, x, x), arguments)[0]

    same(layers.attention(2, causal), (4, 6), theirs)


@pytest.mark.parametrize("name", ["rnn", "gru", "lstm"])
@pytest.mark.parametrize("sequences", [True, False])
def test_recurrent(same, name, sequences):
    def theirs(p, x):
        module = getattr(torch.nn, name.upper())(3, 4, batch_first=True, dtype=x.dtype)
        other = p["c"] if "c" in p else torch.zeros_like(p["b"])
        names = {
            "weight_ih_l0": p["w"].T,
            "weight_hh_l0": p["u"].T,
            "bias_ih_l0": p["b"],
            "bias_hh_l0": other,
        }
        y = torch.func.functional_call(module, names, (x,))[0]
        return y if sequences else y[:, -1]

    same(getattr(layers, name)(4, return_sequences=sequences), (5, 3), theirs)


def test_embedding(oracle):
    layer, ids = layers.embedding(5, 3), np.array([[0, 2, 2], [4, 0, 1]])
    params = oracle.draw(layer, (3,))
    y, _, dparams, dx = oracle.call(layer, params, ids)
    table = _torch(params["table"])
    nn.embedding(torch.from_numpy(ids), table).sum().backward()
    np.testing.assert_array_equal(y, params["table"][ids])
    np.testing.assert_array_equal(dparams["table"], table.grad.numpy())
    assert dx is None
