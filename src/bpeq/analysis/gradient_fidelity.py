"""Gradient fidelity: an estimate against the exact gradient of the same function, by layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.core import trees
from bpeq.core.compat import enable_x64
from bpeq.layers import cut
from bpeq.types import Batch, Estimate, Key, Layer, LearningRule, Params, SolveInfo, State


class Closeness(NamedTuple):
    """How near a gradient g is to the exact one g*, both flattened.

    relative_error:  ‖g − g*‖ / ‖g*‖; 0 if both are zero.
    cosine:          g·g* / ‖g‖‖g*‖; 1 if both are zero, 0 if one is.
    norm_ratio:      ‖g‖ / ‖g*‖.
    sign_agreement:  the share of the entries of g* other than 0 whose sign g has.
    """

    relative_error: float
    cosine: float
    norm_ratio: float
    sign_agreement: float


class Fidelity(NamedTuple):
    """What one batch shows of a rule.

    total:     of all parameters together.
    layers:    by layer. The first one is often far worse.
    settled:   the share of the rule's phases, example by example, that met their tolerance; 1 for
        rules that do not relax.
    sweeps:    the mean over the examples, all phases together; 0 for rules that do not relax.
    reference_settled: `settled` of the exact gradient's solves.
    reference_residual: their largest residual. Where it is large, a small error proves nothing.
    own_objective: the fidelity to the exact gradient of the rule's own objective; None if that is
        ∇C.
    """

    total: Closeness
    layers: dict[str, Closeness]
    settled: float
    sweeps: float
    reference_settled: float
    reference_residual: float
    own_objective: Fidelity | None = None


def gradient_fidelity(
    rule: LearningRule,
    params: Params,
    batch: Batch,
    *,
    key: Key,
    state: State = None,
    network: Layer | None = None,
    reference: LearningRule | None = None,
) -> Fidelity:
    """Compares a rule's estimate on one batch with the exact gradient of the rule's own `apply`.

    The estimate has the dtype of `params`. The exact gradient is computed in float64 at the same
    parameters: by autodiff for a rule on a network, by implicit differentiation for one that
    relaxes. A rule that follows another objective than ∇C, as `contrastive_hebbian` does, is also
    compared with the exact gradient of that one, under `own_objective`.

    Args:
      rule: any rule with an `info.reference`, as all of bpeq's have.
      params, state: as the rule's `init` gives them. Without a state `rule.init(key, params)` is
        called on params as `network.init` gives them.
      batch: x `[batch, ...]` and y, in the dtype of params.
      key: the one key of the estimate; rule and reference share it.
      network: names the rows by its blocks; without it they are named by their place in params.
      reference: an exact rule of the same function, for a rule that has none of its own.

    Returns:
      The fidelity in total and by layer, and how the solves ended.

    Raises:
      ValueError: the rule has no reference and none is given.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq import costs, layers, rules, systems
      >>> network = layers.chain(layers.dense(4), layers.tanh(), layers.dense(1))
      >>> rule = rules.eqprop(systems.hopfield(network), costs.squared_error(), beta=0.01)
      >>> params, _ = network.init(jax.random.key(0), (2,))
      >>> batch = Batch(jnp.ones((3, 2)), jnp.ones((3, 1)))
      >>> fidelity = gradient_fidelity(rule, params, batch, key=jax.random.key(1), network=network)
      >>> list(fidelity.layers), fidelity.total.cosine > 0.999
      (['dense_1', 'dense_2'], True)
    """
    if state is None:
        params, state = rule.init(key, params)
    estimate = jax.jit(rule.estimate)(params, batch, state, key)[0]
    return judged(rule, estimate, params, batch, key=key, network=network, reference=reference)


def judged(
    rule: LearningRule,
    estimate: Estimate,
    params: Params,
    batch: Batch,
    *,
    key: Key,
    network: Layer | None = None,
    reference: LearningRule | None = None,
) -> Fidelity:
    """Compares an estimate with ∇C and, if that is another, with its own objective's gradient.

    Args:
      rule, params, batch, key, network, reference: as for `gradient_fidelity`.
      estimate: the rule's, on that batch.
    """
    exact = exact_gradient(rule, params, batch, key=key, reference=reference)
    fidelity = judge(estimate, exact, network)
    if rule.info.objective is None:
        return fidelity
    exact = exact_gradient(rule, params, batch, key=key, reference=rule.info.objective)
    return fidelity._replace(own_objective=judge(estimate, exact, network))


def exact_gradient(
    rule: LearningRule,
    params: Params,
    batch: Batch,
    *,
    key: Key,
    reference: LearningRule | None = None,
) -> Estimate:
    """The exact gradient of a rule's own `apply`, in float64, with how its solves ended.

    Args:
      rule, params, batch, key, reference: as for `gradient_fidelity`.

    Returns:
      The reference's estimate, as NumPy arrays.

    Raises:
      ValueError: the rule has no reference and none is given.
    """
    exact = rule.info.reference if reference is None else reference
    if exact is None:
        raise ValueError(
            f"{rule.name}: has no reference of its own; give reference = a rule that is exact on "
            "the same function, such as autodiff(network, cost)"
        )
    with enable_x64(True):
        params, batch = trees.cast((params, batch), jnp.float64)
        params, state = exact.init(key, params)
        return jax.device_get(jax.jit(exact.estimate)(params, batch, state, key)[0])


def judge(estimate: Estimate, exact: Estimate, network: Layer | None = None) -> Fidelity:
    """Compares an estimate with an exact one.

    The total leaves out layers on which the exact function does not depend, such as weights that
    only carry errors.

    Args:
      estimate: the rule's.
      exact: the reference's, on the same batch.
      network: names the layers by its blocks.
    """
    ours, theirs = grouped(estimate.grads, network), grouped(exact.grads, network)
    rows = {name: closeness(ours[name], theirs[name]) for name in theirs}
    live = [name for name in theirs if np.any(_flat(theirs[name]))] or list(theirs)
    return Fidelity(
        total=closeness([ours[name] for name in live], [theirs[name] for name in live]),
        layers=rows,
        settled=_settled(_solves(estimate)),
        sweeps=sweeps_of(estimate),
        reference_settled=_settled(_solves(exact)),
        reference_residual=max((float(np.max(s.residual)) for s in _solves(exact)), default=0.0),
    )


def sweeps_of(estimate: Estimate) -> float:
    """The mean number of sweeps over the examples, all phases together; 0 without relaxation.

    Args:
      estimate: of any rule.
    """
    solves = _solves(estimate)
    return sum((float(np.sum(s.steps) / np.shape(s.steps)[-1]) for s in solves), 0.0)


def grouped(params: Params, network: Layer | None = None) -> dict[str, Params]:
    """Parameters (or their gradients) by layer: the blocks of `network`, then all other entries.

    A relaxing system may append entries to the network's params, such as `{"feedback": ...}`; they
    are rows of that name. The entries of a dict, as a user's system may have it, are rows of their
    names. Entries without parameters are no rows.

    Args:
      params: a tree of parameters or gradients.
      network: names the rows; None names them by their place in params.
    """
    if isinstance(params, dict):
        rows = {str(name): part for name, part in params.items()}
        return {name: part for name, part in rows.items() if jax.tree.leaves(part)}
    if not isinstance(params, tuple):
        return {"all": params}
    known = cut(network) if network is not None else ()
    rows = {block.name: params[block.slice] for block in known}
    for i in range(len(network.parts) if network is not None else 0, len(params)):
        entry = params[i]
        named = isinstance(entry, dict) and len(entry) == 1 and network is not None
        rows[next(iter(entry)) if named else str(i)] = entry
    return {name: part for name, part in rows.items() if jax.tree.leaves(part)}


def closeness(ours: Any, exact: Any) -> Closeness:
    """The measures of `Closeness` between two gradients of one structure, in float64.

    Args:
      ours: the gradient g.
      exact: the exact one g*.
    """
    g, g_exact = _flat(ours), _flat(exact)
    size, size_exact = float(np.linalg.norm(g)), float(np.linalg.norm(g_exact))
    gap, nonzero = float(np.linalg.norm(g - g_exact)), g_exact != 0
    signs = np.sign(g[nonzero]) == np.sign(g_exact[nonzero])
    with np.errstate(invalid="ignore"):  # an estimate that diverged is NaN here
        product = float(g @ g_exact)
    return Closeness(
        relative_error=_ratio(gap, size_exact),
        cosine=product / (size * size_exact) if size * size_exact else float(gap == 0),
        norm_ratio=_ratio(size, size_exact, both=1.0),
        sign_agreement=float(signs.mean()) if nonzero.any() else float(gap == 0),
    )


def _ratio(a: float, b: float, both: float = 0.0) -> float:
    if b == 0.0:
        return both if a == 0.0 else float("inf")
    return a / b


def _flat(tree: Any) -> np.ndarray:
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def _solves(estimate: Estimate) -> list[SolveInfo]:
    return [part for part in estimate.info.values() if isinstance(part, SolveInfo)]


def _settled(solves: list[SolveInfo]) -> float:
    if not solves:
        return 1.0
    return float(np.mean(np.concatenate([np.ravel(solve.converged) for solve in solves])))
