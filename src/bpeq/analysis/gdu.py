"""GDU: compares EP's update in each nudged sweep with BPTT's gradient in each time step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.analysis.gradient_fidelity import grouped
from bpeq.analysis.power_law import PowerLaw, power_law
from bpeq.core import trees
from bpeq.rules import Free, free_phase, nudged_phases
from bpeq.rules._references import follows
from bpeq.settings import Count, SettingError, checked
from bpeq.solvers import fixed_point, fixed_steps
from bpeq.types import Batch, Cost, Layer, Params, SolveInfo, Solver, State, System


class Gdu(NamedTuple):
    """EP's updates and BPTT's gradients, as float64 NumPy arrays.

    Args:
      betas: `[betas]`, the values of β.
      layers: the names of the layers that have a gradient.
      bptt: `[sweeps, layers]`, ‖BPTT's gradient through sweep T − t‖.
      ep: `[betas, sweeps, layers]`, ‖EP's update in nudged sweep t‖.
      mismatch: `[betas, sweeps, layers]`, ‖their difference‖ divided by the layer's largest entry
        of bptt. The entry of the same sweep would not do: it is zero before the error arrives.
      total: `[betas]`, the root of the summed squares of all differences, divided by that of BPTT.
      floor: `[betas]`, the approximate part of `total` due to round-off and the free phase's
        residual.
      fit: the power law of `total` in β, over the range where total exceeds 10 times its floor and
        neighbouring slopes agree.
      settled: whether the free phase met its tolerance.
      residual: the largest residual of the free phase.
    """

    betas: np.ndarray
    layers: tuple[str, ...]
    bptt: np.ndarray
    ep: np.ndarray
    mismatch: np.ndarray
    total: np.ndarray
    floor: np.ndarray
    fit: PowerLaw
    settled: bool
    residual: float

    @property
    def slope(self) -> float:
        """The fitted power of β; NaN if no range holds."""
        return np.nan if self.fit.order is None else self.fit.order


@checked
def gdu_mismatch(
    system: System,
    cost: Cost,
    params: Params,
    batch: Batch,
    *,
    sweeps: Count = 20,
    betas: Sequence[float] = (1e-2, 1e-3, 1e-4, 1e-5),
    nudging: Literal["one-sided", "centered"] = "one-sided",
    free: Solver | None = None,
    nudged: System | None = None,
    network: Layer | None = None,
) -> Gdu:
    """Measures how far EP's update in a nudged sweep is from BPTT's gradient in a time step.

    Both start at the free equilibrium s* = T(s*, θ). With t = 0, 1, ..., sweeps − 1

        EP     (1/β)( ∂E/∂θ(s_{t+1}) − ∂E/∂θ(s_t) ),  s_0 = s*, s_{t+1} the nudged sweep of s_t;
               centered: the mean of that at β and at −β
        BPTT   (∂T/∂θ)ᵀ ((∂T/∂s)ᵀ)ᵗ ∂C/∂s,  the gradient of C(s_T) with respect to the weights
               that sweep T − t used

    "Gradient descending updates": the two agree in each sweep as β → 0. The error is of order β,
    and for centered nudging of order β². This holds for synchronous sweeps. In an alternating sweep
    the error passes backward through the halves in reverse order. So the nudged phase must run the
    halves in reverse order. In the forward order the sum over sweeps is still right, but the single
    updates are wrong at any β.

    It computes in float64, also for float32 params. Do not call it inside jit.

    Args:
      system: a system with an energy.
      cost: the cost of the nudge.
      params: the weights.
      batch: x `[batch, ...]` and y. Updates are batch means.
      sweeps: the number of sweeps to compare, >= 1.
      betas: the values of β, each > 0.
      nudging: "one-sided" or "centered".
      free: the solver of s*; None: a fixed point to a residual of 1e-14, in at most 20,000 sweeps.
      nudged: the system whose sweep runs the nudged phase, with the same fixed points; None:
        `system`, with its halves in reverse order if it has halves.
      network: names the layers by its blocks; None: layers are named by their place in params.

    Returns:
      Updates, gradients and their differences.

    Raises:
      SettingError: a setting is out of range.
      ValueError: the system has no energy, or it is nudged outside its σ, so that its updates
        follow another cost.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense, tanh
      >>> from bpeq.systems import hopfield
      >>> system = hopfield(chain(dense(4), tanh(), dense(2)), schedule="synchronous")
      >>> params, _ = system.init(jax.random.key(0), (3,))
      >>> params = jax.tree.map(lambda p: 0.5 * p, params)
      >>> gdu = gdu_mismatch(system, squared_error(), params,
      ...                    Batch(jnp.ones((1, 3)), jnp.ones((1, 2))))
      >>> gdu.mismatch.shape, round(gdu.slope, 1)
      ((4, 20, 2), 1.0)

    Source: Ernoult, Grollier, Querlioz, Bengio & Scellier 2019, Updates of equilibrium prop match
    gradients of backprop through time for an RNN with static input.
    """
    if system.energy is None or system.denergy is None:
        raise ValueError(f"gdu_mismatch: the system {system.name!r} has no energy")
    if system.traits.nudge_outside not in ("", "linear"):
        raise ValueError(
            f"gdu_mismatch: the system {system.name!r} is nudged outside of its σ, and its updates "
            f"follow {follows(system, cost)}, not the cost; allowed: nudge = 'inside'"
        )
    grid = np.asarray(betas, np.float64)
    if grid.ndim != 1 or not grid.size or not (np.isfinite(grid) & (grid > 0)).all():
        raise SettingError("gdu_mismatch", "betas", betas, "must be numbers > 0")
    settle = fixed_point(1e-14, 20_000) if free is None else free
    reverse = system.traits.reverse or system.sweep
    runner = system._replace(sweep=reverse) if nudged is None else nudged

    def both(params: Params, batch: Batch, betas: Any) -> Any:
        rest = free_phase(system, settle, params, batch.x)
        bptt = _bptt_gradients(system, cost, params, batch, rest, sweeps)
        ep = jax.lax.map(
            lambda b: _ep_updates(system, runner, cost, params, batch, rest, sweeps, b, nudging),
            betas,
        )
        return bptt, ep, rest.info

    with jax.enable_x64(True):
        exact = trees.cast((params, batch), jnp.float64)
        bptt, ep, info = jax.device_get(jax.jit(both)(*exact, jnp.asarray(grid)))
    return _compare(grid, bptt, ep, info, nudging, network)


def alternating(synchronous: System, *, reverse: bool = False) -> System:
    """Makes a system whose sweep updates even states, then odd states, or the reverse.

    Each half runs the whole sweep and keeps half of it. So it is for checks, not for speed.

    Args:
      synchronous: a system whose state is a tuple and whose sweep updates all states at once, such
        as `hopfield(network, schedule="synchronous")`.
      reverse: update odd states first. An error passes backward through the forward order in this
        order.

    Returns:
      The system.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import chain, dense, linear
      >>> from bpeq.systems import hopfield
      >>> network = chain(dense(1), linear(), dense(1))
      >>> ones, x = network.init(jax.random.key(0), (1,))[0], jnp.ones((1, 1))
      >>> ones = jax.tree.map(jnp.ones_like, ones)
      >>> system = alternating(hopfield(network, schedule="synchronous"), reverse=True)
      >>> state = system.init_state(ones, system.clamp(ones, x))
      >>> [s.item() for s in system.sweep(ones, system.clamp(ones, x), state)]
      [3.0, 1.0]
    """

    def sweep(params: Params, clamped: Any, state: State, push: Any = None) -> State:
        for half in (1, 0) if reverse else (0, 1):
            swept = synchronous.sweep(params, clamped, state, push)
            state = tuple(
                new if l % 2 == half else old
                for l, (new, old) in enumerate(zip(swept, state, strict=True))
            )
        return state

    return synchronous._replace(sweep=sweep)


def _bptt_gradients(
    system: System, cost: Cost, params: Params, batch: Batch, rest: Free, sweeps: int
) -> Params:
    """∂C(s_T)/∂θ through sweep T − t, batch means, with t on axis 0."""
    _, pull_state = jax.vjp(lambda s: system.sweep(params, rest.clamped, s), rest.state)
    _, pull_params = jax.vjp(
        lambda p: system.sweep(p, system.clamp(p, batch.x), rest.state), params
    )

    def loss(state: State) -> Any:
        return cost.value(system.readout.forward(params, state)[0], batch.y).mean()

    def one(error: State, _: None) -> tuple[State, Params]:
        return pull_state(error)[0], pull_params(error)[0]

    return jax.lax.scan(one, jax.grad(loss)(rest.state), length=sweeps)[1]


def _ep_updates(
    system: System,
    runner: System,
    cost: Cost,
    params: Params,
    batch: Batch,
    rest: Free,
    sweeps: int,
    beta: Any,
    nudging: str,
) -> Params:
    """EP's update in nudged sweep t, batch means, with t on axis 0."""
    assert system.denergy is not None
    denergy = system.denergy
    signs = jnp.asarray([1.0, -1.0] if nudging == "centered" else [1.0])
    solver = fixed_steps(sweeps, record=True)
    _, info = nudged_phases(runner, cost, solver, params, rest, batch.y, signs * beta)

    def updates(after: State, sign: Any) -> Params:
        before = jax.tree.map(lambda s, s0: jnp.concatenate([s0[None], s[:-1]]), after, rest.state)
        weights = sign * jnp.asarray([1.0, -1.0]) / (beta * rest.output.shape[0])

        def one(new: State, old: State) -> Params:
            return denergy(params, rest.clamped, trees.stack([new, old]), weights)[0]

        return jax.vmap(one)(after, before)

    per_phase = jax.vmap(updates)(info.trajectory, signs)
    return jax.tree.map(lambda g: g.mean(axis=0), per_phase)


