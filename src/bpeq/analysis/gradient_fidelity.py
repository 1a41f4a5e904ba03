"""Gradient fidelity: an estimate against the exact gradient of the same function, by layer."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.core import trees
from bpeq.layers import cut
from bpeq.types import Batch, Estimate, Key, Layer, LearningRule, Params, SolveInfo, State


class Closeness(NamedTuple):
    """The difference between a gradient g and the exact gradient g*, both flattened.

    Args:
      relative_error: ‖g − g*‖ / ‖g*‖; 0 if both are zero.
      cosine: g·g* / ‖g‖‖g*‖; 1 if both are zero, 0 if one is.
      norm_ratio: ‖g‖ / ‖g*‖; 1 if both are zero.
      sign_agreement: the share of the nonzero entries of g* whose sign g has.
    """

    relative_error: float
    cosine: float
    norm_ratio: float
    sign_agreement: float


class Fidelity(NamedTuple):
    """The fidelity of a rule on one batch.

    Args:
      total: the closeness of all parameters together.
      layers: the closeness of each layer. The first layer is often far worse than the total.
      settled: the share of phases, counted for each example, that met their tolerance; 1 for rules
        that do not relax.
      sweeps: the mean number of sweeps over the examples, all phases together; 0 for rules that do
        not relax.
      reference_settled: `settled` for the solves of the exact gradient.
      reference_residual: the largest residual of these solves. If it is large, a small error proves
        nothing.
      own_objective: the fidelity to the exact gradient of the rule's own objective; None if the
        rule follows ∇C.
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
    parameters: by automatic differentiation for a rule on a network, and by implicit
    differentiation for a rule that relaxes. A rule may follow another objective than C, as
    `contrastive_hebbian` does. It is then also compared with the exact gradient of that objective,
    under `own_objective`.

    Args:
      rule: a rule with an `info.reference`. All rules of bpeq have one.
      params: the parameters from the rule's `init`, or from `network.init` if `state` is None.
      batch: x `[batch, ...]` and y, in the dtype of params.
      key: the random key of the estimate. Rule and reference share it.
      state: the rule's state; None: `rule.init(key, params)` makes parameters and state.
      network: names the layers by its blocks; None: layers are named by their place in params.
      reference: an exact rule of the same function; None: the rule's own reference.

    Returns:
      The fidelity in total and by layer, and how the solves ended.

    Raises:
      ValueError: the rule has no reference and `reference` is None.

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
    """Compares an estimate with ∇C and, if the rule follows another objective, with its gradient.

    Args:
      rule: the rule of the estimate.
      estimate: the rule's estimate on this batch.
      params: the parameters of the estimate.
      batch: x `[batch, ...]` and y.
      key: the random key of the estimate.
      network: names the layers by its blocks; None: layers are named by their place in params.
      reference: an exact rule of the same function; None: the rule's own reference.

    Returns:
      The fidelity.

    Raises:
      ValueError: the rule has no reference and `reference` is None.
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
    """Computes the exact gradient of a rule's own `apply`, in float64.

    Args:
      rule: the rule.
      params: the parameters.
      batch: x `[batch, ...]` and y.
      key: the random key of the estimate.
      reference: an exact rule of the same function; None: the rule's own reference.

    Returns:
      The reference's estimate, as NumPy arrays. Its `info` says how the solves ended.

    Raises:
      ValueError: the rule has no reference and `reference` is None.
    """
    exact = rule.info.reference if reference is None else reference
    if exact is None:
        raise ValueError(
            f"{rule.name}: has no reference of its own; give reference = a rule that is exact on "
            "the same function, such as autodiff(network, cost)"
        )
    with jax.enable_x64(True):
        params, batch = trees.cast((params, batch), jnp.float64)
        params, state = exact.init(key, params)
        return jax.device_get(jax.jit(exact.estimate)(params, batch, state, key)[0])


def judge(estimate: Estimate, exact: Estimate, network: Layer | None = None) -> Fidelity:
    """Compares an estimate with an exact one.

    The total leaves out layers whose exact gradient is zero, such as weights that only carry
    errors.

    Args:
      estimate: the rule's estimate.
      exact: the reference's estimate on the same batch.
      network: names the layers by its blocks; None: layers are named by their place in params.

    Returns:
      The fidelity, without `own_objective`.
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
    """The mean number of sweeps over the examples, all phases together.

    Args:
      estimate: the estimate of any rule.

    Returns:
      The number; 0 for a rule that does not relax.
    """
    solves = _solves(estimate)
    return sum((float(np.sum(s.steps) / np.shape(s.steps)[-1]) for s in solves), 0.0)


def grouped(params: Params, network: Layer | None = None) -> dict[str, Params]:
    """Groups parameters or gradients by layer: the blocks of `network`, then all other entries.

    A relaxing system may append entries to the network's params, such as `{"feedback": ...}`. Their
    rows have that name. If params is a dict, as in a user's system, its keys name the rows. Entries
    without parameters have no row.

    Args:
      params: a tree of parameters or gradients.
      network: names the layers by its blocks; None: layers are named by their place in params.

    Returns:
      Name of the row -> its part of the tree.
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
    """Compares two gradients of the same structure, in float64.

    Args:
      ours: the gradient g.
      exact: the exact gradient g*.

    Returns:
      The measures of `Closeness`.
    """
    g, g_exact = _flat(ours), _flat(exact)
    size, size_exact = float(np.linalg.norm(g)), float(np.linalg.norm(g_exact))
    gap, nonzero = float(np.linalg.norm(g - g_exact)), g_exact != 0
    signs = np.sign(g[nonzero]) == np.sign(g_exact[nonzero])
    with np.errstate(invalid="ignore"):  # a diverged estimate gives NaN
        product = float(g @ g_exact)
    return Closeness(
        relative_error=_ratio(gap, size_exact),
        cosine=product / (size * size_exact) if size * size_exact else float(gap == 0),
        norm_ratio=_ratio(size, size_exact, both=1.0),
        sign_agreement=float(signs.mean()) if nonzero.any() else float(gap == 0),
    )


def _ratio(a: float, b: float, both: float = 0.0) -> float:
    """a / b; infinite for b = 0, and `both` if both are zero."""
    if b == 0.0:
        return both if a == 0.0 else float("inf")
    return a / b


def _flat(tree: Any) -> np.ndarray:
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(tree)]
    return np.concatenate(leaves) if leaves else np.zeros(0)


def _solves(estimate: Estimate) -> list[SolveInfo]:
    return [part for part in estimate.info.values() if isinstance(part, SolveInfo)]


def _settled(solves: list[SolveInfo]) -> float:
    """The share of solves, counted for each example, that met their tolerance."""
    if not solves:
        return 1.0
    return float(np.mean(np.concatenate([np.ravel(solve.converged) for solve in solves])))
