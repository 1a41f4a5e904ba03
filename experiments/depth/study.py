"""Depth: how errors vanish and explode from layer to layer, and what helps against it.

At initialisation the error ∂C/∂h of every hidden layer is measured, and set beside mean-field
theory; then every network is trained by four optimizers.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from annotated_types import Ge
from jax import lax
from jaxtyping import Array, Float, Int
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from bpeq import optimizers
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy
from bpeq.data import Dataset
from bpeq.experiment import Config, Runner, build_networks, seed_keys
from bpeq.layers import chain, repeat
from bpeq.rules import backprop
from bpeq.settings import Count, Positive
from bpeq.training import evaluation
from bpeq.training.loops import Carry, Loop, Metrics, apply_estimate, over_seeds
from bpeq.types import Batch, Key, Layer, LearningRule, Params, Shape, Step

Depth = Annotated[int, Ge(3)]
BatchSize = Annotated[int, Ge(2)]
Optimizers = dict[str, optax.GradientTransformation]
Learned = tuple[dict[str, np.ndarray], dict[str, np.ndarray]]
"""Of each optimizer: test errors `[seeds]`; losses, means of every few updates, `[rows, seeds]`."""

DEPTHS = [3, 20, 50]
CLIPPED = ("relu_residual_20", "relu_batch_norm_50")
"""Errors explode in these: they are trained with clipped gradients as well."""
LOOKED_AT = 256
"""Training images at which errors are measured."""
OTHER_RATES = ("sigmoid_20",)
"""These learn nothing: they are trained at ten times smaller and larger rates as well."""
SMOKE = ("sigmoid", "relu_batch_norm", "relu_residual")
COLOURS = {
    "": "#1d2733",
    "batch_norm": "#d55e00",
    "layer_norm": "#a8508c",
    "residual": "#e0a400",
    "residual_batch_norm": "#0072b2",
}


def run(
    config: Config,
    runner: Runner,
    *,
    depths: list[Depth] = DEPTHS,
    steps: Count = 400,
    batch_size: BatchSize = 64,
    inits: Count = 32,
    sgd: Positive = 0.1,
    momentum: Positive = 0.02,
    rmsprop: Positive = 0.001,
    adam: Positive = 0.001,
    clip_norm: Positive = 1.0,
    smoke: bool = False,
) -> dict[str, Any]:
    """Leaves gradients.png and training.png. Metrics, for each network NAME of the config:

    `gradient_factor_NAME` `[inits]`, by what ∂C/∂h grows a layer on its way down, at initialisation
    and the last of `depths`, and `mean_field_NAME`, by what it should; `weight_factor_NAME`, the
    same of ∂C/∂w; `spread_NAME_D` `[inits]`, by what the last hidden layer differs between
    examples; `test_error_NAME_D_OPTIMIZER` `[seeds]`.

    Args:
      depths: hidden layers; a network's `repeat(block, n)` gets n = depth − 1.
      steps, batch_size: updates, and examples an update.
      inits: initialisations over which the errors are measured; the first are trained.
      sgd, momentum, rmsprop, adam: learning rates.
      clip_norm: the global norm that clipped gradients keep to.
      smoke: a few networks and initialisations, and 40 updates, for the tests.
    """
    if not depths:
        raise config.error("study.depths", depths, "must be one or more")
    data: Dataset = config.build(config.data)
    if data.task != "classification":
        raise config.error("data.name", data.name, "is no classification")
    classes = (None, (int(data.y.max()) + 1,))
    built = build_networks(config, dict.fromkeys(config.networks or ["relu"], classes))
    nets = {name: net.layer for name, net in built.items()}
    for name, net in nets.items():
        if sum(part.name == "repeat" for part in net.parts) != 1:
            layers = config.networks[name].as_dict()["layers"]
            raise config.error(f"networks.{name}.layers", layers, "must have one repeat(block, n)")
    if smoke:
        steps, inits, depths = min(steps, 40), min(inits, 8), depths[:2]
        nets = {name: net for name, net in nets.items() if name in SMOKE}
    x, y = jnp.asarray(data.x), jnp.asarray(data.y)
    chosen = np.random.default_rng(config.seed).choice(data.train[0], LOOKED_AT)
    batch = Batch(x[chosen], y[chosen])
    keys = seed_keys(config.seed, max(inits, config.seeds))[:, 0]
    found: dict[tuple[str, int], Profile] = {}
    begun: dict[str, Params] = {}
    for name, net in nets.items():
        for depth in depths:
            own = deepened(net, depth)
            with runner.clock("evaluate"):
                params = jax.jit(jax.vmap(partial(initial, own, x.shape[1:])))(keys)
                look = jax.jit(jax.vmap(partial(profile, own, batch)))
                found[name, depth] = jax.device_get(look(params, keys))
            begun[f"{name}_{depth}"] = jax.tree.map(lambda leaf: leaf[: config.seeds], params)
    theory = {(name, d): mean_field(nets[name], batch.x, d) for name, d in found}
    metrics: dict[str, Any] = {f"spread_{name}_{d}": p.spread for (name, d), p in found.items()}
    for name in nets:
        deepest = found[name, depths[-1]]
        metrics[f"gradient_factor_{name}"] = factor(deepest.errors)
        metrics[f"weight_factor_{name}"] = factor(deepest.weights)
        metrics[f"mean_field_{name}"] = np.exp(np.log(theory[name, depths[-1]]).mean())
    draw_errors(found, theory).savefig(runner.folder / "gradients.png", dpi=100)

    rates = {"sgd": sgd, "momentum": momentum, "rmsprop": rmsprop, "adam": adam}
    learn = Learner(config, runner, data, x, y, steps, batch_size)
    learned: dict[str, Learned] = {}
    for place, net in {f"{n}_{d}": deepened(nets[n], d) for n in nets for d in depths}.items():
        ways = {"": at_rates(rates)}
        if place in CLIPPED:
            ways["_clipped"] = at_rates(rates, clip_norm)
        if place in OTHER_RATES:
            ways["_slower"] = at_rates({k: rate / 10 for k, rate in rates.items()})
            ways["_faster"] = at_rates({k: rate * 10 for k, rate in rates.items()})
        for ending, own in ways.items():
            learned[place + ending] = learn(place + ending, net, begun[place], own)
    for place, (errors, _) in learned.items():
        metrics |= {f"test_error_{place}_{name}": values for name, values in errors.items()}
    draw_learned(learned, list(nets), depths, steps).savefig(
        runner.folder / "training.png", dpi=100
    )
    return metrics


def deepened(net: Layer, depth: int) -> Layer:
    """The network with `depth` hidden layers: its first one, and depth − 1 copies of its block."""
    return chain(*(repeat(p.parts[0], depth - 1) if p.name == "repeat" else p for p in net.parts))


def place_of_repeat(net: Layer) -> int:
    return next(i for i, part in enumerate(net.parts) if part.name == "repeat")


# --- at initialisation -----------------------------------------------------------------------


class Profile(NamedTuple):
    """errors: ‖∂C/∂h_l‖, root mean square over examples, h_l the output of hidden layer l (of its
    block, where there are skips), `[L]`; weights: ‖∂C/∂w_l‖ of layers 2 to L, `[L − 1]`; spread:
    standard deviation of h_L over examples, relative to its root mean square."""

    errors: Array
    weights: Array
    spread: Array


def initial(net: Layer, shape: Shape, key: Key) -> Params:
    return net.init(key, shape)[0]


def profile(net: Layer, batch: Batch, params: Params, key: Key) -> Profile:
    """One initialisation looked at by the layers' own backward passes, block by block."""
    outputs, residuals, at = [batch.x], [], place_of_repeat(net)
    for part, own in zip(net.parts, params, strict=True):
        y, kept = part.forward(own, outputs[-1], key)
        outputs.append(y)
        residuals.append(kept)
    h, delta = outputs[at + 1], softmax_cross_entropy().error(outputs[-1], batch.y)
    for i in range(len(net.parts) - 1, at, -1):
        _, delta = net.parts[i].backward(params[i], params[i], residuals[i], delta)
    block = net.parts[at].parts[0]

    def back(delta: Array, own: Any) -> tuple[Array, Any]:
        dparams, dx = block.backward(own[0], own[0], own[1], delta)
        dw = next(leaf for leaf in jax.tree.leaves(dparams) if leaf.ndim == 2)
        return dx, (norm(dx) / len(dx) ** 0.5, norm(dw))

    top = norm(delta) / len(delta) ** 0.5
    _, (errors, weights) = lax.scan(back, delta, (params[at], residuals[at]), reverse=True)
    spread = jnp.sqrt(jnp.mean(jnp.var(h, axis=0)) / jnp.mean(h * h))
    return Profile(jnp.append(errors, top), weights, spread)


