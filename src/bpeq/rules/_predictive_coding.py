"""Predictive coding as a learning rule: states or errors relax, then the weights follow."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import trees
from bpeq.layers import cut
from bpeq.rules._backprop import network_rule
from bpeq.rules._common import mean_loss, settings_init
from bpeq.rules._phases import Free, contrast, in_one_piece, nudged_phases
from bpeq.settings import Count, NonNegative, Positive, checked
from bpeq.solvers import fixed_steps
from bpeq.systems import predictive
from bpeq.types import Batch, Cost, Estimate, Key, Layer, LearningRule, Params, SolveInfo, State

Inference = Literal["states", "timed", "errors"]


@checked
def predictive_coding(
    network: Layer,
    cost: Cost,
    *,
    inference: Inference = "states",
    steps: Count = 20,
    rate: Positive = 0.2,
    tolerance: NonNegative = 1e-4,
) -> LearningRule:
    """Predictive coding (inference learning): relax the states to the target, then learn locally.

    The energy is that of `systems.predictive` over the hidden blocks l < L, with the output
    clamped:

        F = ½ Σ_{l<L} ‖e_l‖² + C(σ_L(f_L(σ_{L−1}(s_{L−1}))), y),   e_l = s_l − f_l(σ_{l−1}(s_{l−1}))

    With squared error and a linear output, C is ½‖e_L‖² with s_L = y. With any other cost, C takes
    the place of that term, and −∂C/∂z_L the place of e_L; z_L is the output's pre-activation.
    Inference starts at the feed-forward pass, where all hidden errors are 0. It relaxes, and the
    estimate is ∂F/∂θ:

        states   s_l ← s_l − rate ∂F/∂s_l, all at once, `steps` times; then ∂F/∂θ_l, which is −f_l's
                 parameter pull-back of e_l. Plain inference learning.
        timed    the same inference. The weights of a block take their update at the step at which
                 the block's error first arrives: block L at once, block l after L − l steps.
                 Inference ends with block 1 and does not read `steps`. Zero-divergence inference
                 learning, Z-IL.
        errors   the e_l relax. A pass upward rebuilds the states from them; a pass downward gives
                 d_l = dC/ds_l through all blocks above. Then e_l ← e_l + rate (−d_l − e_l). The
                 weights read the last errors and the activity of the last pass. The equilibria are
                 those of "states", reached in fewer steps. Each step needs all blocks in turn, so
                 this inference is not local in time.

    **When it is backprop.** In "timed" the activity below a block is still the forward pass's when
    its error arrives. So e_l is −rate^{L−l} δ_l, with δ of backprop. At rate 1 this is exactly
    backprop; otherwise each block has one factor. In "errors" with `steps = 1`, the d_l from e = 0
    are the δ_l, so e_l is −rate δ_l. At rate 1 this is exactly backprop; otherwise all blocks but
    the last have the factor `rate`. It needs three things: one step, zero errors before it, and
    weights that read the forward pass. Goemaere et al. rebuild the states once more; then it holds
    only as rate → 0. `info.note` says when it is backprop. Adam's steps do not depend on such
    factors. In all other settings the estimate differs from backprop, and tends to it as the output
    errors vanish.

    A nudged output, with weight β in the energy, is `eqprop` on `systems.predictive`.

    Args:
      network: a chain as for `systems.predictive`, with two blocks or more.
      cost: compares the output with y.
      inference: one of the three above.
      steps: number of inference steps, >= 1; "timed" ignores it.
      rate: step size of inference, > 0; traced. "states" is stable for rate < 2/λ, with λ the
        largest eigenvalue of ∂²F/∂s². At the default, 0.2, norms of a block up to 2.1 are stable.
        For "errors" the same holds with ∂²F/∂e²: the identity plus the curvature of C through all
        blocks above.
      tolerance: residual that counts as settled in the record, in units of the state, >= 0.

    Returns:
      A LearningRule with the state {"rate": rate}. The estimate's info has the SolveInfo
        `inference`
      `[batch]`. Its residual is the change of the last step, rate included.

    Raises:
      ValueError: a setting is out of range; the network cannot be cut, has one block only, or has a
        layer without a per-example energy (batch norm, dropout).

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, tanh
      >>> from bpeq.types import Batch
      >>> network = chain(dense(4), tanh(), dense(1))
      >>> rule = predictive_coding(network, squared_error(), inference="timed", rate=1.0)
      >>> params, state = rule.init(jax.random.key(1), network.init(jax.random.key(0), (2,))[0])
      >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> estimate, _ = rule.estimate(params, batch, state, jax.random.key(2))
      >>> estimate.info["inference"].steps.tolist(), rule.info.note[:22]
      ([1], 'algebraically backprop')

    Source: Whittington & Bogacz 2017, An approximation of the error backpropagation algorithm in a
    predictive coding network with local Hebbian synaptic plasticity; "timed": Song, Lukasiewicz, Xu
    & Bogacz 2020, Can the brain do backpropagation? Exact implementation of backpropagation in
    predictive coding networks; "errors": Goemaere, Oliviers, Bogacz & Demeester 2025, Error
    optimization: overcoming exponential signal decay in deep predictive coding networks.
    """
    blocks = cut(network)
    if len(blocks) < 2:
        raise ValueError(
            "predictive_coding: the network has no hidden block to relax; use backprop"
        )
    # The last block is a readout of the last hidden state: it reads any cost and has no state.
    system = predictive(network, output="readout")
    hidden = blocks[:-1]
    count = {"states": steps, "timed": len(hidden), "errors": steps}[inference]
    solver = fixed_steps(count, tolerance=tolerance, record=inference == "timed")
    init = settings_init("predictive_coding", rate=rate)

    def relax(params: Params, free: Free, y: Array, rate: Array) -> tuple[State, SolveInfo]:
        """The states after inference, phases (one) on axis 0: a nudged phase at β = 1."""

        def sweep(params: Params, clamped: Any, state: State, push: Any) -> State:
            slope = trees.add_given(system.force(params, clamped, state), push(state))
            return trees.add(state, trees.scale(rate, slope))

        moved = in_one_piece(system._replace(sweep=sweep))
        return nudged_phases(moved, cost, solver, params, free, y, jnp.ones_like(rate)[None])

    def optimise(
        params: Params, free: Free, y: Array, rate: Array
    ) -> tuple[State, State, SolveInfo]:
        """Errors after inference, the states of the pass that made them, and how it ended."""

        # One step: a pass upward for the states, a pass downward for their slopes.
        def step(carry: tuple[State, State]) -> tuple[State, State]:
            errors, state, kept = carry[0], [free.clamped.prediction + carry[0][0]], []
            for l in range(1, len(hidden)):
                below = hidden[l - 1].activation.value(state[-1])
                z, residuals = hidden[l].forward(params, below)
                state.append(z + errors[l])
                kept.append(residuals)
            output, residuals = system.readout.forward(params, tuple(state))
            _, push = system.readout.backward(params, params, residuals, -cost.error(output, y))
            # A hidden block's slope needs that of the block above, so the pass goes down.
            down = [push[-1]]
            for l in reversed(range(1, len(hidden))):
                _, back = hidden[l].backward(params, kept[l - 1], down[0])
                down.insert(0, hidden[l - 1].activation.slope(state[l - 1]) * back)
            moves = trees.scale(rate, trees.sub(tuple(down), errors))
            return trees.add(errors, moves), tuple(state)

        (errors, state), info = solver(step, (trees.zeros(free.state), free.state))
        return errors, state, info

    def local(params: Params, clamped: Any, y: Array, errors: State, state: State) -> Params:
        """∂F/∂θ from given errors of the hidden blocks and the states that they read."""
        output, kept = system.readout.forward(params, state)
        seed = cost.error(output, y) / output.shape[0]
        grads = list(system.readout.backward(params, params, kept, seed)[0])
        for l, (block, error) in enumerate(zip(hidden, errors, strict=True)):
            residuals = clamped.residuals
            if l > 0:
                _, residuals = block.forward(params, hidden[l - 1].activation.value(state[l - 1]))
            grads[block.slice], _ = block.backward(params, residuals, -error / error.shape[0])
        return tuple(grads)

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        """The output of the forward pass and ∂F/∂θ after inference."""
        # Inference starts at the forward pass; its output is the rule's output.
        clamped = system.clamp(params, batch.x)
        start = system.init_state(params, clamped)
        output, _ = system.readout.forward(params, start)
        free = Free(clamped, start, (), output)  # type: ignore[arg-type]  # no solve
        if inference == "errors":
            errors, last, info = optimise(params, free, batch.y, state["rate"])
            grads = local(params, clamped, batch.y, errors, last)
        else:
            phases, info = relax(params, free, batch.y, state["rate"])
            path: Any = info.trajectory
            info = jax.tree.map(lambda leaf: leaf[0], info._replace(trajectory=None))
            if inference == "states":
                one = jnp.ones_like(state["rate"])[None]
                weights = one / output.shape[0]
                grads = contrast(system, cost, params, clamped, batch.y, phases, one, weights)
            else:  # hidden state l at its first move; nothing below has moved yet
                first = tuple(s[0, len(hidden) - 1 - l] for l, s in enumerate(path))
                grads = local(params, clamped, batch.y, trees.sub(first, start), start)
        loss = mean_loss(cost, output, batch.y)
        return Estimate(grads, loss, output, {"inference": info}), state

    about: dict[str, Any] = {"note": _note(inference, steps, rate)}
    if inference != "timed":  # which takes as many steps as there are blocks
        about["sweep_settings"] = lambda n: {"steps": n}
    return network_rule("predictive_coding", network, cost, estimate, init, **about)


def _note(inference: Inference, steps: int, rate: float) -> str:
    """What these settings are algebraically, in words; empty if they equal no other rule."""
    if inference == "timed" and rate == 1.0:
        return (
            "algebraically backprop: at rate 1 each block's error arrives as backprop's delta, "
            "while the activity below it is still the forward pass's"
        )
    if inference == "timed":
        return (
            "algebraically backprop but for one factor a block: its rate to the power of the "
            "number of blocks above"
        )
    if inference == "errors" and steps == 1:
        but = "" if rate == 1.0 else " but for one factor, its rate, on all blocks below the last"
        return (
            f"algebraically backprop{but}: one step from zero errors makes them backprop's deltas, "
            "and the weights read the forward pass"
        )
    return ""
