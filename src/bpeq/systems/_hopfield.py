"""Hopfield networks out of ordinary layers: one energy, cut out of a chain at its activations."""

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
from bpeq.systems._feedback import init_feedback, pulled_down, untied_dforce
from bpeq.systems._graph import Edge, Graph, Skips, build_graph, init_skips, state_shapes, turns
from bpeq.systems._readout import activation_names, last_block, last_state
from bpeq.systems._refusals import refuse_connections, refuse_network, why_not_holomorphic
from bpeq.types import Key, Layer, Params, Shape, State, System, SystemTraits, rows_first


class Clamped(NamedTuple):
    """What a batch's input fixes: the drive that each state gets from it, None where it gets none.

    residuals: what the pull-backs of the input's connections need, by the connection's name.
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

    with s_0 = x, L the top state and the gain γ = 1, unless it is set. The connections (i, l) are
    the chain's own, (l−1, l), and the skips. f_ilᵀ is the layer's `backward`: both are the very
    layers that backprop uses, with the same parameters.

    Shapes: x `[batch, ...]`; the state is a tuple of one `[batch, ...]` array a block. Energies are
    per example, `[batch]`. Params are the network's tuple, drawn by `network.init` with the same
    key; then {"skips": {"0_2": ...}} where there are skips; then, untied, {"feedback": {...}}, with
    an entry for every connection that leaves a state, named like its block (`dense_2`) or its skip.

    Args:
      network: a chain; each of its activations closes a block. The last block may end without one,
        which is a linear output.
      output: "state" makes the last block's units states, nudged by the cost (squared error);
        "readout" makes them a function of the last hidden state, no part of E, through which the
        cost nudges that state (cross-entropy); errors pass it by its own weights, untied or not.
      schedule: "alternating" updates the states in turn, in groups that no connection joins: in a
        chain odd blocks, then even ones, with max-pooling between states the other way round. Where
        every connection is affine each group's update is an
        exact block minimisation, so E never rises and no 2-cycle exists; the same holds for
        max-pooling below non-negative states. With soft-pooling, layer normalisation or attention
        between states E can rise, and sweeps can cycle.
        "synchronous" updates all at once, the update that the GDU property of Ernoult et al. needs;
        a symmetric net can then oscillate between two states.
      skips: (i, j) -> a connection from state i to a later state j; state 0 is the clamped input,
        state l that of the l-th block. A skip past an own connection, (l−1, l), is a second one.
        In a config: [system] skips = {"0-2" = "dense(10)"}. The identity is `linear()`.
      feedback: "tied" is the above. "untied" lets activity come down by weights of its own, B in
        place of θ in f_ijᵀ. The force's Jacobian is then not symmetric and there is no energy:
        `energy` and `denergy` are None; `force` and `dforce` serve, the latter for B too.
      angle: untied B are drawn at this angle from the forward weights, in degrees, 0 to 180, leaf
        by leaf and of their norm; 90 is unrelated feedback, 0 the forward weights themselves.
      nudge: "inside" adds the push to the drive: fixed points are stationary points of E + βC.
        "outside" adds it to the new state, s ← σ(drive) + push, as some recipes do; as β → 0 that
        is a push of C's slope over σ′, another cost's unless σ′ = 1 (for squared error and a
        logistic output that of the cross-entropy), and it can leave σ's range.
      gain: γ > 0. What comes down from state j to state l is scaled by γ^(j−l): near 0 the free
        phase is the feed-forward pass. There is an energy all the same, since the terms of state l
        weigh γ^(l−L) in it; the top's weigh 1, so that a cost nudges as ever. `force` is −∂E/∂s,
        and weighs the same with untied feedback.

    Raises:
      ValueError: the network cannot be cut; an activation has no potential (gelu); a layer has no
        per-example energy (batch norm, dropout); a readout without a hidden block before it;
        max-pooling between states below an activation that takes negative values; a skip that
        names no two states or touches a readout, or that hides an activation; a gain whose powers
        leave float32. From `init`: a skip whose shapes do not fit.

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
    one σ a block is Laborieux et al. 2021's; untied feedback Scellier et al. 2018's, Generalization
    of equilibrium propagation to vector field dynamics; the push outside σ Ernoult et al. 2019's;
    the gain Xie & Seung 2003's, Equivalence of backpropagation and contrastive Hebbian learning.
    """
    blocks = cut(network)
    refuse_network(network, blocks, output)
    top = len(blocks) if output == "state" else len(blocks) - 1
    graph = build_graph(blocks, top, len(network.parts), skips, gain)
    refuse_connections(graph)
    groups = turns(graph, schedule)
    net = _Hopfield(network, graph, feedback == "untied", angle, nudge, groups)
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
        write=net.write if output == "state" else None,
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
    """The functions of a Hopfield system, over its graph. States are numbered from 1, the input 0.

    groups: the states that a sweep updates, one group after the other.
    """

    network: Layer
    graph: Graph
    untied: bool
    angle: float
    nudge: str
    groups: tuple[tuple[int, ...], ...]

    def init(self, key: Key, shape: Shape) -> tuple[Params, Shape]:
        """The network's own weights; behind them those of the skips, and the untied feedback."""
        graph = self.graph
        params, out = self.network.init(key, shape)
        if not graph.skip_edges and not self.untied:
            return params, out
        shapes = state_shapes(graph, shape)
        if graph.skip_edges:
            skip_key = jax.random.fold_in(key, graph.parts)
            params = (*params, {"skips": init_skips(graph, skip_key, shapes)})
        if self.untied:
            back_key = jax.random.fold_in(key, graph.parts + 1)
            feedback = init_feedback(graph, params, back_key, shapes, self.angle)
            params = (*params, {"feedback": feedback})
        return params, out

    def clamp(self, params: Params, x: Array) -> Clamped:
        """What the input drives, by the connections that leave it."""
        drives: list[Array | None] = [None] * len(self.graph.states)
        residuals = {}
        for edge in self.graph.out_of(0):
            drive, residuals[edge.name] = edge.layer.forward(self.graph.own(params, edge), x)
            before = drives[edge.target - 1]
            drives[edge.target - 1] = drive if before is None else before + drive
        return Clamped(tuple(drives), residuals)

    def take_rows(self, clamped: Clamped, rows: Array) -> Clamped:
        """Sweeps read the drives alone."""
        return Clamped(rows_first(clamped.drives, rows), {})

    def init_state(self, params: Params, clamped: Clamped) -> State:
        """Zeros."""
        first = clamped.drives[0]
        assert first is not None
        state = [jnp.zeros_like(first)]
        for edge in self.graph.edges[1 : len(self.graph.states)]:
            own = self.graph.own(params, edge)
            shape = jax.eval_shape(edge.layer.forward, own, state[-1])[0]
            state.append(jnp.zeros(shape.shape, shape.dtype))
        return tuple(state)

    def from_below(self, params: Params, clamped: Clamped, state: State, l: int) -> Array:
        """Σ_i f_il(s_i), the input's share included."""
        terms = [
            edge.layer.forward(self.graph.own(params, edge), state[edge.source - 1])[0]
            for edge in self.graph.into(l)
            if edge.source > 0
        ]
        drive = clamped.drives[l - 1]
        return functools.reduce(jnp.add, terms if drive is None else [*terms, drive])

    def from_above(self, params: Params, state: State, edge: Edge) -> Array:
        """γ^(j−l) f_ljᵀ(s_j), by the feedback weights if they are untied."""
        own = self.graph.own(params, edge)
        back = params[-1]["feedback"][edge.name] if self.untied else own
        down = self.graph.gain ** (edge.target - edge.source)
        return times(down, pulled_down(edge, own, back, state))

    def drive(self, params: Params, clamped: Clamped, state: State, l: int) -> Array:
        """All that comes into state l."""
        terms = [self.from_above(params, state, edge) for edge in self.graph.out_of(l)]
        return functools.reduce(jnp.add, [self.from_below(params, clamped, state, l), *terms])

    def forward(self, params: Params, clamped: Clamped) -> State:
        """The feed-forward pass: every state is driven from below alone."""
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
        # Where a solver carries all states, groups go from the input on: the start is read too.
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
        """The new state l, from its drive and its push."""
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
        """∂E/∂θ_il = −γ^(l−L) times f_il's parameter pull-back of s_l; dx its input pull-back."""
        pulled, dx = {}, None
        for edge in self.graph.edges:
            own, above = self.graph.own(params, edge), phases[edge.target - 1]
            if edge.source == 0:  # the same input in all phases, so their states contract first
                residuals, seed = clamped.residuals[edge.name], contract(weights, above)
            else:  # one product for all phases, their batches one after the other
                seed = weighted(weights, above)
                _, residuals = edge.layer.forward(own, merge_phases(phases[edge.source - 1]))
            seed = times(self.graph.weight(edge.target), -seed)
            pulled[edge.name], below = edge.layer.backward(own, own, residuals, seed)
            if edge.source == 0:
                dx = below if dx is None else dx + below
        return self.graph.placed(params, pulled), dx

    def force(self, params: Params, clamped: Clamped, state: State) -> State:
        """−∂E/∂s_l = γ^(l−L) ( drive_l − σ_l⁻¹(s_l) )."""
        return tuple(
            times(
                self.graph.weight(l),
                self.drive(params, clamped, state, l) - inverse(block.activation, s),
            )
            for l, (block, s) in enumerate(zip(self.graph.states, state, strict=True), start=1)
        )

    def write(self, state: State, output: Array) -> State:
        """The state with its top set."""
        return (*state[:-1], output)