def norm(a: Array) -> Array:
    """The 2-norm, where squares may be too small or too large for float32."""
    most = jnp.maximum(jnp.max(jnp.abs(a)), jnp.finfo(a.dtype).tiny)
    return most * jnp.sqrt(jnp.sum((a / most) ** 2))


def factor(norms: Float[np.ndarray, "inits layers"]) -> Float[np.ndarray, " inits"]:
    """Geometric mean over the layers of norm_l / norm_(l+1)."""
    return (norms[:, 0] / norms[:, -1]) ** (1 / (norms.shape[1] - 1))


def mean_field(net: Layer, x: Array, depth: int) -> Float[np.ndarray, " blocks"]:
    """By what ∂C/∂h grows in each of depth − 1 blocks of infinite width, the first one first.

    With weights of variance g/fan_in, z Gaussian, φ' independent of the errors, and means E over z
    of variance q (1 after a norm):

        φ(w h)          g E[φ'²]                    q ← g E[φ²]
        φ(norm(w h))    E[φ'²] / v                  v = E[φ²], or var φ under batch norm
        h + w φ(norm h) 1 + g E[φ'²] / q            q ← q + g E[φ²], or q + g var φ

    and no division by q without a norm. Under batch norm the examples of a batch are taken to be
    as unlike each other as they can be, which is where its layers lead.

    Source: Schoenholz et al. 2017, Deep information propagation; Yang & Schoenholz 2017, Mean field
    residual networks; Yang et al. 2019, A mean field theory of batch normalization.
    """
    block = net.parts[place_of_repeat(net)].parts[0]
    images = x.reshape(len(x), -1)
    first = next(part for part in net.parts if part.name == "dense")
    w = first.init(jax.random.key(0), images.shape[1:])[0]["w"]
    parts = block.parts[0].parts if block.name == "residual" else block.parts
    norms = [part.name for part in parts if part.name.endswith("_norm")]
    phi = next(part.activation for part in parts if part.activation is not None)
    g = round(float(w.shape[0] * jnp.mean(w**2)))
    nodes = np.linspace(-9.0, 9.0, 2000)  # an even number: none on a kink at 0
    weights = np.exp(-0.5 * nodes**2)

    def mean(f: Callable[[Array], Array], q: float) -> float:
        return float(weights @ np.asarray(f(jnp.asarray(nodes) * q**0.5), float) / weights.sum())

    def out(q: float) -> float:
        q = 1.0 if norms else q
        removed = mean(phi.value, q) ** 2 if "batch_norm" in norms else 0.0
        return g * (mean(lambda z: phi.value(z) ** 2, q) - removed)

    size = g * float(jnp.mean(jnp.var(images, 0) if "batch_norm" in norms else images**2))
    factors = []
    for _ in range(depth - 1):
        before = size
        size = out(size) + (before if block.name == "residual" else 0.0)
        now = before if block.name == "residual" else size
        slope = g * mean(lambda z: phi.slope(z) ** 2, 1.0 if norms else now)
        slope /= now if norms else 1.0
        factors.append((slope + 1.0 if block.name == "residual" else slope) ** 0.5)
    return np.array(factors)


