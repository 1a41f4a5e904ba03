"""The locality audit of a config's rules. Each rule has its own settings in the config."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import jax

from bpeq.analysis.locality import audit_locality
from bpeq.analysis.locality.rows import Locality
from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config
from bpeq.config.problem import build, seed_keys
from bpeq.config.registry import KINDS
from bpeq.data import Dataset
from bpeq.experiment.rule_fidelity import first_examples


class Audit(NamedTuple):
    """The result of `audit_rules`.

    Args:
      found: one Locality for each audited rule.
      notes: rule -> why it does not fit the config.
    """

    found: list[Locality]
    notes: dict[str, str]


def audit_rules(config: Config, rules: Sequence[str] | None = None) -> Audit:
    """Audits every rule on the config's network and system, at initial weights. Nothing is trained.

    Args:
      config: the config.
      rules: names or dotted paths; None: all registered rules. A registered rule that does not fit
        the config becomes a note.

    Returns:
      The audited rules, and the notes.

    Raises:
      ConfigError: a rule of `rules` cannot be built.
      DataError: the data are at fault.
    """
    found: list[Locality] = []
    notes: dict[str, str] = {}
    data: Dataset | None = None
    for name in KINDS["rules"] if rules is None else rules:
        try:
            own = config.with_rule(name)
            problem = build(own, data)
        except ConfigError as error:
            if rules is not None:
                raise
            notes[name] = str(error)
            continue
        data = problem.data
        weights_key, rule_key, _ = seed_keys(own.seed, 1)[0]
        with jax.enable_x64(own.double):
            params, state = problem.rule.init(rule_key, problem.init(weights_key))
            batch = jax.tree.map(lambda leaf: leaf[:2], first_examples(own, problem))
            where = {"key": rule_key, "state": state, "network": problem.network}
            audited = audit_locality(problem.rule, params, batch, **where)
        found.append(audited._replace(rule=name))
    return Audit(found, notes)
