"""`check_energy`: what an energy promises to equilibrium propagation, and whether it keeps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.analysis.energy_contract._batch_independence import batch_independence_finding
from bpeq.analysis.energy_contract._context import Context, Finding
from bpeq.analysis.energy_contract._corners import corner_finding
from bpeq.analysis.energy_contract._derivatives import gradient_finding, symmetry_finding
from bpeq.analysis.energy_contract._equilibria import bounded_finding, unique_finding
from bpeq.analysis.energy_contract._holomorphy import holomorphic_finding
from bpeq.analysis.energy_contract._preconditions import not_finite, refuse_misfits
from bpeq.analysis.equilibrium import Curvature, curvature
from bpeq.core import trees
from bpeq.core.compat import enable_x64
from bpeq.costs import squared_error
from bpeq.settings import Count, Positive, SettingError, checked
from bpeq.systems import from_energy
from bpeq.types import Cost, Key, Params, State, System

CURVED = 4  # examples whose curvature is computed


class EnergyContract(NamedTuple):
    """Seven findings; `str` of it is a table.

    gradient:    the figure is the largest relative error of a derivative.
    symmetric:   ‖J − Jᵀ‖ / ‖J‖ of the force's Jacobian J.
    bounded:     the β up to which E − βC keeps its minimum at the equilibria.
    unique:      how many states random starts settle in.
    holomorphic: by how much Cauchy and Riemann's equations fail.
    corners:     which slope autodiff takes at the first corner: 0 the outer one, 1 the inner one.
    alone:       how much an example's energy or sweep changes with its batch mates.
    """

    gradient: Finding
    symmetric: Finding
    bounded: Finding
    unique: Finding
    holomorphic: Finding
    corners: Finding
    alone: Finding

    @property
    def passed(self) -> bool:
        """Whether no check fails; a note is no failure."""
        return all(finding.passed is not False for finding in self)

    def __str__(self) -> str:
        verdicts = {True: "ok", False: "FAILS", None: "note"}
        return "\n".join(
            f"{f.name:12} {verdicts[f.passed]:6} {f.figure:9.2g}  {f.words}" for f in self
        )


@checked
def check_energy(
    energy: System | Callable[[Params, State, Array], Array],
    params: Params,
    x: Array,
    *,
    key: Key,
    init_state: Callable[[Params, Array], State] | None = None,
    readout: Callable[[Params, State], Array] | None = None,
    project: Callable[[State], State] | None = None,
    step_size: Positive = 0.5,
    cost: Cost | None = None,
    y: Array | None = None,
    beta: Positive = 0.1,
    holomorphic: bool = False,
    starts: Count = 8,
    spread: Positive = 1.0,
    sweeps: Count = 5000,
) -> EnergyContract:
    """Checks in float64, at a few examples, if an energy is what equilibrium propagation needs.

        gradient     the force is −∂E/∂s, denergy ∂E/∂θ and dforce ∂force/∂θ: against central
                     differences, along a random line of each leaf. It catches a custom derivative
                     of another function, and a stop_gradient that matters.
        symmetric    the Jacobian J of the force is symmetric. If not, the force is no energy's
                     slope.
        bounded      E − βC keeps its minimum for β < K / λ, where K = (G H⁻¹ Gᵀ)⁻¹, H is the
                     Hessian of E at the equilibrium, G the readout's Jacobian and λ the largest
                     curvature of the cost (1 for squared error). It fails at a `beta` beyond, or if
                     the phase at −β does not settle. It is a note if E − βC falls without bound
                     elsewhere.
        unique       random starts settle in the same state to 1e-4. It also fails if one of them
                     does not settle in `sweeps`.
        holomorphic  E (of a system: its sweep, readout and denergy) is complex-differentiable in
                     the state. If not, it names the operation and its line. The program shows
                     functions in pieces such as max, abs or a choice by an order of the state;
                     Cauchy and Riemann's equations show the rest. A note, unless `holomorphic` is
                     set or the system declares otherwise.
        corners      where one-sided derivatives differ, and which of them autodiff takes: at common
                     numbers and the program's own; else where an operation in pieces turns on lines
                     between states. A note, unless autodiff takes neither side nor one between.
        alone        an example's energy and sweep are the same to 1e-9 without its batch mates.

    Samples can miss something: an equilibrium that no start finds, a derivative that is wrong in
    places only. If energy or force is not finite, the contract says only that.

    Args:
      energy: a System (of an imperfect device its ideal one is checked), or (params, state, x) ->
        scalar for ONE example, as `from_energy` takes it.
      params: weights. Integer leaves are constants.
      x: a few inputs, `[batch, ...]`; curvature is computed for the first four.
      key: draws starts, states and lines.
      init_state, readout: needed with a plain energy, as `from_energy` takes them.
      project: onto the allowed states, with a plain energy; None if all are allowed.
      step_size: of a sweep of a plain energy, > 0.
      cost: None is squared error.
      y: the cost's targets for x; None is zeros.
      beta: the nudge that the energy will be used with, β > 0.
      holomorphic: whether the energy must be holomorphic.
      starts: random starts, >= 1.
      spread: of these around the system's own start, a standard deviation > 0.
      sweeps: of a phase at most, >= 1; it settles to 1e-10.

    Returns:
      An `EnergyContract`: a `Finding` for each check.

    Raises:
      SettingError: a plain energy without init_state or readout, or a setting out of range.
      ValueError: a function does not take what the others give; an energy, a state or an output is
        not of real floating numbers.

    Example (a double well, which settles on either side):
      >>> import jax, jax.numpy as jnp
      >>> contract = check_energy(
      ...     lambda p, s, x: jnp.sum((s**2 - 1) ** 2) / 4 - p * jnp.sum(s * x),
      ...     jnp.ones(()), 0.1 * jnp.ones((2, 3)), key=jax.random.key(0),
      ...     init_state=lambda p, x: jnp.zeros(3), readout=lambda p, s: s, step_size=0.2)
      >>> contract.gradient.passed, contract.unique.passed, contract.passed
      (True, False, False)

    Source: Scellier & Bengio 2017 for the free and nudged phases; Laborieux & Zenke 2022 for
    holomorphic energies; the derivative at a corner as a choice: Bertoin et al. 2021, Numerical
    influence of ReLU'(0) on backpropagation.
    """
    if isinstance(energy, System):
        system, user_energy = energy.ideal, None
    else:
        for name, part in {"init_state": init_state, "readout": readout}.items():
            if part is None:
                raise SettingError("check_energy", name, None, "must be given with a plain energy")
        assert init_state is not None
        assert readout is not None
        user_energy = energy
        system = from_energy(
            energy, init_state, readout, _no_init, step_size=step_size, project=project
        )
    keys = jax.random.split(key, 5)
    extra = jax.random.split(jax.random.fold_in(key, 1), 3)
    with enable_x64(True):
        params, x = trees.cast((params, jnp.asarray(x)), jnp.float64)
        y = y if y is None else trees.cast(jnp.asarray(y), jnp.float64)
        cost = squared_error() if cost is None else cost
        refuse_misfits(system, params, x)
        context = Context(system, params, x, cost, y, sweeps, user_energy, project)
        if (infinite := not_finite(context, extra[0])) is not None:
            others = EnergyContract._fields[1:]
            return EnergyContract(
                infinite, *(Finding(name, None, np.nan, "not checked") for name in others)
            )
        curves, reason = _curvature(system, params, x)
        dense = None  # the asymmetry of the dense Jacobian at the equilibria
        if curves is not None and curves.settled.any():
            dense = float(np.max(curves.asymmetry[curves.settled]))
        return EnergyContract(
            gradient_finding(context, keys[0]),
            symmetry_finding(context, keys[1], dense),
            bounded_finding(context, curves, reason, beta, keys[2]),
            unique_finding(context, keys[3], starts, spread),
            holomorphic_finding(context, holomorphic, keys[4]),
            corner_finding(context, extra[1]),
            batch_independence_finding(context, extra[2]),
        )


def _curvature(system: System, params: Params, x: Array) -> tuple[Curvature | None, str]:
    """That of the first examples; or None, and the reason."""
    try:
        return curvature(system, params, x[:CURVED]), ""
    except (ValueError, TypeError) as error:  # too many units; no forward mode, for a custom_vjp
        return None, str(error).splitlines()[0]


def _no_init(key: Any, shape: Any) -> Any:
    raise TypeError("check_energy: takes params, and draws none")
