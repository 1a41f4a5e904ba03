"""Hopfield networks made of ordinary layers: one energy, from a chain cut at its activations."""

from __future__ import annotations

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bpeq.core import trees
from bpeq.core.tracing import carries_all
from bpeq.layers import cut
from bpeq.settings import Degrees, Positive, checked
from bpeq.systems._derivatives import contract, dforce_of, inverse, merge_phases, times, weighted
from bpeq.systems._graph import Edge, Graph, Skips, build_graph, init_extra, turns, untied_dforce
from bpeq.systems._readout import activation_names, last_block, last_state, write_last
from bpeq.systems._refusals import refuse_connections, refuse_network, why_not_holomorphic
from bpeq.types import Key, Layer, Params, Shape, State, System, SystemTraits, rows_first


class Clamped(NamedTuple):
    """What the input of a batch fixes.

    drives: the drive that each state gets from the input; None for a state that gets none.
    residuals: the residuals of the input's connections, which their pull-backs need, by name.
    """

    drives: tuple[Float[Array, "batch ..."] | None, ...]
    residuals: dict[str, Any]


@checked
def hopfield(
    network: Layer,
    *,
    output: Literal["state", "readout"] = "state",
    schedule: Literal["alternating", "synchronous"] = "alternating",
    skips: Skips | None = None,
    feedback: Literal["tied", "untied"] = "tied",
    angle: Degrees = 90.0,
    nudge: Literal["inside", "outside"] = "inside",
    gain: Positive = 1.0,
) -> System:
    """The layered Hopfield network of a chain: its activations are states, the rest couples them.

        E(θ, x, s) = Σ_l γ^(l−L) ( A_l(s_l) − Σ_i ⟨s_l, f_il(θ_il, s_i)⟩ ),   σ_l = (∇A_l)⁻¹
        sweep:  s_l ← σ_l( Σ_i f_il(s_i) + Σ_j γ^(j−l) f_ljᵀ(s_j) + γ^(L−l) push_l )
        −∂E/∂θ_il = γ^(l−L) times f_il's parameter pull-back of s_l

    with s_0 = x, L the top state, and the gain γ, which is 1 by default. The connections (i, l) are
    those of the chain, (l−1, l), and the skips. f_ilᵀ is the layer's `backward`. Backprop uses the
    same layers with the same parameters.

    Shapes: x is `[batch, ...]`. The state is a tuple with one `[batch, ...]` array for each block.
    Energies are per example, `[batch]`. Params are the network's tuple, as `network.init` draws it
    with the same key. With skips {"skips": {"0_2": ...}} follows. With untied feedback
    {"feedback": {...}} follows: one entry for each connection that leaves a state, with the name of
    its block (`dense_2`) or of its skip.

    Args:
      network: a chain. Each of its activations ends a block. The last block may have no activation;
        its output is then linear.
      output: "state" makes the last block's units states, which the cost nudges (squared error).
        "readout" makes them a function of the last hidden state, which is not part of E. The cost
        nudges that state through the function (cross-entropy). Errors pass through it by its own
        weights, also if feedback is untied.
      schedule: "alternating" updates groups of states in turn; no connection joins two states of a
        group. In a chain the odd blocks come first, then the even ones; with max-pooling between
        states the even ones come first. If all connections are affine, the update of a group is an
        exact block minimisation: E never rises and no 2-cycle exists. The same holds for
          max-pooling
        below non-negative states. With soft-pooling, layer normalisation or attention between
        states E can rise and sweeps can cycle. "synchronous" updates all states at once, as the GDU
        property of Ernoult et al. needs; a symmetric net can then oscillate between two states.
      skips: (i, j) -> a connection from state i to a later state j. State 0 is the clamped input,
        state l is the one of block l. A skip (l−1, l) is a second connection beside the chain's
        own. In a config: [system] skips = {"0-2" = "dense(10)"}. The identity is `linear()`. None:
        no skips.
      feedback: "tied" is the formula above. "untied" uses separate weights B in place of θ in
        f_ijᵀ. The Jacobian of the force is then not symmetric and there is no energy: `energy` and
        `denergy` are None. `force` and `dforce` exist; `dforce` also gives the derivative for B.
      angle: angle between untied B and the forward weights, in degrees, 0 to 180. Each leaf is
        drawn at this angle, with the norm of the forward leaf. 90 is unrelated feedback; 0 is the
        forward weights themselves.
      nudge: "inside" adds the push to the drive; fixed points are stationary points of E + βC.
        "outside" adds it to the new state, s ← σ(drive) + push, as some recipes do. As β → 0 this
        is a push with C's slope over σ′, which belongs to another cost unless σ′ = 1. For squared
        error and a logistic output it is the cross-entropy. The state can then leave the range of
        σ.
      gain: γ > 0 scales the input that comes down from state j to state l by γ^(j−l). Near 0 the
        free phase is the feed-forward pass. An energy exists, since the terms of state l have
        weight γ^(l−L) in it. The top's terms have weight 1, so the cost nudges it as usual. `force`
        is −∂E/∂s and has the same weights, also with untied feedback.

    Returns:
      A System, without an energy if feedback is untied. It can clamp its output if `output` is
      "state".

    Raises:
      ValueError: the network cannot be cut; an activation has no potential (gelu); a layer has no
        per-example energy (batch norm, dropout); a readout has no hidden block before it;
        max-pooling between states is below an activation with negative values; a skip does not name
        two states, touches a readout or hides an activation; powers of the gain are out of
        float32's range. From `init`: the shapes of a skip do not fit.

    Example:
      >>> import jax
      >>> from bpeq.layers import chain, dense, hard_sigmoid
      >>> network = chain(dense(4), hard_sigmoid(), dense(2))
      >>> system = hopfield(network, skips={(0, 2): dense(2)})
      >>> params, _ = system.init(jax.random.key(0), (3,))
      >>> params[-1]["skips"]["0_2"]["w"].shape
      (3, 2)
      >>> clamped = system.clamp(params, jax.numpy.ones((1, 3)))
      >>> [s.shape for s in system.init_state(params, clamped)]
      [(1, 4), (1, 2)]

    Source: Hopfield 1984; Scellier & Bengio 2017, Equilibrium propagation; the layered form with
    one σ per block: Laborieux et al. 2021; untied feedback: Scellier et al. 2018, Generalization of
    equilibrium propagation to vector field dynamics; the push outside σ: Ernoult et al. 2019; the
    gain: Xie & Seung 2003, Equivalence of backpropagation and contrastive Hebbian learning.
    """
    # Refuse networks without an energy before any weight is drawn.
    blocks = cut(network)
    refuse_network(network, blocks, output)
    top = len(blocks) if output == "state" else len(blocks) - 1
    graph = build_graph(blocks, top, len(network.parts), skips, gain)
    refuse_connections(graph)
    # States of one group have no connection between them, so one update serves all of them.
    groups = turns(graph, schedule)
    net = _Hopfield(network, graph, feedback == "untied", angle, nudge, groups)
    # Rules must know the output's σ: it decides what a push outside of it means.
    sigma = activation_names(network)[top - 1]
    return System(
        name="hopfield",
        init=net.init,
        clamp=net.clamp,
        init_state=net.init_state,
        sweep=net.sweep,
        energy=None if net.untied else net.energy,
        denergy=None if net.untied else net.denergy,
        force=net.force,
        dforce=untied_dforce(graph) if net.untied else dforce_of(net.denergy),
        readout=last_state(top) if output == "state" else last_block(blocks[-1], top),
        write=write_last if output == "state" else None,
        traits=SystemTraits(
            not_holomorphic=why_not_holomorphic(network, graph.skip_edges),
            forward=net.forward,
            reverse=net._replace(groups=groups[::-1]).sweep if len(groups) > 1 else None,
            nudge_outside=sigma if nudge == "outside" else "",
            linear_output=output == "state" and sigma == "linear",
            take_rows=net.take_rows,
            trained=network.trained,
        ),
    )


