"""Optax optimizers under their usual names, with schedules and rates per layer.

An optimizer here is an optax optimizer. `with_rates` multiplies its updates. This equals another
learning rate, since every update is linear in the rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bpeq.core import trees
from bpeq.layers import cut
from bpeq.settings import Count, Fraction, NonNegative, Positive, SettingError, checked
from bpeq.types import Layer, Params, Schedule


@checked
def sgd(learning_rate: Positive) -> optax.GradientTransformation:
    """Gradient descent: θ ← θ − η g.

    Args:
      learning_rate: η, > 0.

    Returns:
      The optax optimizer.

    Raises:
      ValueError: a setting is out of range.

    Source: Robbins & Monro 1951, A stochastic approximation method.
    """
    return optax.sgd(learning_rate)


@checked
def momentum(
    learning_rate: Positive, *, momentum: Fraction = 0.9, nesterov: bool = False
) -> optax.GradientTransformation:
    """Gradient descent with momentum: v ← μ v + g; θ ← θ − η v.

    Args:
      learning_rate: η, > 0.
      momentum: μ, in [0, 1).
      nesterov: whether to use Nesterov's form, θ ← θ − η (g + μ v).

    Returns:
      The optax optimizer.

    Raises:
      ValueError: a setting is out of range.

    Source: Polyak 1964, Some methods of speeding up the convergence of iteration methods; Sutskever
    et al. 2013, On the importance of initialization and momentum in deep learning.
    """
    return optax.sgd(learning_rate, momentum=momentum, nesterov=nesterov)


@checked
def rmsprop(
    learning_rate: Positive,
    *,
    decay: Fraction = 0.9,
    eps: Positive = 1e-8,
    eps_in_sqrt: bool = True,
) -> optax.GradientTransformation:
    """RMSProp: v ← γ v + (1−γ) g²; θ ← θ − η g / √(v + ε).

    Args:
      learning_rate: η, > 0.
      decay: γ, in [0, 1).
      eps: ε > 0, in units of g².
      eps_in_sqrt: whether ε is inside the root. False puts it outside, as PyTorch and Keras do; its
        unit is then that of g.

    Returns:
      The optax optimizer.

    Raises:
      ValueError: a setting is out of range.

    Source: Tieleman & Hinton 2012, Lecture 6.5.
    """
    return optax.rmsprop(learning_rate, decay=decay, eps=eps, eps_in_sqrt=eps_in_sqrt)


@checked
def adam(
    learning_rate: Positive, *, b1: Fraction = 0.9, b2: Fraction = 0.999, eps: Positive = 1e-8
) -> optax.GradientTransformation:
    """Adam: θ ← θ − η m̂ / (√v̂ + ε), with bias-corrected running means m̂ of g and v̂ of g².

    Args:
      learning_rate: η, > 0.
      b1: decay rate of the running mean of g, in [0, 1).
      b2: decay rate of the running mean of g², in [0, 1).
      eps: ε > 0, in units of g.

    Returns:
      The optax optimizer.

    Raises:
      ValueError: a setting is out of range.

    Source: Kingma & Ba 2015, Adam: a method for stochastic optimization.
    """
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


@checked
def adamw(
    learning_rate: Positive,
    *,
    b1: Fraction = 0.9,
    b2: Fraction = 0.999,
    eps: Positive = 1e-8,
    weight_decay: NonNegative = 1e-4,
) -> optax.GradientTransformation:
    """Adam with decoupled decay: θ ← θ − η (m̂ / (√v̂ + ε) + λ θ).

    Args:
      learning_rate: η, > 0.
      b1: decay rate of the running mean of g, in [0, 1).
      b2: decay rate of the running mean of g², in [0, 1).
      eps: ε > 0, in units of g.
      weight_decay: λ >= 0. It acts on every trained leaf, biases included.

    Returns:
      The optax optimizer.

    Raises:
      ValueError: a setting is out of range.

    Source: Loshchilov & Hutter 2019, Decoupled weight decay regularization.
    """
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def constant() -> Schedule:
    """A schedule with factor 1 at all times.

    Returns:
      progress -> factor on the learning rate.
    """
    return jnp.ones_like


@checked
def cosine(*, warmup: Fraction = 0.0, final: NonNegative = 0.0) -> Schedule:
    """A schedule that rises linearly from 0 to 1, then falls as half a cosine.

        f = final + (1 − final) ½ (1 + cos(π r)),  r the progress after the warm-up, 0 to 1

    Args:
      warmup: fraction of the run in which the factor rises, in [0, 1).
      final: the factor at the end of the run, >= 0.

    Returns:
      progress -> factor on the learning rate.

    Raises:
      ValueError: a setting is out of range.

    Source: Loshchilov & Hutter 2017, SGDR: stochastic gradient descent with warm restarts.
    """

    def fall(rest: Array) -> Array:
        return final + (1.0 - final) * 0.5 * (1.0 + jnp.cos(jnp.pi * rest))

    return _warmed(warmup, fall)


@checked
def linear_decay(*, warmup: Fraction = 0.0, final: NonNegative = 0.0) -> Schedule:
    """A schedule that rises linearly from 0 to 1, then falls linearly.

        f = 1 + (final − 1) r,  r the progress after the warm-up, 0 to 1

    Args:
      warmup: fraction of the run in which the factor rises, in [0, 1).
      final: the factor at the end of the run, >= 0.

    Returns:
      progress -> factor on the learning rate.

    Raises:
      ValueError: a setting is out of range.
    """

    return _warmed(warmup, lambda rest: 1.0 + (final - 1.0) * rest)


@checked
def exponential(*, final: Positive = 0.01) -> Schedule:
    """A schedule that falls from 1 by the same ratio in every step: final^progress.

    Args:
      final: the factor at the end of the run, > 0.

    Returns:
      progress -> factor on the learning rate.

    Raises:
      ValueError: a setting is out of range.
    """
    return lambda progress: final**progress


def _warmed(warmup: float, fall: Schedule) -> Schedule:
    """Linear from 0 to 1 over the fraction `warmup`, then `fall` of the progress in the rest."""

    def factor(progress: Array) -> Array:
        rest = jnp.clip((progress - warmup) / (1.0 - warmup), 0.0, 1.0)
        return jnp.where(progress < warmup, progress / max(warmup, 1e-12), fall(rest))

    return factor


@checked
def with_rates(
    optimizer: optax.GradientTransformation,
    *,
    learning_rate: Positive,
    total_steps: Count,
    schedule: Schedule | None = None,
    layer_rates: Sequence[float] | None = None,
    network: Layer | None = None,
    clip_norm: Positive | None = None,
) -> optax.GradientTransformation:
    """An optimizer whose rate follows a schedule and may differ between the blocks of a network.

        update = optimizer's update · schedule(step / total_steps) · layer_rate / learning_rate

    Args:
      optimizer: built with `learning_rate`.
      learning_rate: its rate, > 0; `layer_rates` are relative to it.
      total_steps: number of updates in the whole run, >= 1. The schedule's progress is 1 there.
      schedule: factor on every rate; None: constant.
      layer_rates: one absolute rate >= 0 for each block of `layers.cut(network)`, input first; 0
        freezes the block. A skip has the rate of the block that it drives. Feedback weights have
        the rate of the block of their forward weights. None: `learning_rate` for all.
      network: the network with those blocks; needed for `layer_rates` only.
      clip_norm: the largest global norm of the gradients, > 0; larger gradients are scaled down to
        it first. Gradients that are all zero stay zero. None: no clipping.

    Returns:
      The optax optimizer.

    Raises:
      ValueError: a setting is out of range, the number of rates is not the number of blocks, or
        rates come without a network.

    Example:
      >>> import jax.numpy as jnp, optax
      >>> rule = with_rates(sgd(1.0), learning_rate=1.0, total_steps=2, schedule=linear_decay())
      >>> state = rule.init(jnp.zeros(()))
      >>> first, state = rule.update(jnp.ones(()), state)
      >>> second, state = rule.update(jnp.ones(()), state)
      >>> float(first), float(second)
      (-1.0, -0.5)
    """
    parts = [optimizer]
    if clip_norm is not None:
        parts.insert(0, optax.clip_by_global_norm(clip_norm))
    if schedule is not None:
        follow = schedule

        def factor(count: Any) -> Array:
            return follow(jnp.asarray(count, jnp.result_type(float)) / total_steps)

        parts.append(optax.scale_by_schedule(factor))
    if layer_rates is not None:
        if network is None:
            remedy = "needs a network of layers to count its blocks"
            raise SettingError("with_rates", "layer_rates", layer_rates, remedy)
        ratios = [rate / learning_rate for rate in layer_rates]
        own, named = _ratios(network, ratios)
        parts.append(optax.stateless(lambda updates, params: _scaled(updates, own, named)))
    return optax.chain(*parts) if len(parts) > 1 else optimizer


def apply_updates(
    params: Params, updates: Params, trained: Callable[[Params], Any] | None = None
) -> Params:
    """θ + Δθ for the leaves that are trained; the others stay as they are.

    Args:
      params: θ.
      updates: Δθ, as optax gives them.
      trained: the `trained` of a layer or a rule; None: all leaves are trained.

    Returns:
      A tree like params.

    Example:
      >>> import jax.numpy as jnp
      >>> moved = apply_updates({"w": 1.0, "mean": 1.0}, {"w": -0.5, "mean": -0.5},
      ...                       lambda params: {"w": True, "mean": False})
      >>> float(moved["w"]), moved["mean"]
      (0.5, 1.0)
    """
    moved = optax.apply_updates(params, updates)
    if trained is None:
        return moved
    return jax.tree.map(lambda t, new, old: new if t else old, trained(params), moved, params)


def _ratios(network: Layer, per_block: Sequence[float]) -> tuple[list[float], dict[str, float]]:
    """Ratios by entry of the network's params; and by connection: `dense_2`, `0_2` for a skip."""
    blocks = cut(network)
    if len(per_block) != len(blocks):
        names = ", ".join(block.name for block in blocks)
        raise ValueError(
            f"layer_rates: {len(per_block)} rates, the network has {len(blocks)} blocks: {names}"
        )
    ratios = [1.0] * len(network.parts)
    named: dict[str, float] = {}
    for target, (block, ratio) in enumerate(zip(blocks, per_block, strict=True), start=1):
        ratios[block.slice] = [ratio] * (block.slice.stop - block.slice.start)
        named |= dict.fromkeys([block.name, *(f"{i}_{target}" for i in range(target))], ratio)
    return ratios, named


def _scaled(updates: Params, ratios: Sequence[float], named: Mapping[str, float]) -> Any:
    """Updates times the ratio of their block, also for skips and feedback weights."""
    own = [trees.scale(c, part) for c, part in zip(ratios, updates, strict=False)]
    return (*own, *(_appended(entry, ratios, named) for entry in updates[len(own) :]))


def _appended(entry: Any, ratios: Sequence[float], named: Mapping[str, float]) -> Any:
    """An entry after the network's own, scaled: {"skips": …} or {"feedback": …}; others unchanged.

    The tree in it is a dict by connection, or a tuple that mirrors the network's params.
    """
    kind = next(iter(entry), "") if isinstance(entry, dict) else ""
    if kind not in ("skips", "feedback"):
        return entry
    tree = entry[kind]
    if isinstance(tree, dict):
        return {kind: {k: trees.scale(named.get(k, 1.0), part) for k, part in tree.items()}}
    return {kind: tuple(trees.scale(c, part) for c, part in zip(ratios, tree, strict=True))}
