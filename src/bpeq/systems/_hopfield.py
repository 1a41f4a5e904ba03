"""Hopfield networks out of ordinary layers: one energy, cut out of a chain at its activations."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq import trees
from bpeq.layers import Block, cut
from bpeq.settings import checked
from bpeq.systems._readout import state_readout
from bpeq.types import Key, Layer, Params, State, System


class Clamped(NamedTuple):
    """What a batch's input fixes: the first connection's drive, and what its pull-back needs."""

    drive: Float[Array, "batch ..."]
    residuals: Any


@checked
def hopfield(
    network: Layer,
    *,
    output: Literal["state", "readout"] = "state",
    schedule: Literal["alternating", "synchronous"] = "alternating",
) -> System:
    """The layered Hopfield network of a chain: its activations are states, the rest couples them.

        E(θ, x, s) = Σ_l A_l(s_l) − Σ_l ⟨s_l, f_l(θ_l, s_{l−1})⟩,    s_0 = x,   σ_l = (∇A_l)⁻¹
        sweep:  s_l ← σ_l( f_l(s_{l−1}) + f_{l+1}ᵀ(s_{l+1}) + push_l )
        −∂E/∂θ_l = f_l's parameter pull-back of s_l

    f_l is the l-th connection and f_lᵀ its `backward`: both are the very layers that backprop uses,
    with the same parameters, so that `network.init` serves both.

    Shapes: x `[batch, ...]`; the state is a tuple of one `[batch, ...]` array a block; params are
    the network's. Energies are per example, `[batch]`.

    Args:
      network: a chain; each of its activations closes a block. The last block may end without one,
        which is a linear output.
      output: "state" makes the last block's units states, nudged by the cost (squared error);
        "readout" makes them a function of the last hidden state, no part of E, through which the
        cost nudges that state (cross-entropy).
      schedule: "alternating" updates odd blocks, then even ones. Where every connection is affine
        each half is an exact block minimisation, so E never rises and no 2-cycle exists.
        "synchronous" updates all at once, the update that the GDU property of Ernoult et al. needs;
        a symmetric net can then oscillate between two states.

    Raises:
      ValueError: the network cannot be cut; an activation has no potential (gelu); a layer has no
        per-example energy (batch norm, dropout); a readout without a hidden block before it.

    Example:
      >>> import jax
      >>> from bpeq.layers import chain, dense, hard_sigmoid
      >>> system = hopfield(chain(dense(4), hard_sigmoid(), dense(2)))
      >>> params, _ = system.init(jax.random.key(0), (3,))
      >>> clamped = system.clamp(params, jax.numpy.ones((1, 3)))
      >>> [s.shape for s in system.init_state(params, clamped)]
      [(1, 4), (1, 2)]

    Source: Hopfield 1984; Scellier & Bengio 2017, Equilibrium propagation; the layered form with
    one σ a block is Laborieux et al. 2021's.
    """
    blocks = cut(network)
    _refuse(network, blocks, output)
    states = blocks if output == "state" else blocks[:-1]
    top = len(states) - 1
    halves = (range(0, top + 1, 2), range(1, top + 1, 2))

    def clamp(params: Params, x: Array) -> Clamped:
        return Clamped(*states[0].connection.forward(params[states[0].slice], x))

    def init_state(params: Params, clamped: Clamped) -> State:
        state = [jnp.zeros_like(clamped.drive)]
        for block in states[1:]:
            shape = jax.eval_shape(block.connection.forward, params[block.slice], state[-1])[0]
            state.append(jnp.zeros(shape.shape, shape.dtype))
        return tuple(state)

    def from_below(params: Params, clamped: Clamped, state: State, l: int) -> Array:
        if l == 0:
            return clamped.drive
        return states[l].connection.forward(params[states[l].slice], state[l - 1])[0]

    def from_above(params: Params, state: State, l: int) -> Array:
        connection, own = states[l + 1].connection, params[states[l + 1].slice]
        _, residuals = connection.forward(own, state[l])
        return connection.backward(own, own, residuals, state[l + 1])[1]

    def drive(params: Params, clamped: Clamped, state: State, l: int, push: Any = None) -> Array:
        total = from_below(params, clamped, state, l)
        if l < top:
            total = total + from_above(params, state, l)
        return total if push is None or push[l] is None else total + push[l]

    def update(params: Params, clamped: Clamped, state: State, push: Any, which: range) -> State:
        pushed = None if push is None else push(state)
        new = list(state)
        for l in which:
            new[l] = states[l].activation.value(drive(params, clamped, state, l, pushed))
        return tuple(new)

    def sweep(params: Params, clamped: Clamped, state: State, push: Any = None) -> State:
        if schedule == "synchronous":
            return update(params, clamped, state, push, range(top + 1))
        for which in halves:
            if which:
                state = update(params, clamped, state, push, which)
        return state

    def energy(params: Params, clamped: Clamped, state: State) -> Float[Array, " batch"]:
        total = jnp.zeros_like(trees.max_abs(state))
        for l, block in enumerate(states):
            assert block.activation.potential is not None
            units = block.activation.potential(state[l])
            units = units - state[l] * from_below(params, clamped, state, l)
            total = total + jnp.sum(units.reshape(units.shape[0], -1), axis=1)
        return total

    def denergy(params: Params, clamped: Clamped, phases: State, weights: Array) -> Params:
        grads = list(trees.zeros(params))
        for l, block in enumerate(states):
            own = params[block.slice]
            if l == 0:  # the input is the same in all phases, so their states contract first
                residuals, seed = clamped.residuals, _contract(weights, phases[0])
            else:  # one product for all phases, their batches side by side
                x = phases[l - 1].reshape(-1, *phases[l - 1].shape[2:])
                scaled = weights.reshape(-1, *(1,) * (phases[l].ndim - 1)) * phases[l]
                seed = scaled.reshape(-1, *phases[l].shape[2:])
                residuals = block.connection.forward(own, x)[1]
            pulled, _ = block.connection.backward(own, own, residuals, -seed)
            grads[block.slice] = pulled
        return tuple(grads)

    def force(params: Params, clamped: Clamped, state: State) -> State:
        return tuple(
            drive(params, clamped, state, l) - _inverse(block, state[l])
            for l, block in enumerate(states)
        )

    def dforce(params: Params, clamped: Clamped, state: State, v: State) -> Params:
        # vᵀ ∂force/∂θ = −d/dε ∂E/∂θ(s + εv): forward mode through the hand-written pull-backs.
        def one(state: State) -> Params:
            phases = jax.tree.map(lambda s: s[None], state)
            return denergy(params, clamped, phases, jnp.ones((1,), clamped.drive.dtype))

        return trees.scale(-1.0, jax.jvp(one, (state,), (v,))[1])

    def write(state: State, value: Array) -> State:
        return (*state[:-1], value)

    return System(
        name="hopfield",
        init=network.init,
        clamp=clamp,
        init_state=init_state,
        sweep=sweep,
        energy=energy,
        denergy=denergy,
        force=force,
        dforce=dforce,
        readout=_last_state(top) if output == "state" else _last_block(blocks[-1], top),
        write=write if output == "state" else None,
    )


def _contract(weights: Array, phases: Array) -> Array:
    """Σ_n w_n s_n, states subtracted from the first before they are scaled: less round-off."""
    gaps = phases[1:] - phases[:1]
    return jnp.sum(weights) * phases[0] + jnp.tensordot(weights[1:], gaps, axes=1)


def _inverse(block: Block, state: Array) -> Array:
    """∇A(s) = σ⁻¹(s)."""
    potential = block.activation.potential
    assert potential is not None
    return jax.grad(lambda s: jnp.sum(potential(s)))(state)


def _last_state(top: int) -> Layer:
    """The last state is the output: its pull-back puts the error there and nowhere else."""

    def forward(params: Params, state: State, key: Key | None = None) -> tuple[Array, Any]:
        return state[top], ()

    def backward(params: Params, feedback: Params, residuals: Any, dy: Array) -> tuple[Params, Any]:
        return trees.zeros(params), (*(None,) * top, dy)

    return state_readout(forward, backward)


def _last_block(block: Block, top: int) -> Layer:
    """The last block as a function of the last hidden state, with its own weights' gradient."""
    connection, activation = block.connection, block.activation

    def forward(params: Params, state: State, key: Key | None = None) -> tuple[Array, Any]:
        z, residuals = connection.forward(params[block.slice], state[top])
        return activation.value(z), (residuals, activation.slope(z))

    def backward(params: Params, feedback: Params, residuals: Any, dy: Array) -> tuple[Params, Any]:
        kept, slope = residuals
        own, back = params[block.slice], feedback[block.slice]
        pulled, ds = connection.backward(own, back, kept, dy * slope)
        grads = list(trees.zeros(params))
        grads[block.slice] = pulled
        return tuple(grads), (*(None,) * top, ds)

    return state_readout(forward, backward)


def _refuse(network: Layer, blocks: tuple[Block, ...], output: str) -> None:
    for i, part in enumerate(network.parts):
        if part.no_energy:
            raise ValueError(f"hopfield: layer {i} ({part.name!r}) {part.no_energy}")
        if part.activation is not None and part.activation.potential is None:
            raise ValueError(
                f"hopfield: layer {i} ({part.name!r}) is not monotone, so it has no potential and "
                "no energy; allowed: linear, relu, tanh, sigmoid, hard_sigmoid, shifted_sigmoid, "
                "softplus, or an activation_layer with a potential"
            )
    if output == "readout" and len(blocks) < 2:
        raise ValueError("hopfield: output = 'readout' needs a hidden block before the readout")