def _compare(
    grid: np.ndarray, bptt: Params, ep: Params, info: SolveInfo, nudging: str, network: Layer | None
) -> Gdu:
    """Compares updates and gradients, layer by layer."""
    exact, ours = grouped(bptt, network), grouped(ep, network)
    exact = {name: _rows(part, 1) for name, part in exact.items()}
    names = tuple(name for name, part in exact.items() if np.any(part))
    of_bptt = np.stack([np.linalg.norm(exact[name], axis=-1) for name in names], axis=-1)
    rows = {name: _rows(ours[name], 2) for name in names}
    of_ep = np.stack([np.linalg.norm(rows[name], axis=-1) for name in names], axis=-1)
    gap = np.stack([np.linalg.norm(rows[name] - exact[name], axis=-1) for name in names], axis=-1)
    sweeps = len(of_bptt)
    size, residual = np.sqrt(np.sum(of_bptt**2)), float(np.max(info.residual))
    total = np.sqrt(np.sum(gap**2, axis=(1, 2))) / size
    # A sweep's update is a difference of products of states, each known to ε. The residual of the
    # free phase moves the states in every sweep, equally at β and −β. A centered difference
    # cancels it.
    noise = np.finfo(np.float64).eps + (residual if nudging == "one-sided" else 0.0)
    floor = noise * np.sqrt(sweeps) / (grid * size)
    return Gdu(
        betas=grid,
        layers=names,
        bptt=of_bptt,
        ep=of_ep,
        mismatch=gap / of_bptt.max(axis=0),
        total=total,
        floor=floor,
        fit=power_law(grid.tolist(), total.tolist(), floor.tolist()),
        settled=bool(np.all(info.converged)),
        residual=residual,
    )


def _rows(tree: Any, axes: int) -> np.ndarray:
    """All leaves of a gradient, flattened and concatenated behind their leading axes."""
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
    return np.concatenate([leaf.reshape(*leaf.shape[:axes], -1) for leaf in leaves], axis=-1)
