"""One batch shared by several devices: a rule whose estimate runs on each device's part."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from bpeq.core import sharding, trees
from bpeq.rules._relaxing import Remembering
from bpeq.types import Batch, Estimate, Key, LearningRule, Params, PerExample, SolveInfo, State

WHOLE, PART = PartitionSpec(), PartitionSpec(sharding.AXIS)


def data_mesh(devices: int | Literal["all"] = "all") -> Mesh:
    """The first `devices` devices of all processes, as a mesh with one axis.

    Args:
      devices: number of devices, >= 1, or "all".

    Returns:
      The mesh.

    Raises:
      ValueError: there are fewer devices.
    """
    there = jax.device_count()
    wanted = there if devices == "all" else devices
    if not 1 <= wanted <= there:
        kind = jax.devices()[0].platform
        raise ValueError(f"must be 1 to {there}, the {kind} devices there are, or 'all'")
    axis, auto = (wanted,), (AxisType.Auto,)  # Explicit axes refuse x.T @ s over a split batch
    return jax.make_mesh(axis, (sharding.AXIS,), axis_types=auto, devices=jax.devices()[:wanted])


def data_parallel(rule: LearningRule, devices: Mesh | int | Literal["all"] = "all") -> LearningRule:
    """The same rule, with each batch shared by several devices.

    Each device gets all weights and an equal part of the batch, and makes its own estimate. The
    mean of these estimates is that of the batch, since gradients and losses are means over
    examples. It takes one all-reduce after the estimate. Phases relax on each device as long as its
    own examples need. Values that couple examples are computed over all parts: the statistics of
    batch norm, the β of "auto", the moving weights of `continual_eqprop`. The random numbers are
    those of one device. So the result is that of one device, up to the order of sums.

    `Estimate` declares which records are means and which are per example. A rule of your own wraps
    its own per-example records in `types.PerExample`. If it couples examples or draws random
    numbers for each example, it must use the functions of `bpeq.sharding`.

    `apply` without a key is shared too. With a key layers may draw random numbers; then every
    device computes the whole batch.

    Args:
      rule: any rule.
      devices: number of devices, "all", or a mesh with one axis named "data".

    Returns:
      A LearningRule.

    Raises:
      ValueError: there are fewer devices. From `estimate`: the batch does not divide by the number
        of devices.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense
      >>> from bpeq.rules import backprop
      >>> from bpeq.types import Batch
      >>> network = chain(dense(1))
      >>> params, _ = network.init(jax.random.key(0), (2,))
      >>> rule = backprop(network, squared_error())
      >>> batch = Batch(jnp.ones((4, 2)), jnp.ones((4, 1)))
      >>> alone = rule.estimate(params, batch, (), jax.random.key(1))[0]
      >>> shared = data_parallel(rule, 1).estimate(params, batch, (), jax.random.key(1))[0]
      >>> bool(alone.loss == shared.loss)
      True
    """
    mesh = data_mesh(devices) if isinstance(devices, int | str) else devices
    split = partial(jax.shard_map, mesh=mesh, check_vma=False)

    def apply(params: Params, x: Array, key: Key | None = None) -> Array:
        if key is not None:
            return rule.apply(params, x, key)
        filled = jnp.concatenate([x, jnp.broadcast_to(x[:1], (-len(x) % mesh.size, *x.shape[1:]))])
        each = split(lambda p, x: rule.apply(p, x), in_specs=(WHOLE, PART), out_specs=PART)
        return each(params, filled)[: len(x)]

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        if len(batch.x) % mesh.size:
            raise ValueError(
                f"{rule.name}: a batch of {len(batch.x)} examples: must be a multiple of "
                f"{mesh.size}, the devices that share it"
            )
        shapes, _ = jax.eval_shape(rule.estimate, params, batch, state, key)
        axes = _batch_axes(shapes)

        def on_part(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
            estimate, after = rule.estimate(params, batch, state, key)
            return _averaged(estimate, axes), _agreed(state, after)

        specs = jax.tree.map(
            lambda a: PartitionSpec(*[None] * a, sharding.AXIS) if a >= 0 else WHOLE, axes
        )
        each = split(on_part, in_specs=(WHOLE, PART, WHOLE, WHOLE), out_specs=(specs, WHOLE))
        return each(params, batch, state, key)

    return rule._replace(apply=apply, estimate=estimate)


def across(
    mesh: Mesh | None, rule: LearningRule
) -> tuple[LearningRule, Callable[[Any], Any], NamedSharding | None]:
    """The rule, copy function and placing of a loop that runs on the devices of a mesh.

    Args:
      mesh: the devices; None: one device, and nothing changes.
      rule: the rule of the loop.

    Returns:
      (rule, copy, placing). copy puts a tree of arrays on all devices, the same on each; every
      process must have the same values. placing is the sharding of such a tree, or None.
    """
    if mesh is None:
        return rule, lambda tree: tree, None
    placing = NamedSharding(mesh, WHOLE)
    return data_parallel(rule, mesh), jax.jit(lambda tree: tree, out_shardings=placing), placing


def _batch_axes(estimate: Estimate) -> Estimate:
    """The batch axis of each leaf of an estimate, as its types declare it; -1 for a mean."""

    def record(node: Any) -> Any:
        if isinstance(node, SolveInfo):
            last = node.steps.ndim - 1
            path = jax.tree.map(lambda leaf: last + 1, node.trajectory)  # after the axis of steps
            return jax.tree.map(lambda leaf: last, node)._replace(trajectory=path)
        return jax.tree.map(lambda leaf: 0 if isinstance(node, PerExample) else -1, node)

    def is_record(node: Any) -> bool:
        return isinstance(node, SolveInfo | PerExample)

    axes: Any = jax.tree.map(record, estimate, is_leaf=is_record)
    return axes._replace(output=0)


def _averaged(made: Estimate, axes: Estimate) -> Estimate:
    """The estimate with its means averaged over the parts, in one all-reduce."""
    pairs = zip(jax.tree.leaves(made), jax.tree.leaves(axes), strict=True)
    is_mean = [axis < 0 and jnp.issubdtype(leaf.dtype, jnp.inexact) for leaf, axis in pairs]
    return trees.fill(made, is_mean, sharding.mean(trees.pick(made, is_mean)))


def _agreed(before: State, after: State) -> State:
    """The new state of a rule, the same on all parts: the old state plus the mean change.

    The memory of earlier phases is the same on all parts already.
    """
    if isinstance(after, Remembering):
        return after._replace(rule=_agreed(before.rule, after.rule))

    def agree(old: Array, new: Array) -> Array:
        if new is old or not jnp.issubdtype(new.dtype, jnp.inexact):
            return new
        bounded = jnp.isfinite(old)  # a state may start at infinity, where a change has no meaning
        change = sharding.mean(jnp.where(bounded, new - old, new))
        return jnp.where(bounded, old + change, change)

    return jax.tree.map(agree, before, after)
