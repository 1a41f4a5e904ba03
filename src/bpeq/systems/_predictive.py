"""Predictive coding from ordinary layers: each state predicts the next, E adds up the errors."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq.core import trees
from bpeq.layers import cut
from bpeq.settings import Positive, checked
from bpeq.systems._derivatives import contract, dforce_of, merge_phases, weighted
from bpeq.systems._readout import activated_state, last_block, write_last
from bpeq.systems._refusals import refuse_coupling, why_not_holomorphic
from bpeq.types import Layer, Params, State, System, SystemTraits, rows_first


class Clamped(NamedTuple):
    """What the input of a batch fixes.

    prediction: `[batch, ...]`, f_1(x), the prediction of the first state.
    residuals: what the pull-back of f_1 needs.
    """

    prediction: Float[Array, "batch ..."]
    residuals: Any


@checked
def predictive(
    network: Layer,
    *,
    output: Literal["state", "readout"] = "state",
    schedule: Literal["gradient", "sequential"] = "gradient",
    step_size: Positive = 0.2,
) -> System:
    """The predictive coding network of a chain: states are the pre-activations of its blocks.

        E(θ, x, s) = ½ Σ_l ‖e_l‖²,    e_l = s_l − f_l(θ_l, σ_{l−1}(s_{l−1})),    σ_0(s_0) = x
        −∂E/∂s_l = −e_l + σ′_l(s_l) ⊙ f_{l+1}ᵀ(e_{l+1})
        −∂E/∂θ_l = f_l's parameter pull-back of e_l

    f_l is the l-th connection, f_lᵀ its `backward`, and the output is σ_L(s_L). A free phase starts
    at the feed-forward pass. There all errors are 0 and E = 0, so the start is already the
    equilibrium, and the output is the network's own. So EP on this energy is backprop of that
    network as β → 0.

    Shapes: x is `[batch, ...]`. The state is a tuple with one `[batch, ...]` array for each block.
    Params are the network's. Energies are per example, `[batch]`.

    Args:
      network: a chain as for `hopfield`. Its activations need no potential, so gelu is allowed.
      output: "state" makes the last block's pre-activation a state too, s_L, which the cost nudges.
        "readout" makes the last block a function of the last hidden state, which is not part of E.
        The cost nudges that state through the function. At β = 1 this is an output clamped to its
        target, with the cost in the place of the output's prediction error.
      schedule: "gradient" moves all states at once by step_size (−∂E/∂s_l + push_l). A state needs
        only its own error and the next one: local in space and time.
        "sequential" first solves for the errors at the slopes of the current state, from the top
        down, e_l = σ′_l(s_l) ⊙ f_{l+1}ᵀ(e_{l+1}) + push_l. Then it rebuilds the states from the
        bottom up, s_l ← f_l(σ(s_{l−1})) + e_l. Its fixed points are the same. It contracts by O(β)
        per sweep, so a few sweeps settle a nudged phase. But each sweep is a backward and a forward
        pass, one layer after another, and not local in time. With a clamped output it contracts by
        ‖∂f_l/∂s_{l−1}‖². If this is above 1, only a damped solver settles.
      step_size: ε > 0 of "gradient"; "sequential" ignores it. Around E's minimum a step is stable
        for ε < 2/λ, with λ the largest eigenvalue of ∂²E/∂s². There λ is at most
        (1 + max_l ‖∂f_l/∂s_{l−1}‖)²: 0.2 allows norms up to 2.1. The slowest error shrinks by
        1 − ε λ_min per sweep. Too large a step diverges; the residual shows it.

    Returns:
      A System with an energy. Its `write` sets the output if the output is a state, that is if
      `output` is "state" and the last block is linear.

    Raises:
      ValueError: the network cannot be cut, a layer has no per-example energy (batch norm,
        dropout), or a readout has no hidden block before it.

    Example:
      >>> import jax
      >>> from bpeq.layers import chain, dense, gelu
      >>> network = chain(dense(4), gelu(), dense(2))
      >>> system = predictive(network)
      >>> params, _ = system.init(jax.random.key(0), (3,))
      >>> clamped = system.clamp(params, jax.numpy.ones((1, 3)))
      >>> state = system.init_state(params, clamped)
      >>> system.energy(params, clamped, state).tolist()
      [0.0]

    Source: Rao & Ballard 1999; Whittington & Bogacz 2017, An approximation of the error
    backpropagation algorithm in a predictive coding network with local Hebbian synaptic plasticity;
    that small nudges make it backprop: Millidge et al. 2023, Backpropagation at the infinitesimal
    inference limit of energy-based models.
    """
    blocks = cut(network)
    refuse_coupling("predictive", network)
    if output == "readout" and len(blocks) < 2:
        raise ValueError("predictive: output = 'readout' needs a hidden block before the readout")
    # A readout is no state, so the energy ends one block before it.
    readout_block = blocks[-1]
    blocks = blocks if output == "state" else blocks[:-1]
    top = len(blocks) - 1
    last = blocks[-1].activation
    # `write` needs an output that is the state itself, without a σ.
    linear = network.parts[-1].activation is None or network.parts[-1].name == "linear"

    def clamp(params: Params, x: Array) -> Clamped:
        return Clamped(*blocks[0].forward(params, x))

    def predict(params: Params, l: int, below: Array) -> tuple[Array, Any]:
        """f_l of the state below, with its residuals."""
        return blocks[l].forward(params, blocks[l - 1].activation.value(below))

    def init_state(params: Params, clamped: Clamped) -> State:
        """The feed-forward pass."""
        state = [clamped.prediction]
        for l in range(1, len(blocks)):
            state.append(predict(params, l, state[-1])[0])
        return tuple(state)

    def errors(params: Params, clamped: Clamped, state: State) -> tuple[list[Array], list[Any]]:
        """The errors e_l of all blocks, and the residuals of their predictions."""
        below = [(clamped.prediction, clamped.residuals)]
        below += [predict(params, l, state[l - 1]) for l in range(1, len(blocks))]
        return [s - f for s, (f, _) in zip(state, below, strict=True)], [kept for _, kept in below]

    def pulled(params: Params, state: State, l: int, residuals: Any, error: Array) -> Array:
        """σ′_l(s_l) ⊙ f_{l+1}ᵀ(e_{l+1})."""
        _, back = blocks[l + 1].backward(params, residuals, error)
        return blocks[l].activation.slope(state[l]) * back

    def force(params: Params, clamped: Clamped, state: State) -> State:
        error, kept = errors(params, clamped, state)
        down = [pulled(params, state, l, kept[l + 1], error[l + 1]) for l in range(top)]
        return (*(ds - e for ds, e in zip(down, error[:-1], strict=True)), -error[-1])

    def gradient_sweep(
        params: Params, clamped: Clamped, state: State, push: Any = None, hold: bool = False
    ) -> State:
        pushed = (None,) * len(blocks) if push is None else push(state)
        moves = zip(state, force(params, clamped, state), pushed, strict=True)
        moved = tuple(s + step_size * (ds if p is None else ds + p) for s, ds, p in moves)
        return (*moved[:-1], state[-1]) if hold else moved

    def sequential_sweep(
        params: Params, clamped: Clamped, state: State, push: Any = None, hold: bool = False
    ) -> State:
        # Errors from the top down, at the slopes of the state before the sweep.
        pushed = (None,) * len(blocks) if push is None else push(state)
        now, kept = errors(params, clamped, state)
        error = [jnp.zeros_like(s) if p is None else p for s, p in zip(state, pushed, strict=True)]
        if hold:
            error[-1] = now[-1]
        for l in reversed(range(top)):
            error[l] = error[l] + pulled(params, state, l, kept[l + 1], error[l + 1])
        # States from the bottom up, so that their errors are exactly these.
        new = [clamped.prediction + error[0]]
        for l in range(1, len(blocks)):
            new.append(predict(params, l, new[-1])[0] + error[l])
        return (*new[:-1], state[-1]) if hold else tuple(new)

    def energy(params: Params, clamped: Clamped, state: State) -> Float[Array, " batch"]:
        total = jnp.zeros_like(trees.max_abs(state))
        for e in errors(params, clamped, state)[0]:
            total = total + 0.5 * jnp.sum((e * e).reshape(e.shape[0], -1), axis=1)
        return total

    def denergy(
        params: Params, clamped: Clamped, phases: State, weights: Array
    ) -> tuple[Params, Any]:
        grads, below = list(trees.zeros(params)), []
        for l, block in enumerate(blocks):
            if l == 0:  # all phases share the input, so their errors contract first
                residuals = clamped.residuals
                seed = contract(weights, phases[0] - clamped.prediction)
            else:  # one product for all phases, as one batch
                prediction, residuals = predict(params, l, merge_phases(phases[l - 1]))
                error = phases[l] - prediction.reshape(phases[l].shape)
                seed = weighted(weights, error)
            grads[block.slice], into = block.backward(params, residuals, -seed)
            below.append(into)
        return tuple(grads), below[0]

    return System(
        name="predictive",
        init=network.init,
        clamp=clamp,
        init_state=init_state,
        sweep=gradient_sweep if schedule == "gradient" else sequential_sweep,
        energy=energy,
        denergy=denergy,
        force=force,
        dforce=dforce_of(denergy),
        readout=activated_state(last, len(blocks))
        if output == "state"
        else last_block(readout_block, len(blocks), last),
        write=write_last if linear and output == "state" else None,
        traits=SystemTraits(
            not_holomorphic=why_not_holomorphic(network),
            forward=init_state,
            linear_output=linear and output == "state",
            trained=network.trained,
            take_rows=lambda clamped, rows: Clamped(rows_first(clamped.prediction, rows), None),
        ),
    )
