"""Dual propagation: every unit is a dyad; its mean is the activity, its difference the error."""

from __future__ import annotations

from typing import Annotated, Any

from annotated_types import Interval
from jaxtyping import Array

from bpeq.core import trees
from bpeq.layers import cut
from bpeq.rules._backprop import network_rule
from bpeq.rules._common import mean_loss, settings_init
from bpeq.settings import Count, NonNegative, Positive, checked
from bpeq.solvers import fixed_steps
from bpeq.systems._refusals import refuse_coupling
from bpeq.types import Batch, Cost, Estimate, Key, Layer, LearningRule, Params, State


@checked
def dual_propagation(
    network: Layer,
    cost: Cost,
    *,
    alpha: Annotated[float, Interval(ge=0, le=1)] = 0.5,
    beta: Positive = 0.1,
    sweeps: Count = 1,
    tolerance: NonNegative = 1e-4,
) -> LearningRule:
    """Dual propagation: two states per unit, nudged apart, in one phase.

    A unit has the states s⁺ and s⁻. Their mean goes upward, their difference downward:

        s̄_l = α s⁺_l + (1 − α) s⁻_l      a_l = f_l(s̄_{l−1})              s̄_0 = x
        u_l = f_{l+1}ᵀ(s⁺_{l+1} − s⁻_{l+1})      u_L = −β ∂C/∂o(o, y), o = σ_L(a_L)
        s⁺_l = σ_l(a_l + (1 − α) u_l)    s⁻_l = σ_l(a_l − α u_l)

    A sweep sets the dyads by these closed forms, one block after another, from the output down. It
    starts at the feed-forward pass, where s⁺ = s⁻. The estimate is the gradient of the contrast

        −(1/β) Σ_l ⟨s⁺_l − s⁻_l, f_l(s̄_{l−1})⟩

    at constant dyads: −(1/β) times f_l's parameter pull-back of s⁺_l − s⁻_l at s̄_{l−1}.

    In powers of u the difference is σ′u + (½ − α) σ″u² + O(u³), and the mean is
    σ(a) + ½α(1 − α) σ″u² + O(u³). So the differences are −β times backprop's errors after one
    sweep, up to a bias of order β. For α = ½ the bias is of order β². It is zero if no unit of a
    piecewise linear network crosses a corner. With α = ½ this is the rule of 2023. For other α the
    rule of 2023 has α u and (1 − α) u where s⁺ and s⁻ have (1 − α) u and α u here. It moves the
    mean by (2α − 1) σ′u and needs damping.

    Args:
      network: a chain. σ_l need no potential. If a σ_l is not monotone (gelu), the dyads minimise
        nothing; the expansion above is still true.
      cost: compares the output with y. It is linearised at the output that the dyads predict.
      alpha: 0 <= α <= 1, the weight of s⁺ in the mean; traced. The default, ½, has the smallest
        bias.
      beta: β > 0, in units of energy per cost; traced. In float32 round-off grows as 1/β.
      sweeps: number of sweeps, >= 1. One sweep is a forward and a backward pass. In later sweeps
        the moved means reach the blocks above, a change of the order of the bias.
      tolerance: residual that counts as settled in the record, in units of the state, >= 0.

    Returns:
      A LearningRule with the state {"alpha": α, "beta": β}. The estimate's info has the SolveInfo
      `inference` `[batch]`, with the residual of the last sweep. After one sweep this is the nudge
      itself.

    Raises:
      ValueError: a setting is out of range; the network cannot be cut, or has a layer without a
        per-example energy (batch norm, dropout).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, tanh
      >>> from bpeq.types import Batch
      >>> network = chain(dense(4), tanh(), dense(1))
      >>> rule = dual_propagation(network, squared_error(), beta=0.1)
      >>> params, state = rule.init(jax.random.key(1), network.init(jax.random.key(0), (2,))[0])
      >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> ours = rule.estimate(params, batch, state, jax.random.key(2))[0].grads
      >>> exact = rule.info.reference.estimate(params, batch, (), jax.random.key(2))[0].grads
      >>> bool(jnp.allclose(ours[0]["w"], exact[0]["w"], rtol=1e-2))
      True

    Source: Høier, Staudt & Zach 2023, Dual propagation: accelerating contrastive Hebbian learning
    with dyadic neurons; any α: Høier & Zach 2024, Two tales of single-phase contrastive Hebbian
    learning.
    """
    blocks = cut(network)
    refuse_coupling("dual_propagation", network)
    solver = fixed_steps(sweeps, tolerance=tolerance)
    init = settings_init("dual_propagation", "beta", alpha=alpha, beta=beta)

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        a, b = state["alpha"], state["beta"]
        # The first block's drive is the same in all sweeps, so it is computed once.
        clamped = blocks[0].forward(params, batch.x)
        start = [blocks[0].activation.value(clamped[0])]
        for block in blocks[1:]:
            start.append(block.activation.value(block.forward(params, start[-1])[0]))

        def upward(plus: State, minus: State) -> list[tuple[Array, Any]]:
            """(a_l, residuals of f_l) for each block, from the means below."""
            means = [a * up + (1.0 - a) * down for up, down in zip(plus, minus, strict=True)]
            above = zip(blocks[1:], means[:-1], strict=True)
            return [clamped, *(block.forward(params, mean) for block, mean in above)]

        def sweep(dyads: tuple[State, State]) -> tuple[State, State]:
            inputs = upward(*dyads)
            plus: list[Array] = []
            minus: list[Array] = []
            # The error of a block comes from the new dyads above it, so the sweep goes down.
            push = -b * cost.error(blocks[-1].activation.value(inputs[-1][0]), batch.y)
            for l in reversed(range(len(blocks))):
                (drive, residuals), sigma = inputs[l], blocks[l].activation.value
                plus.insert(0, sigma(drive + (1.0 - a) * push))
                minus.insert(0, sigma(drive - a * push))
                if l > 0:
                    _, push = blocks[l].backward(params, residuals, plus[0] - minus[0])
            return tuple(plus), tuple(minus)

        (plus, minus), info = solver(sweep, (tuple(start), tuple(start)))
        # The contrast's gradient, at the means that the last dyads give.
        grads = list(trees.zeros(params))
        for l, (_, residuals) in enumerate(upward(plus, minus)):
            seed = (minus[l] - plus[l]) / (b * batch.x.shape[0])
            grads[blocks[l].slice], _ = blocks[l].backward(params, residuals, seed)
        loss = mean_loss(cost, start[-1], batch.y)
        return Estimate(tuple(grads), loss, start[-1], {"inference": info}), state

    note = "with alpha = 0.5 backprop up to an error of order beta²" if alpha == 0.5 else ""
    order = 2 if alpha == 0.5 else 1
    about: dict[str, Any] = {"beta": "beta", "order": order}
    about["sweep_settings"] = lambda n: {"sweeps": n}
    return network_rule("dual_propagation", network, cost, estimate, init, note=note, **about)
