"""`check_energy`: checks the properties of an energy that equilibrium propagation needs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.analysis.energy_contract import _corners, _derivatives, _equilibria, _holomorphy
from bpeq.analysis.energy_contract._context import Context, Finding, not_finite, refuse_misfits
from bpeq.analysis.equilibrium import Curvature, curvature
from bpeq.core import trees
from bpeq.costs import squared_error
from bpeq.settings import Count, Positive, SettingError, checked
from bpeq.systems import from_energy
from bpeq.types import Cost, Key, Params, State, System

CURVED = 4  # the number of examples whose curvature is computed


class EnergyContract(NamedTuple):
    """Seven findings. `str` of it is a table.

    Args:
      gradient: its figure is the largest relative error of a derivative.
      symmetric: ‖J − Jᵀ‖ / ‖J‖ of the force's Jacobian J.
      bounded: the β up to which E − βC keeps its minimum at the equilibria.
      unique: the number of states in which random starts settle.
      holomorphic: the error of Cauchy and Riemann's equations.
      corners: the slope that autodiff takes at the first corner: 0 the outer one, 1 the inner one.
      alone: the change of an example's energy or sweep due to its batch mates.
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
        """Whether no check fails. A note is not a failure."""
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

        gradient     the force is −∂E/∂s, denergy is ∂E/∂θ and dforce is ∂force/∂θ. The check uses
                     central differences along a random line of each leaf. It finds a custom
                     derivative of another function, and a stop_gradient that matters.
        symmetric    the Jacobian J of the force is symmetric. Otherwise the force is not the
                     gradient of any energy.
        bounded      E − βC keeps its minimum for β < K / λ, where K = (G H⁻¹ Gᵀ)⁻¹, H is the
                     Hessian of E at the equilibrium, G the readout's Jacobian and λ the largest
                     curvature of the cost (1 for squared error). It fails if `beta` is larger, or
                     if the phase at −β does not settle. It is a note if E − βC falls without bound
                     elsewhere.
        unique       random starts settle in the same state to 1e-4. It also fails if one of them
                     does not settle in `sweeps`.
        holomorphic  E (of a system: its sweep, readout and denergy) is complex-differentiable in
                     the state. Cauchy and Riemann's equations are tested at a complex state. The
                     traced program shows piecewise functions such as max, abs or a choice by an
                     order of the state. Around places where they change their piece, circles of
                     complex states show if the pieces are one function, as in the stable form of
                     log Σ eˢ. If E is not complex-differentiable, the finding names the operation
                     and its line. It is a note, unless `holomorphic` is set.
        corners      the places where one-sided derivatives differ, and the derivative that autodiff
                     takes there. The check tries common numbers and the program's own numbers. If
                     none is a corner, it looks for piecewise operations that change their piece on
                     lines between states. It is a note, unless autodiff takes neither side nor a
                     value between.
        alone        an example's energy and sweep are the same to 1e-9 without its batch mates.

    Samples can miss something, such as an equilibrium that no start finds, or a derivative that is
    wrong only in some places. If energy or force is not finite, the contract says only that.

    Args:
      energy: a System (for an imperfect device its ideal system is checked), or (params, state, x)
        -> scalar for ONE example, as for `from_energy`.
      params: weights. Integer leaves are constants.
      x: a few inputs, `[batch, ...]`. Curvature is computed for the first four.
      key: draws starts, states and lines.
      init_state: as for `from_energy`; required with a plain energy.
      readout: as for `from_energy`; required with a plain energy.
      project: moves a state onto the allowed set, with a plain energy; None: all states are
        allowed.
      step_size: the step size of a sweep of a plain energy, > 0.
      cost: the cost; None: squared error.
      y: the cost's targets for x; None: zeros.
      beta: the β with which the energy will be used, > 0.
      holomorphic: whether the energy must be holomorphic.
      starts: the number of random starts, >= 1.
      spread: the standard deviation of the starts around the system's own start, > 0.
      sweeps: the largest number of sweeps of a phase, >= 1. A phase settles to 1e-10.

    Returns:
      An `EnergyContract`, with a `Finding` for each check.

    Raises:
      SettingError: a plain energy comes without init_state or readout, or a setting is out of
        range.
      ValueError: a function does not accept the result of another; or an energy, a state or an
        output does not consist of real floating-point numbers.

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
        user_energy, start = energy, params
        parts = (energy, init_state, readout, lambda key, shape: (start, ()))
        system = from_energy(*parts, step_size=step_size, project=project)
    keys = jax.random.split(key, 5)
    extra = jax.random.split(jax.random.fold_in(key, 1), 3)
    with jax.enable_x64(True):
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
            _derivatives.gradient_finding(context, keys[0]),
            _derivatives.symmetry_finding(context, keys[1], dense),
            _equilibria.bounded_finding(context, curves, reason, beta, keys[2]),
            _equilibria.unique_finding(context, keys[3], starts, spread),
            _holomorphy.holomorphic_finding(context, holomorphic, keys[4]),
            _corners.corner_finding(context, extra[1]),
            _equilibria.batch_independence_finding(context, extra[2]),
        )


def _curvature(system: System, params: Params, x: Array) -> tuple[Curvature | None, str]:
    """The curvature of the first examples, or None and the reason."""
    try:
        return curvature(system, params, x[:CURVED]), ""
    except (ValueError, TypeError) as error:  # too many units, or a custom_vjp without forward mode
        return None, str(error).splitlines()[0]
