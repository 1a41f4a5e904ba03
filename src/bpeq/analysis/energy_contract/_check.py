"""`check_energy`: what an energy promises to equilibrium propagation, and whether it keeps it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.analysis.energy_contract._corners import corner_finding
from bpeq.analysis.energy_contract._door import not_finite, on_floats, refuse
from bpeq.analysis.energy_contract._equilibria import bounded_finding, unique_finding
from bpeq.analysis.energy_contract._gradients import gradient_finding, symmetry_finding
from bpeq.analysis.energy_contract._mates import alone_finding
from bpeq.analysis.energy_contract._smoothness import holomorphic_finding
from bpeq.analysis.energy_contract._subject import Finding, look
from bpeq.analysis.equilibrium import Curvature, curvature
from bpeq.core import trees
from bpeq.core.compat import enable_x64
from bpeq.costs import squared_error
from bpeq.settings import Count, Positive, checked
from bpeq.systems import from_energy
from bpeq.types import Cost, Key, Params, State, System

CURVED = 4  # examples whose curvature is computed


class EnergyContract(NamedTuple):
    """Seven findings; `str` of it is a table.

    gradient:    the figure is the largest relative error of a derivative.
    symmetric:   ‖J − Jᵀ‖ / ‖J‖ of the force's Jacobian J.
    bounded:     the β up to which E − βC keeps its minimum at the equilibria.
    unique:      how many states random starts settle in.
    holomorphic: how far Cauchy and Riemann's equations are from true.
    corners:     which slope autodiff takes at the first corner: 0 the outer one, 1 the inner one.
    alone:       how far an example's energy or sweep changes with its batch mates.
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
        """Whether nothing fails; a statement that is no verdict does not."""
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
    """Whether an energy is what equilibrium propagation needs, in float64 at a few examples.

        gradient     the force is −∂E/∂s, denergy ∂E/∂θ and dforce ∂force/∂θ: against central
                     differences, along a random line of each leaf. Catches a custom derivative that
                     is another function's, and a stop_gradient that matters.
        symmetric    the Jacobian J of the force is: without it the force is no energy's slope.
        bounded      with K = (G H⁻¹ Gᵀ)⁻¹, H the Hessian of E at the equilibrium and G the
                     readout's Jacobian, E − βC keeps its minimum for β < K / λ, λ the largest
                     curvature of the cost (1 for squared error). It fails at a `beta` beyond, or
                     where the phase at −β does not settle; it is a note where E − βC falls without
                     bound elsewhere.
        unique       random starts settle in the same state to 1e-4. Fails also where one does not
                     settle in `sweeps`.
        holomorphic  E (of a system: its sweep, readout and denergy) is complex-differentiable in
                     the state. Else which operation is not, and the line that calls for it: found
                     in the program for functions in pieces such as max, abs or a choice by an order
                     of the state, by Cauchy and Riemann's equations for the rest. A note, unless
                     `holomorphic` asks for it or the system declares otherwise.
        corners      where one-sided derivatives differ, and which autodiff takes: at common numbers
                     and the program's own; else where an operation in pieces turns on lines between
                     states. A note, also where no such place was met, unless autodiff takes neither
                     side nor one between.
        alone        an example's energy and sweep are the same to 1e-9 without its batch mates.

    What is sampled can be missed: an equilibrium that no start finds, a derivative that is wrong
    in places only. Where energy or force is not finite, that alone is said.

    Args:
      energy: a System (of an imperfect device the ideal one), or (params, state, x) -> scalar for
        ONE example, as `from_energy` takes it, with `init_state`, `readout`, `project` and
        `step_size` likewise.
      params: weights; integer leaves are held. x: a few inputs, `[batch, ...]`; curvature is
        computed for the first four.
      key: draws starts, states and lines.
      cost: squared error if not given. y: its targets for x; zeros if not given.
      beta: the nudge that the energy is to be used with, β > 0.
      holomorphic: whether it must be holomorphic.
      starts: random starts, >= 1, normal numbers times `spread` > 0 around the system's own start.
      sweeps: of a phase at most, >= 1; it settles to 1e-10.

    Raises:
      ValueError: a plain energy without init_state and readout, or a setting out of range; a
        function that does not take what the others give; an energy, a state or an output that is
        not of real floating numbers.

    Example (a double well, which settles on either side):
      >>> import jax, jax.numpy as jnp
      >>> found = check_energy(lambda p, s, x: jnp.sum((s**2 - 1) ** 2) / 4 - p * jnp.sum(s * x),
      ...     jnp.ones(()), 0.1 * jnp.ones((2, 3)), key=jax.random.key(0),
      ...     init_state=lambda p, x: jnp.zeros(3), readout=lambda p, s: s, step_size=0.2)
      >>> found.gradient.passed, found.unique.passed, found.passed
      (True, False, False)

    Source: Scellier & Bengio 2017 for the free and nudged phases; Laborieux & Zenke 2022 for
    holomorphic energies; the derivative at a corner as a choice: Bertoin et al. 2021, Numerical
    influence of ReLU'(0) on backpropagation.
    """
    given = None if isinstance(energy, System) else energy
    if given is not None:
        if init_state is None or readout is None:
            missing = "init_state" if init_state is None else "readout"
            raise ValueError(f"check_energy: {missing} = None: must be given with a plain energy")
        system = from_energy(
            given, init_state, readout, _no_init, step_size=step_size, project=project
        )
    else:
        assert isinstance(energy, System)
        system = energy.ideal
    keys = jax.random.split(key, 5)  # the first checks' own, whatever is added
    extra = jax.random.split(jax.random.fold_in(key, 1), 3)
    with enable_x64(True):
        params, x = trees.cast((params, jnp.asarray(x)), jnp.float64)
        y = y if y is None else trees.cast(jnp.asarray(y), jnp.float64)
        cost = squared_error() if cost is None else cost
        refuse(system, params, x)
        system, params, whole = on_floats(system, params)
        plain = given and (lambda own, state, x: given(whole(own), state, x))
        subject = look(system, params, x, cost, y, plain is not None, project, sweeps)
        if (lost := not_finite(subject, extra[0])) is not None:
            rest = EnergyContract._fields[1:]
            return EnergyContract(lost, *(Finding(n, None, np.nan, "not looked at") for n in rest))
        bent, why = _curvature(system, params, x)
        exact = None
        if bent is not None and bent.settled.any():
            exact = float(np.max(bent.asymmetry[bent.settled]))
        return EnergyContract(
            gradient_finding(subject, keys[0]),
            symmetry_finding(subject, keys[1], exact),
            bounded_finding(subject, bent, why, beta, keys[2]),
            unique_finding(subject, keys[3], starts, spread),
            holomorphic_finding(subject, plain, holomorphic, keys[4]),
            corner_finding(subject, plain, extra[1]),
            alone_finding(subject, extra[2]),
        )


def _curvature(system: System, params: Params, x: Array) -> tuple[Curvature | None, str]:
    """That of the first examples; or None, and why."""
    try:
        return curvature(system, params, x[:CURVED]), ""
    except (ValueError, TypeError) as error:  # too many units; no forward mode, for a custom_vjp
        return None, str(error).splitlines()[0]


def _no_init(key: Any, shape: Any) -> Any:
    raise TypeError("check_energy: params are given, and not drawn")