# --- training --------------------------------------------------------------------------------


def at_rates(rates: dict[str, float], clip_norm: float | None = None) -> Optimizers:
    """The four optimizers, after clipping to a global norm where one is given."""
    made = {name: getattr(optimizers, name)(rate) for name, rate in rates.items()}
    if clip_norm is None:
        return made
    clip = optax.clip_by_global_norm(clip_norm)
    return {name: optax.chain(clip, own) for name, own in made.items()}


class Learner(NamedTuple):
    """Trains a network by several optimizers side by side, every seed of each."""

    config: Config
    runner: Runner
    data: Dataset
    x: Array
    y: Array
    steps: int
    batch_size: int

    def __call__(self, place: str, net: Layer, params: Params, ways: Optimizers) -> Learned:
        rule = backprop(net, softmax_cross_entropy())
        keys = seed_keys(self.config.seed, self.config.seeds)
        states = tuple(jax.vmap(way.init)(params) for way in ways.values())
        carry = Carry(jax.tree.map(partial(each, len(ways)), params), states, ())
        rows = jax.vmap(lambda k: jax.random.randint(k, self.shape, 0, self.data.train.shape[1]))
        carry, _, logged = self.runner.repeat(
            over_seeds(batch_scan(side_by_side(rule, ways))),
            carry,
            (self.x, self.y, jnp.asarray(self.data.train[0])[rows(keys[:, 1])], keys[:, 2]),
            total=self.steps,
            every=20,
            name=place,
            may_diverge=True,
        )
        score = evaluation.evaluator(rule, softmax_cross_entropy(), "classification")
        test = jnp.asarray(self.data.test[0])
        score = jax.vmap(jax.vmap(score, (0, None, None, None)), (0, None, None, None))
        with self.runner.clock("evaluate"):
            errors = jax.device_get(jax.jit(score)(carry.params, self.x, self.y, test)["error"])
        losses = {k: np.array([row["values"][f"{place}_{k}_loss"] for row in logged]) for k in ways}
        return dict(zip(ways, errors.T, strict=True)), losses

    @property
    def shape(self) -> tuple[int, int]:
        return self.steps, self.batch_size


