"""Deep resistive networks: circuits of variable resistors and diodes that settle at least power."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq.core import trees
from bpeq.layers import cut
from bpeq.settings import Positive, checked
from bpeq.systems import _resistors as resistors
from bpeq.systems._derivatives import dforce_of
from bpeq.systems._readout import last_state, paired_state, write_last
from bpeq.systems._refusals import refuse_circuit, why_not_holomorphic
from bpeq.types import Key, Layer, Params, Shape, State, System, SystemTraits, rows_first


class Clamped(NamedTuple):
    """What the input of a batch fixes, and what is constant while the nodes settle.

    sources: `[batch, ...]`, the input voltages, doubled to (v, −v).
    current: `[batch, ...]`, the current that they drive into the first layer's nodes at 0 volts.
    below: each layer's conductance to the layer below and to the bias sources, `[1, ...]`.
    total: `below` plus the conductance to the layer above, `[1, ...]`.
    """

    sources: Float[Array, "batch ..."]
    current: Float[Array, "batch ..."]
    below: tuple[Array, ...]
    total: tuple[Array, ...]


@checked
def resistive(
    network: Layer,
    *,
    gain: Positive = 100.0,
    polarity: Literal["alternating", "positive"] = "alternating",
    outputs: Literal["single", "paired"] = "single",
) -> System:
    """The deep resistive network of a chain: its weights are conductances, its units are voltages.

        E(g, x, v) = ½ Σ_ij g_ij (v_i − v_j)²,    g_ij >= 0,    v_0 = gain · (x, −x)
        sweep:  v_j ← clip( (Σ_i g_ij v_i + push_j) / Σ_i g_ij ),    i all neighbours of node j
        ∂E/∂g_ij = ½ (v_i − v_j)²

    E is half the power that the resistors turn into heat. By Kirchhoff's current law a circuit
    rests at the minimum of E within the bounds of its diodes. Ideal diodes take no power; they
    bound the voltage of a node. So F = E + βC is EP on a circuit. The nudge is a current of −β
    ∂C/∂v into the outputs, and each conductance learns from its own voltage. A sweep settles the
    odd layers, then the even ones. Each step is exact for given neighbours, so E never rises.

    A layer's units are nodes, and its activation tells which diodes they have. `linear` has none,
    `relu` has one to ground (v >= 0), `hard_sigmoid` has two (0 <= v <= 1 volt). An
    `activation_layer` of your own that projects onto an interval is allowed too. A weight is a
    resistor from a node of the layer below. A bias is a pair of resistors to sources of +gain and
    −gain volts.

    Shapes: x is `[batch, ..., n]`. The input layer has 2n sources, doubled on the last axis, since
    a resistor cannot be negative. The state is a tuple with one `[batch, ...]` array for each
    layer, in volts. Params have the structure of the network's, for an input of 2n, in units of
    conductance: `{"w": ..., "b": [2, ...]}`. A bias has the resistor to +gain first. Conductances
    start at |w| of the layers' own init. A free phase depends only on ratios of conductances. β is
    a conductance too: nudged outputs settle if it is below that of an output node (below half of it
    for pairs). `project` keeps conductances non-negative. Rules pass it on as their `absorb`, which
    training calls after each update.

    Args:
      network: a chain of `dense`, `conv`, `avg_pool` and `flatten`. Each of its activations ends a
        layer of nodes. Exactly one layer with weights stands between two of them.
      gain: volts per unit of input, > 0. Voltages shrink from layer to layer, since nodes average;
        a large gain compensates this.
      polarity: "alternating" reverses the diodes of every second unit (of an image: channel) of a
        hidden layer: v <= 0, or −1 <= v <= 0. Such inhibitory nodes pull the next layer down, which
        no conductance can do. "positive" reverses none.
      outputs: "single" reads each output as the voltage of a node. "paired" reads it as the
        difference of two nodes, v⁺ − v⁻. Each of the two has its own resistors to every hidden
        node, and β C drives opposite currents into them.

    Returns:
      A System with an energy. Its `write` sets single outputs. It is None for pairs, since the
      voltage of a pair does not determine its two nodes.

    Raises:
      ValueError: the network cannot be cut; a layer is no crossbar of resistors; an activation does
        not project onto an interval; a setting is out of range.

    Example (a unit between sources of x and −x volts, over 1 and 3 ohms: a divider):
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import chain, dense
      >>> system = resistive(chain(dense(1, bias=False)), gain=1.0)
      >>> params = ({"w": jnp.array([[1.0], [1 / 3]])},)
      >>> clamped = system.clamp(params, jnp.ones((1, 1)))
      >>> state = system.sweep(params, clamped, system.init_state(params, clamped))
      >>> state[0].round(6).tolist()
      [[0.5]]

    Source: Kendall, Pan, Manickavasagam, Bengio & Scellier 2020, Training end-to-end analog neural
    networks with equilibrium propagation (diodes, doubled sources, paired outputs); Scellier 2024,
    A fast algorithm to simulate nonlinear resistive networks (exact block coordinate descent,
    excitatory and inhibitory nodes, input gain).
    """
    blocks = cut(network)
    refuse_circuit(network, blocks)
    top = len(blocks)
    # A pair of outputs is the last layer twice, with resistors of its own for each.
    layers = [block.connection for block in blocks]
    if outputs == "paired":
        layers[-1] = resistors.twice(layers[-1])

    def own(params: Params, l: int) -> Params:
        return params[blocks[l].slice]

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        doubled = _doubled(shape)
        drawn, out = network.init(key, doubled)
        if outputs == "paired":
            apart = jax.random.fold_in(key, len(network.parts))
            other, last = network.init(apart, doubled)[0], blocks[-1].slice
            both = jax.tree.map(lambda a, b: jnp.stack([a, b]), drawn[last], other[last])
            drawn = (*drawn[: last.start], *both, *drawn[last.stop :])
        return resistors.conductances(drawn), out

    def clamp(params: Params, x: Array) -> Clamped:
        sources = gain * jnp.concatenate([x, -x], axis=-1)
        current, _ = layers[0].forward(resistors.drive(own(params, 0), gain), sources)
        # Conductances do not depend on the input, so they are computed for one row of ones.
        below: list[Array] = []
        above: list[Array] = []
        ones = jnp.ones_like(sources[:1])
        for l, layer in enumerate(layers):
            weights = resistors.load(own(params, l))
            conductance, residuals = layer.forward(weights, ones)
            ones = jnp.ones_like(conductance)
            below.append(conductance)
            above.append(layer.backward(weights, weights, residuals, ones)[1])
        total = [b + a for b, a in zip(below[:-1], above[1:], strict=True)]
        return Clamped(sources, current, tuple(below), (*total, below[-1]))

    def init_state(params: Params, clamped: Clamped) -> State:
        batch = clamped.current.shape[:1]
        return tuple(jnp.zeros(batch + b.shape[1:], clamped.current.dtype) for b in clamped.below)

    def from_below(params: Params, clamped: Clamped, state: State, l: int) -> Array:
        """The current from the layer below and the bias sources into nodes at 0 volts."""
        if l == 0:
            return clamped.current
        return layers[l].forward(resistors.drive(own(params, l), gain), state[l - 1])[0]

    def forward(params: Params, clamped: Clamped) -> State:
        """The feed-forward pass: each layer settles as if it were the last one of the circuit."""
        state: list[Array] = []
        for l in range(top):
            into = from_below(params, clamped, tuple(state), l)
            state.append(bounded(l, resistors.over(into, clamped.below[l])))
        return tuple(state)

    def from_above(params: Params, state: State, l: int) -> Array:
        """The current from the layer above into nodes at 0 volts."""
        weights = resistors.drive(own(params, l + 1), gain)  # a pull-back reads no bias
        _, residuals = layers[l + 1].forward(weights, state[l])
        return layers[l + 1].backward(weights, weights, residuals, state[l + 1])[1]

    def current(params: Params, clamped: Clamped, state: State, l: int) -> Array:
        """The current from all neighbours into nodes at 0 volts."""
        below = from_below(params, clamped, state, l)
        return below if l == top - 1 else below + from_above(params, state, l)

    def bounded(l: int, voltage: Array) -> Array:
        """The voltage within the bounds of the diodes of layer l."""
        sigma = blocks[l].activation.value
        if polarity == "positive" or l == top - 1:
            return sigma(voltage)
        turned = jnp.where(jnp.arange(voltage.shape[-1]) % 2 == 0, 1.0, -1.0).astype(voltage.dtype)
        return turned * sigma(turned * voltage)

    def in_turn(first: int) -> Any:
        """The sweep that starts with layer `first`, 0 or 1."""

        def sweep(
            params: Params, clamped: Clamped, state: State, push: Any = None, hold: bool = False
        ) -> State:
            # Nodes of one half have no resistor between them, so each half settles exactly.
            for half in (range(first, top, 2), range(1 - first, top, 2)):
                pushed = (None,) * top if push is None else push(state)
                new = list(state)
                for l in half:
                    if hold and l == top - 1:
                        continue
                    into, nudge = current(params, clamped, state, l), pushed[l]
                    into = into if nudge is None else into + nudge
                    new[l] = bounded(l, resistors.over(into, clamped.total[l]))
                state = tuple(new)
            return state

        return sweep

    def energy(params: Params, clamped: Clamped, state: State) -> Float[Array, " batch"]:
        squares = layers[0].forward(resistors.load(own(params, 0), gain**2), clamped.sources**2)[0]
        total = 0.5 * _per_example(squares)
        for l, v in enumerate(state):
            if l > 0:  # the power of the bias sources
                alone = jnp.zeros_like(state[l - 1][:1])
                squares = layers[l].forward(resistors.load(own(params, l), gain**2), alone)[0]
                total = total + 0.5 * _per_example(squares)
            into = from_below(params, clamped, state, l)
            total = total + _per_example(0.5 * clamped.total[l] * v * v - v * into)
        return total

    def denergy(
        params: Params, clamped: Clamped, phases: State, weights: Array
    ) -> tuple[Params, Array]:
        grads, dbelow = list(trees.zeros(params)), []
        for l, block in enumerate(blocks):
            below = clamped.sources[None] if l == 0 else phases[l - 1]
            grads[block.slice], into = resistors.power_gradient(
                layers[l], own(params, l), below, phases[l], weights, gain
            )
            dbelow.append(into)
        assert dbelow[0] is not None
        plus, minus = jnp.split(dbelow[0], 2, axis=-1)  # the sources are gain · (x, −x)
        return tuple(grads), gain * (plus - minus)

    def force(params: Params, clamped: Clamped, state: State) -> State:
        return tuple(
            current(params, clamped, state, l) - clamped.total[l] * v for l, v in enumerate(state)
        )

    return System(
        name="resistive",
        init=init,
        clamp=clamp,
        init_state=init_state,
        sweep=in_turn(0),
        energy=energy,
        denergy=denergy,
        force=force,
        dforce=dforce_of(denergy),
        readout=last_state(top) if outputs == "single" else paired_state(top),
        write=write_last if outputs == "single" else None,
        traits=SystemTraits(
            not_holomorphic=why_not_holomorphic(network),
            project=resistors.non_negative,
            forward=forward,
            reverse=in_turn(1) if top > 1 else None,
            trained=network.trained,
            take_rows=lambda clamped, rows: clamped._replace(
                sources=rows_first(clamped.sources, rows), current=rows_first(clamped.current, rows)
            ),
        ),
    )


def _doubled(shape: Shape) -> Shape:
    """The shape of the sources of an input."""
    if not shape:
        raise ValueError("resistive: one example has shape (), it needs one axis or more")
    return (*shape[:-1], 2 * shape[-1])


def _per_example(a: Array) -> Float[Array, " batch"]:
    """The sum over the units of each example."""
    return jnp.sum(a.reshape(a.shape[0], -1), axis=1)
