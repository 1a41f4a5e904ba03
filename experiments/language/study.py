"""Language: a task that attention alone can solve, then characters of Python's own help texts."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int
from matplotlib.figure import Figure

from bpeq.core.numerics import log_softmax
from bpeq.experiment import Config, Network, Runner, build_networks, learner, seed_keys
from bpeq.settings import Count
from bpeq.training import loops
from bpeq.types import Batch, Cost, Key, Params

OURS, CONTROL, BASELINE = "#0072b2", "#d55e00", "#444444"


def run(
    config: Config,
    runner: Runner,
    *,
    copy_updates: Count = 1500,
    text_updates: Count = 2000,
    copy_batch: Count = 64,
    text_batch: Count = 32,
    smoke: bool = False,
) -> dict[str, Any]:
    """Trains both nets of the copy task, then the text's; leaves language.png and samples.txt.

    Metrics: `copy_accuracy` and `copy_accuracy_without_attention`, the share of the second half's
    symbols that are foretold; `bits_per_character` on the held-out last tenth of the text;
    `baseline_bits_per_character`, of the interpolated 5-gram counted in the same nine tenths.

    Args:
      copy_updates, text_updates: of each net. copy_batch, text_batch: sequences an update.
      smoke: a fifth of the copy updates, 5 of the text's, and a short held-out text and sample.
    """
    if smoke:
        copy_updates, text_updates = max(copy_updates // 5, 1), 5
    networks, keys = read_networks(config), seed_keys(config.seed, config.seeds)
    cost = config.build(config.cost)
    metrics: dict[str, Any] = {}
    curves: dict[str, list[dict[str, Any]]] = {}
    for name, ending in (("copy", ""), ("copy_without_attention", "_without_attention")):
        found, curves[name] = copying(
            config, runner, networks[name], cost, keys, name, copy_updates, copy_batch
        )
        metrics[f"copy_accuracy{ending}"] = found
    text = corpus(networks["text"].tokens)
    if smoke:
        text = text._replace(held=text.held[:2000])
    with runner.clock("baseline"):
        baseline = interpolated_bits(text.train.tolist(), text.held.tolist(), text.symbols)
    params, bits, curves["text"] = reading(
        config, runner, networks["text"], cost, keys, text, text_updates, text_batch
    )
    sample = written(
        networks["text"],
        jax.tree.map(lambda p: p[0], params),
        text,
        keys[0, 2],
        60 if smoke else 600,
    )
    (runner.folder / "samples.txt").write_text(
        f"# sha256 of the text: {text.checksum}\n# {bits[0]:.3f} bits per character\n{sample}\n",
        encoding="utf-8",
    )
    metrics |= {"bits_per_character": bits, "baseline_bits_per_character": baseline}
    draw(curves, baseline, sample).savefig(runner.folder / "language.png", dpi=130)
    return metrics


def read_networks(config: Config) -> dict[str, Network]:
    """The three networks: tokens in, as many numbers for each of them out."""
    wanted = {}
    for name in ("copy", "copy_without_attention", "text"):
        spec = config.networks.get(name)
        if spec is not None and spec.tokens is None:
            raise config.error(f"networks.{name}.tokens", None, "is missing")
        if spec is not None and spec.input[0] < 2:
            size = list(spec.input)
            raise config.error(f"networks.{name}.input", size, "must be 2 tokens or more")
        wanted[name] = ((None,), (None, spec and spec.tokens))
    return build_networks(config, wanted)


def copying(
    config: Config,
    runner: Runner,
    network: Network,
    cost: Cost,
    keys: Key,
    name: str,
    updates: int,
    batch_size: int,
) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Every seed's accuracy on the second half of fresh sequences, and the rows that were logged.

    A sequence is a₁ … a_n a₁ … a_n; the net is asked for the next symbol everywhere, and judged
    where it can be known.
    """
    (steps,), symbols = network.shape, network.tokens

    def sequences(key: Key, count: int) -> Batch:
        half = jax.random.randint(key, (count, steps // 2), 0, symbols, jnp.int32)
        whole = jnp.concatenate([half, half, half[:, :1]], axis=1)
        return Batch(whole[:, :-1], whole[:, 1:])

    def accuracy(params: Params, key: Key) -> Array:
        batch = sequences(key, 500)
        known = slice(steps // 2 - 1, steps - 1)  # from the last of the first half on
        foretold = network.layer.forward(params, batch.x)[0].argmax(axis=-1)
        return jnp.mean(foretold[:, known] == batch.y[:, known])

    measured = jax.jit(jax.vmap(accuracy))
    fresh = jax.vmap(lambda key: jax.random.fold_in(key, 1))(keys[:, 1])
    carry, step = learner(config, network, cost, keys, updates)
    sample = lambda key: sequences(key, batch_size)  # noqa: E731
    _, values, rows = runner.repeat(
        loops.over_seeds(loops.step_scan(step, sample)),
        carry,
        (keys[:, 2],),
        total=updates,
        every=max(updates // 20, 1),
        measure=lambda carry: {"accuracy": measured(carry.params, fresh)},
        params=lambda carry: carry.params,
        name=name,
    )
    return values[f"{name}_accuracy"], rows


class Text(NamedTuple):
    """A text as numbers: nine tenths to learn from, the last tenth held out.

    alphabet: its characters; number i stands for alphabet[i], and one more for all others.
    """

    train: Int[np.ndarray, " m"]
    held: Int[np.ndarray, " n"]
    alphabet: str
    checksum: str

    @property
    def symbols(self) -> int:
        return len(self.alphabet) + 1


def corpus(symbols: int) -> Text:
    """What `help()` knows of Python's syntax: the texts of `pydoc_data.topics`, in their order.

    Each Python version brings its own; the checksum says which this is. The alphabet is the
    commonest symbols − 1 characters of what is learned from.
    """
    from pydoc_data.topics import topics

    whole = "\n".join(topics.values())
    cut = len(whole) * 9 // 10
    common = Counter(whole[:cut]).most_common(symbols - 1)
    alphabet = "".join(sorted(character for character, _ in common))
    numbers = np.array([alphabet.find(c) % (len(alphabet) + 1) for c in whole], np.int32)
    digest = hashlib.sha256(whole.encode()).hexdigest()
    return Text(numbers[:cut], numbers[cut:], alphabet, digest)


def reading(
    config: Config,
    runner: Runner,
    network: Network,
    cost: Cost,
    keys: Key,
    text: Text,
    updates: int,
    batch_size: int,
) -> tuple[Params, np.ndarray, list[dict[str, Any]]]:
    """Trained parameters, bits per held-out character `[seeds]`, and the rows that were logged."""
    (steps,), train = network.shape, jnp.asarray(text.train)

    def windows(key: Key) -> Batch:
        starts = jax.random.randint(key, (batch_size,), 0, len(train) - steps)
        chosen = train[starts[:, None] + jnp.arange(steps + 1)]
        return Batch(chosen[:, :-1], chosen[:, 1:])

    held_out = held_out_bits(network)
    carry, step = learner(config, network, cost, keys, updates)
    carry, _, rows = runner.repeat(
        loops.over_seeds(loops.step_scan(step, windows)),
        carry,
        (keys[:, 2],),
        total=updates,
        every=max(updates // 20, 1),
        measure=lambda carry: {"bits": held_out(carry.params, text.held, 5)},
        params=lambda carry: carry.params,
        name="text",
    )
    with runner.clock("evaluate"):
        return carry.params, held_out(carry.params, text.held), rows


def held_out_bits(network: Network) -> Callable[..., np.ndarray]:
    """(params, text, every=1) -> mean −log₂ p(character | those before), `[seeds]`.

    Windows overlap by half: each character but the first is foretold once, from half a window of
    text or more (those of the first half window from all there is). With `every` = k only those of
    every kth window are.
    """
    (steps,), half = network.shape, network.shape[0] // 2

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None, None, None))
    def nats(params: Params, x: Array, y: Array, counts: Array) -> Array:
        each = log_softmax(network.layer.forward(params, x)[0])
        taken = jnp.take_along_axis(each, y[..., None], axis=-1)[..., 0]
        return -jnp.sum(jnp.where(counts, taken, 0.0))

    def bits(params: Params, held: np.ndarray, every: int = 1) -> np.ndarray:
        own = np.arange(0, len(held) - 1, half)[::every]
        starts = np.resize(own, len(own) + -len(own) % 100)  # whole chunks: the last one repeats
        again = np.arange(len(starts)) >= len(own)
        padded = np.concatenate([held, np.zeros(steps + 1, held.dtype)])
        chosen = padded[starts[:, None] + np.arange(steps + 1)]
        place = starts[:, None] + np.arange(1, steps + 1)
        fresh = (np.arange(steps) >= half) | (starts[:, None] == 0)
        counts = (place < len(held)) & fresh & ~again[:, None]
        total = 0.0
        for i in range(0, len(chosen), 100):
            part = chosen[i : i + 100]
            total += np.asarray(nats(params, part[:, :-1], part[:, 1:], counts[i : i + 100]))
        return total / counts.sum() / math.log(2)

    return bits


def interpolated_bits(train: list[int], held: list[int], symbols: int, order: int = 5) -> float:
    """Bits per character of an n-gram model, its orders interpolated by Witten and Bell's rule.

        p(a | c) = ( N(c a) + T(c) p(a | c′) ) / ( N(c) + T(c) )

    N counts in `train`, T(c) is how many different characters followed c there, c′ is c without its
    first character; below the empty context all symbols are equally likely.

    Source: Witten & Bell 1991, The zero-frequency problem.
    """
    seen: list[Counter] = [Counter() for _ in range(order)]
    for k in range(order):
        for i in range(k, len(train)):
            seen[k][tuple(train[i - k : i + 1])] += 1
    times: list[Counter] = [Counter() for _ in range(order)]
    kinds: list[Counter] = [Counter() for _ in range(order)]
    for k, counts in enumerate(seen):
        for gram, count in counts.items():
            times[k][gram[:-1]] += count
            kinds[k][gram[:-1]] += 1
    whole, total = train[-order:] + held, 0.0
    for i in range(order + 1, len(whole)):
        p = 1.0 / symbols
        for k in range(order):
            context = tuple(whole[i - k : i])
            if times[k][context]:
                both = times[k][context] + kinds[k][context]
                p = (seen[k][(*context, whole[i])] + kinds[k][context] * p) / both
        total -= math.log2(p)
    return total / (len(held) - 1)


def written(network: Network, params: Params, text: Text, key: Key, length: int) -> str:
    """Characters drawn one by one from the net, after the held-out text's first window."""
    (steps,) = network.shape

    def one(window: Array, key: Key) -> tuple[Array, Array]:
        logits = network.layer.forward(params, window[None])[0][0, -1]
        drawn = jax.random.categorical(key, logits).astype(window.dtype)
        return jnp.concatenate([window[1:], drawn[None]]), drawn

    start = jnp.asarray(text.held[:steps])
    _, drawn = jax.jit(lambda s: jax.lax.scan(one, s, jax.random.split(key, length)))(start)
    shown = text.alphabet + "�"
    return "".join(shown[min(i, len(text.alphabet))] for i in np.asarray(drawn))


def draw(curves: dict[str, list[dict[str, Any]]], baseline: float, sample: str) -> Figure:
    """Both learning curves, seeds as bands, and the beginning of a sample."""
    figure = Figure(figsize=(9, 6.4), layout="constrained")
    grid = figure.add_gridspec(2, 2, height_ratios=[1.25, 1])
    left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
    for name, label, colour in (
        ("copy", "Transformer", OURS),
        ("copy_without_attention", "without attention", CONTROL),
    ):
        _band(left, curves[name], f"{name}_accuracy", label, colour)
    left.set(xlabel="update", ylabel="copied symbols foretold", ylim=(0, 1.05))
    left.set_title("copy: attention alone can", fontsize=10)
    left.legend(frameon=False, fontsize=9, loc="center right")
    _band(right, curves["text"], "text_bits", "Transformer, median and range of seeds", OURS)
    right.axhline(baseline, color=BASELINE, ls="--", lw=1.2, label="interpolated 5-gram")
    right.set(xlabel="update", ylabel="bits per held-out character")
    right.set_title("Python's help texts", fontsize=10)
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    below = figure.add_subplot(grid[1, :])
    below.axis("off")
    lines = [line[:96] for line in sample.splitlines() if line.strip()][:11]
    below.text(
        0, 1, "\n".join(["drawn from the trained net:", *lines]), va="top", family="monospace",
        fontsize=8.5, parse_math=False,
    )  # fmt: skip
    return figure


def _band(axes: Any, rows: list[dict[str, Any]], name: str, label: str, colour: str) -> None:
    steps, values = [row["step"] for row in rows], np.stack([row["values"][name] for row in rows])
    axes.fill_between(steps, values.min(1), values.max(1), color=colour, alpha=0.18, lw=0)
    axes.plot(steps, np.median(values, 1), color=colour, lw=2, label=label)