def each(count: int, leaf: Array) -> Array:
    """`[seeds, ...]` to `[seeds, count, ...]`."""
    return jnp.repeat(leaf[:, None], count, axis=1)


def side_by_side(rule: LearningRule, ways: Optimizers) -> Step:
    """`supervised` for several optimizers, each with weights of its own, on the same batches.

    The carry's params have one more axis, the optimizers'; its optimizer states are a tuple.
    """

    def step(carry: Carry, batch: Batch, key: Key) -> tuple[Carry, Metrics]:
        estimate = jax.vmap(lambda p: rule.estimate(p, batch, (), key)[0])(carry.params)
        params, states = [], []
        for i, (way, state) in enumerate(zip(ways.values(), carry.optimizer, strict=True)):
            own, made = jax.tree.map(lambda leaf, i=i: leaf[i], (carry.params, estimate))
            own, state = apply_estimate(rule, way, own, state, made)
            params.append(own)
            states.append(state)
        moved = trees.stack(params)
        losses = {f"{name}_loss": loss for name, loss in zip(ways, estimate.loss, strict=True)}
        return Carry(moved, tuple(states), ()), losses

    return step


def batch_scan(step: Step) -> Loop:
    """As `training.step_scan`, for batches whose rows `[steps, batch]` are drawn beforehand."""

    def run(
        carry: Any,
        x: Array,
        y: Array,
        rows: Int[Array, "steps b"],
        key: Key,
        first: Any,
        count: int,
    ) -> tuple[Any, Metrics]:
        def one(carry: Any, i: Array) -> tuple[Any, Metrics]:
            return step(carry, Batch(x[rows[i]], y[rows[i]]), jax.random.fold_in(key, i))

        carry, metrics = lax.scan(one, carry, first + jnp.arange(count))
        return carry, jax.tree.map(lambda m: m.mean(keepdims=True), metrics)

    return Loop(run, (0, None, None, 0, 0, None))


# --- pictures --------------------------------------------------------------------------------


