"""Difference target propagation: learned inverses give targets; each layer learns to reach them."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import sharding, trees
from bpeq.layers import Block, cut, dense
from bpeq.rules._backprop import network_rule
from bpeq.rules._common import mean_loss, settings_init, traced_settings
from bpeq.settings import NonNegative, Positive, checked
from bpeq.systems._refusals import refuse_coupling
from bpeq.types import Batch, Cost, Estimate, Key, Layer, LearningRule, Params, State


@checked
def target_propagation(
    network: Layer, cost: Cost, *, step: Positive = 0.1, noise: NonNegative = 0.5
) -> LearningRule:
    """Difference target propagation: targets by learned inverses, no weight transport.

    With h_l = σ_l(f_l(h_{l−1})), h_0 = x, and for every block above the first an inverse
    g_l(h_l) = σ_{l−1}(h_l V_l + c_l),

        ĥ_L = h_L − η ∂C/∂h_L            ĥ_{l−1} = h_{l−1} + g_l(ĥ_l) − g_l(h_l)
        θ_l descends  (1/2η) ‖σ_l(f_l(h_{l−1})) − ĥ_l‖²,  h and ĥ held constant
        V_l, c_l descend  ½ ‖g_l(σ_l(f_l(h̃))) − h̃‖²,  h̃ = h_{l−1} + ε,  ε ~ N(0, noise²)

    all in one estimate. The factor 1/η makes the size of the gradients independent of the step. The
    last block's estimate is then ∂C/∂θ_L itself. The term −g_l(h_l) keeps a unit without an error
    at its place, however bad the inverse is. Hidden blocks follow these losses, not ∇C: their
    errors come down by the Jacobians of the inverses, where backprop has transposes. Both agree in
    a linear network with V_l = w_lᵀ. With true inverses the direction is similar to Gauss–Newton.
    The rule's `objective` is the exact gradient of the losses.

    The rule's `init` draws the inverses. They join params as a last entry
    {"inverses": {name: {"w", "b"}}}, by block name. The exact gradient of C is zero there.

    Args:
      network: a chain of two blocks or more. Blocks above the first consist of dense and flatten.
      cost: compares the output with y.
      step: η > 0 of the first target, in units of state² per cost; traced. With squared error the
        target at η = 1 is y itself. In float32 round-off of the hidden targets grows as 1/η.
      noise: standard deviation of ε in the inverses' training, >= 0, in units of the state; traced.

    Returns:
      A LearningRule with the state {"step": η, "noise": noise}.

    Raises:
      ValueError: a setting is out of range; the network cannot be cut, has one block only, has a
        layer whose inverse would not be dense, or one that couples examples (batch norm).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, tanh
      >>> from bpeq.types import Batch
      >>> network = chain(dense(4), tanh(), dense(1))
      >>> rule = target_propagation(network, squared_error())
      >>> params, state = rule.init(jax.random.key(1), network.init(jax.random.key(0), (2,))[0])
      >>> params[-1]["inverses"]["dense_2"]["w"].shape
      (1, 4)
      >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> ours = rule.estimate(params, batch, state, jax.random.key(2))[0].grads
      >>> exact = rule.info.objective.estimate(params, batch, state, jax.random.key(2))[0].grads
      >>> bool(jnp.allclose(ours[0]["w"], exact[0]["w"], rtol=1e-4))
      True

    Source: Lee, Zhang, Fischer & Bengio 2015, Difference target propagation.
    """
    blocks = cut(network)
    refuse_coupling("target_propagation", network)
    _refuse_blocks(blocks)
    own = len(network.parts)

    def init(key: Key, params: Params) -> tuple[Params, State]:
        settings = traced_settings("target_propagation", params, "step", step=step, noise=noise)
        drawn = {}
        for l, block in enumerate(blocks[1:], start=1):
            below, above = params[block.slice][-1]["w"].shape
            drawn[block.name], _ = dense(below).init(jax.random.fold_in(key, l), (above,))
        return (*params, {"inverses": trees.cast(drawn, settings["step"].dtype)}), settings

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        passed, shifts, noisy = _aims(blocks, cost, params, batch, state, key)
        examples, grads, inverses = batch.x.shape[0], list(trees.zeros(params)), {}
        for l, (block, at, shift) in enumerate(zip(blocks, passed, shifts, strict=True)):
            seed = -at.slope * shift / (state["step"] * examples)
            grads[block.slice], _ = block.backward(params, at.residuals, seed)
            if l > 0:
                above = _through(block, params, noisy[l - 1]).h
                back = _back(blocks, l, params, above, noisy[l - 1])
                seed = back.slope * (back.h - noisy[l - 1]) / examples
                seed, weights = seed.reshape(*above.shape[:-1], -1), _weights(params, block)
                inverses[block.name], _ = _AFFINE.backward(weights, weights, back.residuals, seed)
        grads[-1] = {"inverses": inverses}
        output = passed[-1].h
        return Estimate(tuple(grads), mean_loss(cost, output, batch.y), output, {}), state

    def forward(params: Params, x: Any, key: Key | None = None) -> tuple[Array, Any]:
        return network.forward(params[:own], x, key)

    plain = network._replace(forward=forward, absorb=None)
    rule = network_rule("target_propagation", plain, cost, estimate, init)
    objective = _local_losses(rule, blocks, cost, step, noise)
    return rule._replace(info=rule.info._replace(objective=objective))


_AFFINE = dense(1)  # the map of all inverses; its size comes from the weights


class _Passed(NamedTuple):
    """A block after its forward pass.

    h: the units σ(z). slope: σ′(z). residuals: what the pull-back of its connection needs.
    """

    h: Array
    slope: Array
    residuals: Any


def _through(block: Block, params: Params, below: Array) -> _Passed:
    """The forward pass of a block, from the units below it."""
    z, residuals = block.forward(params, below)
    return _Passed(block.activation.value(z), block.activation.slope(z), residuals)


def _back(blocks: tuple[Block, ...], l: int, params: Params, above: Array, like: Array) -> _Passed:
    """g_l: the inverse of block l, from the units above to units with the shape of `like` below."""
    z, residuals = _AFFINE.forward(_weights(params, blocks[l]), above)
    z, sigma = z.reshape(like.shape), blocks[l - 1].activation
    return _Passed(sigma.value(z), sigma.slope(z), residuals)


def _weights(params: Params, block: Block) -> Params:
    """The weights of a block's inverse."""
    return params[-1]["inverses"][block.name]


