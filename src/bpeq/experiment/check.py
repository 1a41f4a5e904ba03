"""Checks and audits the parts of a config at initial weights. Nothing is trained."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from bpeq.analysis.energy_contract import EnergyContract, check_energy
from bpeq.analysis.locality import audit_locality
from bpeq.analysis.locality.rows import Locality
from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config
from bpeq.config.networks import build_networks
from bpeq.config.problem import Problem, build, seed_keys
from bpeq.config.registry import KINDS
from bpeq.core import trees
from bpeq.experiment.rule_fidelity import first_examples, initial_point
from bpeq.layers import CheckRow, check_network, gradient_error, tolerance
from bpeq.types import Layer, Params

LOOKED_AT = 4  # the number of examples at which the energy contract is checked


def check_problem(config: Config, batch: int = 8) -> list[CheckRow]:
    """Checks every layer, the whole network and the energy, in float64 and in float32.

    Each layer is checked at its input for `batch` training examples, with the initial weights. The
    networks of [networks] get random inputs. If the rule relaxes a system with an energy, `denergy`
    is compared with `jax.grad` of that energy. The state is then 0.9 times the state after one
    sweep, so that it is not an equilibrium.

    Args:
      config: the config.
      batch: the number of examples, at least 1.

    Returns:
      One row for each layer, for the whole network and for the energy, in each precision.

    Raises:
      ConfigError: the parts do not fit each other (see `problem.build`).
      DataError: the data are at fault.
    """
    networks = build_networks(config)
    problem = None if networks and config.network is None else build(config)
    rows: list[CheckRow] = []

    def check(layer: Layer, params: Params, x: jax.Array, name: str = "") -> list[CheckRow]:
        params = trees.cast(params, dtype)
        walked = check_network(layer, params, x, key=jax.random.fold_in(key, 1))
        return [row._replace(name=f"{name}{row.name}") for row in walked]

    with jax.enable_x64(True):
        key = jax.random.key(config.seed)
        for dtype in (jnp.float64, jnp.float32):
            checked = []
            for name, network in networks.items():
                x = network.examples(jax.random.fold_in(key, 2), batch)
                x = x if network.tokens is not None else x.astype(dtype)
                checked += check(network.layer, network.init(key), x, f"{name}: ")
            if problem is not None:
                x = jnp.asarray(problem.data.x[problem.rows[0][:batch]], dtype)
                if problem.network is not None:  # a system may have other parameters
                    params, _ = problem.network.init(key, x.shape[1:])
                    checked += check(problem.network, params, x)
                if problem.system is not None and problem.system.energy is not None:
                    params = trees.cast(problem.init(key), dtype)
                    checked.append(_check_energy(problem, params, x))
            bits = jnp.finfo(dtype).bits
            rows += [row._replace(name=f"{row.name} (float{bits})") for row in checked]
    return rows


def check_system(config: Config) -> EnergyContract:
    """Checks the energy contract of the config's system, at initial weights and the first examples.

    The contract uses the β of the rule, or 0.1 if the rule has none. The energy must be holomorphic
    if the rule nudges with complex β.

    Args:
      config: the config.

    Returns:
      The findings of the contract.

    Raises:
      ConfigError: the rule relaxes no system with an energy, or the parts do not fit each other
        (see `problem.build`).
      DataError: the data are at fault.
    """
    problem, rule = build(config), config.rule.settings
    if problem.system is None or problem.system.energy is None:
        remedy = "settles no system with an energy to check"
        raise config.error("rule.name", config.rule.name, remedy)
    with jax.enable_x64(True):
        params = problem.init(seed_keys(config.seed, 1)[0][0])
        batch = first_examples(config, problem)
        return check_energy(
            problem.system,
            params,
            batch.x[:LOOKED_AT],
            key=jax.random.key(config.seed),
            cost=problem.cost,
            y=batch.y[:LOOKED_AT],
            beta=rule["beta"] if isinstance(rule.get("beta"), float) else 0.1,
            holomorphic=rule.get("nudging") in ("holomorphic", "online"),
        )


def audit_rules(
    config: Config, rules: Sequence[str] | None = None
) -> tuple[list[Locality], dict[str, str]]:
    """Audits the locality of every rule on the config's network and system.

    Args:
      config: the config.
      rules: names or dotted paths. Each rule has its own settings in the config. None: all
        registered rules that fit the config.

    Returns:
      One Locality for each audited rule; and for each rule that does not fit the config, the
      reason.

    Raises:
      ConfigError: a rule of `rules` cannot be built.
      DataError: the data are at fault.
    """
    audits, excluded, data = [], {}, None
    for name in KINDS["rules"] if rules is None else rules:
        try:
            changed = config.with_rule(name)
            problem = build(changed, data)
        except ConfigError as error:
            if rules is not None:
                raise
            excluded[name] = str(error)
            continue
        data = problem.data
        with jax.enable_x64(changed.double):
            params, state, batch, key = initial_point(changed, problem)
            batch = jax.tree.map(lambda leaf: leaf[:2], batch)
            how = {"key": key, "state": state, "network": problem.network}
            audit = audit_locality(problem.rule, params, batch, **how)
        audits.append(audit._replace(rule=name))
    return audits, excluded


def _check_energy(problem: Problem, params: object, x: jax.Array) -> CheckRow:
    """Compares `denergy` with `jax.grad` of the energy."""
    assert problem.system is not None
    system = problem.system.ideal
    assert system.denergy is not None
    clamped = system.clamp(params, x)
    swept = system.sweep(params, clamped, system.init_state(params, clamped))
    state = trees.scale(0.9, swept)
    phases = jax.tree.map(lambda s: s[None], state)
    ours, _ = system.denergy(params, clamped, phases, jnp.ones((1,), x.dtype))

    def total(params: object) -> jax.Array:
        assert system.energy is not None
        return jnp.sum(system.energy(params, system.clamp(params, x), state))

    error, limit = gradient_error(ours, jax.grad(total)(params)), tolerance(x.dtype, deep=True)
    return CheckRow("energy ∂E/∂θ", error, limit, error <= limit)