def draw_errors(
    found: dict[tuple[str, int], Profile], theory: dict[tuple[str, int], np.ndarray]
) -> Figure:
    """One panel for each activation and depth, a line for each remedy, dashed what theory says."""
    depths = list(dict.fromkeys(depth for _, depth in found))
    bases = list(dict.fromkeys(name.partition("_")[0] for name, _ in found))
    figure = Figure(figsize=(11, 3.1 * len(bases) + 0.7), layout="constrained")
    panels = figure.subplots(len(bases), len(depths), sharey="row", squeeze=False)
    for (name, depth), at in found.items():
        base, _, remedy = name.partition("_")
        axes = panels[bases.index(base)][depths.index(depth)]
        ratio = at.errors / at.errors[:, -1:]
        median, layers = np.median(ratio, axis=0), np.arange(1, depth + 1)
        label = remedy.replace("_norm", " norm").replace("_", " + ") or "plain"
        line = {
            "color": COLOURS.get(remedy, "#5a6675"),
            "lw": 2,
            "marker": "o" if depth < 5 else None,
        }
        axes.plot(layers, median, label=label, **line)
        expected = np.append(np.cumprod(theory[name, depth][::-1])[::-1], 1.0)
        axes.plot(layers, expected, color=COLOURS.get(remedy, "#5a6675"), lw=1, ls=(0, (4, 3)))
        axes.set(yscale="log", xlabel="hidden layer, 1 at the input")
        axes.set_title(f"{base}, {depth} layers", fontsize=11)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e2e6eb", lw=0.8)
    for row in panels:
        row[0].set_ylabel("‖∂C/∂h‖, relative to\nthe last hidden layer")
    named = {line.get_label(): line for row in panels for line in row[0].lines[::2]}
    named |= {"mean-field theory": axes.plot([], [], color="#5a6675", lw=1, ls=(0, (4, 3)))[0]}
    figure.legend(named.values(), named, loc="outside upper center", ncols=6, frameon=False)
    return figure


def draw_learned(
    learned: dict[str, Learned], names: list[str], depths: list[int], steps: int
) -> Figure:
    """Test errors as a table; beside it losses with and without clipping."""
    ways = list(next(iter(learned.values()))[0])
    figure = Figure(figsize=(12, 1.6 + 0.36 * max(len(names), 9)), layout="constrained")
    table, *others = figure.subplot_mosaic(
        [["table", f"loss{i}"] for i in range(len(CLIPPED))], width_ratios=[2.3, 1]
    ).values()
    values = np.array(
        [[learned[f"{n}_{d}"][0][way].mean() for d in depths for way in ways] for n in names]
    )
    shades = LinearSegmentedColormap.from_list("shades", ["#f3f7fb", "#8fb8d8", "#1b4a72"])
    table.imshow(values, cmap=shades, vmin=0.0, vmax=1.0, aspect="auto")
    for (i, j), value in np.ndenumerate(values):
        ink = "white" if value > 0.6 else "#1d2733"
        table.text(j, i, f"{value:.1%}"[:-1], color=ink, ha="center", va="center", fontsize=8.5)
    table.set_yticks(range(len(names)), [name.replace("_", " ") for name in names], fontsize=9)
    table.set_xticks(range(values.shape[1]), ways * len(depths), rotation=55, ha="right")
    for i, depth in enumerate(depths):
        middle = (i + 0.5) * len(ways) - 0.5
        above = {"transform": table.get_xaxis_transform(), "ha": "center", "va": "bottom"}
        table.text(middle, 1.01, f"{depth} layers", fontsize=10, **above)
        table.axvline(i * len(ways) - 0.5, color="white", lw=4)
    table.set_title(
        f"test error in percent after {steps} updates (chance is 90)", pad=22, fontsize=11
    )
    table.spines[:].set_visible(False)
    table.tick_params(length=0)
    for axes, place in zip(others, CLIPPED, strict=True):
        plain, clipped, lost = learned.get(place), learned.get(f"{place}_clipped"), []
        for losses, style, said in ((plain, "--", ""), (clipped, "-", ", clipped")):
            for way, colour in zip(ways, ("#0072b2", "#d55e00", "#009e73", "#a8508c"), strict=True):
                if losses is not None:
                    curve = losses[1][way].mean(axis=1)
                    lost += [] if np.isfinite(curve[-1]) else [f"{way}{said}"]
                    at = np.arange(1, len(curve) + 1) * steps / len(curve)
                    axes.plot(at, curve, color=colour, ls=style, label=f"{way}{said}")
        axes.set(xlabel="update", ylabel="training loss")
        if lost:  # what explodes starts high too
            axes.set_yscale("log")
            axes.text(1, 0.97, f"not finite: {', '.join(lost)}", transform=axes.transAxes)
            axes.texts[-1].set(ha="right", va="top", fontsize=9, color="#5a6675")
        axes.set_title(place.replace("_", " ") + " layers", fontsize=11)
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = others[-1].get_legend_handles_labels()
    others[-1].legend(
        handles,
        labels,
        frameon=False,
        fontsize=8,
        ncols=2,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.22),
    )
    return figure
