"""Hand-written backward passes against `jax.grad` of the very same forward.

Each program is jitted, and gives the loss and the gradient of all parameters. `plain` is what a JAX
user would write: for the CNN the same net with `lax.reduce_window` for max-pooling.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from benchmarks.nets import mlp
from benchmarks.timing import Effort, Found, Ratio, compiled, interleaved, ratio, timed_rows
from bpeq import costs, layers
from bpeq.layers import chain, dense, residual
from bpeq.types import Layer

RATIOS = ("backprop_over_autodiff",)
Gradient = Callable[[Any, jax.Array, jax.Array], Any]


class Net(NamedTuple):
    """A network, one batch of its inputs, its number of classes, and its plain JAX version."""

    network: Layer
    x: jax.Array
    classes: int
    plain: Callable[[Any, jax.Array], jax.Array] | None = None


def nets() -> dict[str, Net]:
    """The networks that are timed: 28 × 28 images, 50 steps of 64 features, 64 tokens of 128."""
    key = jax.random.key(0)
    cnn = chain(
        layers.conv(32, kernel=5),
        layers.max_pool(2),
        layers.relu(),
        layers.conv(64, kernel=5),
        layers.max_pool(2),
        layers.relu(),
        layers.flatten(),
        dense(10),
    )
    block = chain(
        residual(layers.layer_norm(), layers.attention(4, causal=True)),
        residual(layers.layer_norm(), dense(512), layers.gelu(), dense(128)),
    )
    return {
        "mlp": Net(mlp(512), jax.random.normal(key, (128, 784)), 10),
        "cnn": Net(cnn, jax.random.normal(key, (100, 28, 28, 1)), 10, plain_cnn),
        "lstm": Net(chain(layers.lstm(128), dense(10)), jax.random.normal(key, (32, 50, 64)), 10),
        "gru": Net(chain(layers.gru(128), dense(10)), jax.random.normal(key, (32, 50, 64)), 10),
        "transformer": Net(
            chain(layers.embedding(64, 128), block, layers.flatten(), dense(10)),
            jax.random.randint(key, (16, 64), 0, 64),
            10,
        ),
    }


def plain_cnn(params: Any, x: jax.Array) -> jax.Array:
    """The CNN as tutorials write it."""
    for at in (0, 3):
        conv = lax.conv_general_dilated(
            x, params[at]["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        box = (1, 2, 2, 1)
        pooled = lax.reduce_window(conv + params[at]["b"], -jnp.inf, lax.max, box, box, "VALID")
        x = jax.nn.relu(pooled)
    return x.reshape(x.shape[0], -1) @ params[7]["w"] + params[7]["b"]


def programs(net: Net) -> dict[str, Gradient]:
    """ours, autodiff of the same forward, and plain where there is one."""
    cost = costs.softmax_cross_entropy()

    def ours(params: Any, x: jax.Array, y: jax.Array) -> Any:
        output, residuals = net.network.forward(params, x)
        error = cost.error(output, y) / x.shape[0]
        dparams, _ = net.network.backward(params, params, residuals, error)
        return jnp.mean(cost.value(output, y)), dparams

    def autodiff(params: Any, x: jax.Array, y: jax.Array) -> Any:
        def loss(params: Any) -> jax.Array:
            return jnp.mean(cost.value(layers.apply(net.network, params, x), y))

        return jax.value_and_grad(loss)(params)

    def plain(params: Any, x: jax.Array, y: jax.Array) -> Any:
        assert net.plain is not None
        apply = net.plain
        return jax.value_and_grad(lambda p: jnp.mean(cost.value(apply(p, x), y)))(params)

    found = {"ours": ours, "autodiff": autodiff}
    return found if net.plain is None else {**found, "plain": plain}


def run(effort: Effort) -> Found:
    """A row a net and program; the ratio is the worst net's."""
    rows: list[dict[str, Any]] = []
    ratios: dict[str, Ratio] = {}
    for name, net in nets().items():
        if effort.quick and name != "mlp":
            continue
        params, _ = net.network.init(jax.random.key(1), net.x.shape[1:])
        y = jax.random.randint(jax.random.key(2), net.x.shape[:1], 0, net.classes)
        made = {kind: compiled(f, params, net.x, y) for kind, f in programs(net).items()}
        seconds = interleaved(made, effort.rounds)
        ratios[name] = ratio(seconds, "ours", "autodiff")
        for r in timed_rows(seconds, made, net=name):
            over = ratio(seconds, "ours", r["name"]).median
            rows.append({**r, "name": f"gradient of {name}, {r['name']}", "ours_over_it": over})
    rows.append({"name": "hand-written over jax.grad", **{k: r.median for k, r in ratios.items()}})
    return Found(rows, {"backprop_over_autodiff": max(ratios.values())})