def _aims(
    blocks: tuple[Block, ...], cost: Cost, params: Params, batch: Batch, state: State, key: Key
) -> tuple[list[_Passed], list[Array], list[Array]]:
    """The forward pass, ĥ − h of each block, and the noisy units h̃ for each inverse."""
    passed = [_through(blocks[0], params, batch.x)]
    for block in blocks[1:]:
        passed.append(_through(block, params, passed[-1].h))
    output = passed[-1].h
    shifts = [-state["step"] * cost.error(output, batch.y)]
    noisy: list[Array] = []
    for l in reversed(range(1, len(blocks))):
        below, above = passed[l - 1].h, passed[l].h
        aim = _back(blocks, l, params, above + shifts[0], below).h
        shifts.insert(0, aim - _back(blocks, l, params, above, below).h)
        # Draw in float32 for any dtype of params, so that a float64 reference gets the same noise.
        draw = partial(jax.random.normal, jax.random.fold_in(key, l), dtype=jnp.float32)
        drawn = sharding.drawn(draw, below.shape)
        noisy.insert(0, below + state["noise"] * drawn.astype(below.dtype))
    return passed, shifts, noisy


def _local_losses(
    rule: LearningRule, blocks: tuple[Block, ...], cost: Cost, step: float, noise: float
) -> LearningRule:
    """The exact gradient, by autodiff, of the local losses at constant targets.

    It adds the reconstruction losses of the inverses. Both parts have no weights in common.
    """

    # Params have their inverses already.
    init = settings_init("target_propagation", step=step, noise=noise)

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        aims = jax.lax.stop_gradient(_aims(blocks, cost, params, batch, state, key))
        passed, shifts, noisy = aims

        def total(params: Params) -> Array:
            sum_of = jnp.zeros((), passed[-1].h.dtype)
            for l, (block, at, shift) in enumerate(zip(blocks, passed, shifts, strict=True)):
                below = batch.x if l == 0 else passed[l - 1].h
                gap = _through(block, params, below).h - (at.h + shift)
                sum_of += jnp.sum(gap * gap) / (2.0 * state["step"])
                if l > 0:
                    above = jax.lax.stop_gradient(_through(block, params, noisy[l - 1]).h)
                    gap = _back(blocks, l, params, above, noisy[l - 1]).h - noisy[l - 1]
                    sum_of += 0.5 * jnp.sum(gap * gap)
            return sum_of / batch.x.shape[0]

        value, grads = jax.value_and_grad(total)(params)
        return Estimate(grads, value, passed[-1].h, {}), state

    return LearningRule("Σ_l ‖h_l − ĥ_l‖² / 2η", init, rule.apply, estimate)


def _refuse_blocks(blocks: tuple[Block, ...]) -> None:
    """Refuse a network with one block, or with a block whose inverse would not be dense."""
    if len(blocks) < 2:
        raise ValueError("target_propagation: the network has no hidden block to have targets")
    for block in blocks[1:]:
        names = [part.name for part in block.connection.parts]
        if names not in (["dense"], ["flatten", "dense"]):
            raise ValueError(
                f"target_propagation: the inverse of the block {block.name!r} "
                f"({', '.join(names)}) would not be dense; allowed above the first block: a dense "
                "layer, alone or after flatten"
            )
