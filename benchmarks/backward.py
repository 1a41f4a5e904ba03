"""Hand-written backward passes against `jax.grad` of the very same forward, side by side.

    python benchmarks/backward.py [--repeats 30] [--nets cnn,lstm,gru,transformer]

Every round times each program once, in turn, so that whatever else the machine does falls on all of
them; a ratio is the median over the rounds of (ours / theirs) within a round: below 1 ours is
faster. Each program is jitted, and gives the loss and the gradient of all parameters. `plain` is
what a JAX user would write: for the CNN the same net with `lax.reduce_window` for max-pooling.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from bpeq import costs, layers
from bpeq.layers import chain, dense, residual
from bpeq.types import Layer

Program = Callable[[Any, jax.Array, jax.Array], Any]


class Net(NamedTuple):
    """A network, one batch of its inputs, its number of classes, and its plain JAX version."""

    network: Layer
    x: jax.Array
    classes: int
    plain: Callable[[Any, jax.Array], jax.Array] | None = None


def nets() -> dict[str, Net]:
    """The networks that are timed: 28 x 28 images, 50 steps of 64 features, 64 tokens of 128."""
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


def programs(net: Net) -> dict[str, Program]:
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


def measure(net: Net, repeats: int) -> dict[str, list[float]]:
    """Seconds of every program in every round, after one round to compile and one to warm up."""
    params, _ = net.network.init(jax.random.key(1), net.x.shape[1:])
    y = jax.random.randint(jax.random.key(2), net.x.shape[:1], 0, net.classes)
    compiled = {name: jax.jit(program) for name, program in programs(net).items()}
    seconds: dict[str, list[float]] = {name: [] for name in compiled}
    for round_ in range(repeats + 2):
        for name, program in compiled.items():
            start = time.perf_counter()
            jax.block_until_ready(program(params, net.x, y))
            if round_ >= 2:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--nets", default=",".join(nets()))
    arguments = parser.parse_args()
    print(f"{'net':<12} {'program':<9} {'ms':>9} {'ours/it':>8}")
    for name in arguments.nets.split(","):
        seconds = measure(nets()[name], arguments.repeats)
        for program, times in seconds.items():
            ratio = statistics.median(a / b for a, b in zip(seconds["ours"], times, strict=True))
            print(f"{name:<12} {program:<9} {1e3 * statistics.median(times):9.2f} {ratio:8.3f}")


if __name__ == "__main__":
    main()