class _Hopfield(NamedTuple):
    """The functions of a Hopfield system, over its graph. State 0 is the input, states start at 1.

    groups: the groups of states, in the order in which a sweep updates them.
    """

    network: Layer
    graph: Graph
    untied: bool
    angle: float
    nudge: str
    groups: tuple[tuple[int, ...], ...]

    def init(self, key: Key, shape: Shape) -> tuple[Params, Shape]:
        """The network's weights, then those of the skips, then the untied feedback."""
        params, out = self.network.init(key, shape)
        angle = self.angle if self.untied else None
        return init_extra(self.graph, key, params, shape, angle), out

    def clamp(self, params: Params, x: Array) -> Clamped:
        """The drives of the states by connections that leave the input."""
        drives: list[Array | None] = [None] * len(self.graph.states)
        residuals = {}
        for edge in self.graph.out_of(0):
            drive, residuals[edge.name] = edge.layer.forward(self.graph.own(params, edge), x)
            before = drives[edge.target - 1]
            drives[edge.target - 1] = drive if before is None else before + drive
        return Clamped(tuple(drives), residuals)

    def take_rows(self, clamped: Clamped, rows: Array) -> Clamped:
        """The rows of the drives. A sweep does not read the residuals."""
        return Clamped(rows_first(clamped.drives, rows), {})

    def init_state(self, params: Params, clamped: Clamped) -> State:
        """Zeros, in the shapes that the connections give."""
        first = clamped.drives[0]
        assert first is not None
        state = [jnp.zeros_like(first)]
        for edge in self.graph.edges[1 : len(self.graph.states)]:
            own = self.graph.own(params, edge)
            shape = jax.eval_shape(edge.layer.forward, own, state[-1])[0]
            state.append(jnp.zeros(shape.shape, shape.dtype))
        return tuple(state)

    def from_below(self, params: Params, clamped: Clamped, state: State, l: int) -> Array:
        """Σ_i f_il(s_i), with the part from the input."""
        terms, drive = [], clamped.drives[l - 1]
        for edge in self.graph.into(l):
            if edge.source > 0:
                own = self.graph.own(params, edge)
                terms.append(edge.layer.forward(own, state[edge.source - 1])[0])
        return functools.reduce(jnp.add, terms if drive is None else [*terms, drive])

    def from_above(self, params: Params, state: State, edge: Edge) -> Array:
        """γ^(j−l) f_ljᵀ(s_j), with the feedback weights if they are untied."""
        own = self.graph.own(params, edge)
        back = params[-1]["feedback"][edge.name] if self.untied else own
        down = self.graph.gain ** (edge.target - edge.source)
        return times(down, edge.pulled_down(own, back, state))

    def drive(self, params: Params, clamped: Clamped, state: State, l: int) -> Array:
        """The whole input of state l, from below and from above."""
        terms = [self.from_above(params, state, edge) for edge in self.graph.out_of(l)]
        return functools.reduce(jnp.add, [self.from_below(params, clamped, state, l), *terms])

    def forward(self, params: Params, clamped: Clamped) -> State:
        """The feed-forward pass: each state gets input from below alone."""
        state: list[Array] = []
        for l, block in enumerate(self.graph.states, start=1):
            below = self.from_below(params, clamped, tuple(state), l)
            state.append(block.activation.value(below))
        return tuple(state)

    def sweep(
        self, params: Params, clamped: Clamped, state: State, push: Any = None, hold: bool = False
    ) -> State:
        """s_l ← σ_l(drive_l + γ^(L−l) push_l), one group of states after the other."""
        top = len(state)
        # A loop that carries all states starts with the group next to the input.
        for group in sorted(self.groups) if carries_all() else self.groups:
            pushed = (None,) * top if push is None else push(state)
            new = list(state)
            for l in group:
                if hold and l == top:
                    continue
                drive = self.drive(params, clamped, state, l)
                new[l - 1] = self.updated(l, drive, pushed[l - 1])
            state = tuple(new)
        return state

    def updated(self, l: int, drive: Array, push: Array | None) -> Array:
        """The new state l from its drive and its push."""
        sigma = self.graph.states[l - 1].activation.value
        if push is None:
            return sigma(drive)
        push = times(1.0 / self.graph.weight(l), push)
        return sigma(drive + push) if self.nudge == "inside" else sigma(drive) + push

    def energy(self, params: Params, clamped: Clamped, state: State) -> Float[Array, " batch"]:
        """Σ_l γ^(l−L) ( A_l(s_l) − ⟨s_l, Σ_i f_il(s_i)⟩ )."""
        total = jnp.zeros_like(trees.max_abs(state))
        for l, (block, s) in enumerate(zip(self.graph.states, state, strict=True), start=1):
            assert block.activation.potential is not None
            below = self.from_below(params, clamped, state, l)
            units = block.activation.potential(s) - s * below
            per_example = units.reshape(units.shape[0], -1).sum(axis=1)
            total = total + times(self.graph.weight(l), per_example)
        return total

    def denergy(
        self, params: Params, clamped: Clamped, phases: State, weights: Array
    ) -> tuple[Params, Any]:
        """∂E/∂θ_il = −γ^(l−L) times f_il's parameter pull-back of s_l; dx: the input's."""
        pulled, dx = {}, None
        for edge in self.graph.edges:
            own, above = self.graph.own(params, edge), phases[edge.target - 1]
            if edge.source == 0:  # all phases share the input, so their states contract first
                residuals, seed = clamped.residuals[edge.name], contract(weights, above)
            else:  # one product for all phases, as one batch
                seed = weighted(weights, above)
                _, residuals = edge.layer.forward(own, merge_phases(phases[edge.source - 1]))
            seed = times(self.graph.weight(edge.target), -seed)
            pulled[edge.name], below = edge.layer.backward(own, own, residuals, seed)
            if edge.source == 0:
                dx = below if dx is None else dx + below
        return self.graph.placed(params, pulled), dx

    def force(self, params: Params, clamped: Clamped, state: State) -> State:
        """−∂E/∂s_l = γ^(l−L) ( drive_l − σ_l⁻¹(s_l) )."""
        forces = []
        for l, (block, s) in enumerate(zip(self.graph.states, state, strict=True), start=1):
            gap = self.drive(params, clamped, state, l) - inverse(block.activation, s)
            forces.append(times(self.graph.weight(l), gap))
        return tuple(forces)
