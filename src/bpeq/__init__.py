"""bpeq: backpropagation and equilibrium propagation from one hand-written backward pass.

Everything is loaded when it is first used, so that `import bpeq` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpeq import costs, data, layers, optimizers, rules, sharding, solvers, systems, types
    from bpeq.analysis.compare_rules import compare_rules
    from bpeq.analysis.energy_contract import check_energy
    from bpeq.analysis.gradient_fidelity import gradient_fidelity
    from bpeq.analysis.locality import audit_locality
    from bpeq.experiment.saved_run import load_run
    from bpeq.systems.devices import imperfect
    from bpeq.training.data_parallel import data_parallel
    from bpeq.training.loops import train

__version__ = "0.1.0"

_MODULES = (
    "costs",
    "data",
    "layers",
    "optimizers",
    "rules",
    "sharding",
    "solvers",
    "systems",
    "types",
)
_FUNCTIONS = {
    "compare_rules": "bpeq.analysis.compare_rules",
    "train": "bpeq.training.loops",
    "data_parallel": "bpeq.training.data_parallel",
    "load_run": "bpeq.experiment.saved_run",
    "gradient_fidelity": "bpeq.analysis.gradient_fidelity",
    "audit_locality": "bpeq.analysis.locality",
    "imperfect": "bpeq.systems.devices",
    "check_energy": "bpeq.analysis.energy_contract",
}

__all__ = [
    "audit_locality",
    "check_energy",
    "compare_rules",
    "costs",
    "data",
    "data_parallel",
    "gradient_fidelity",
    "imperfect",
    "layers",
    "load_run",
    "optimizers",
    "rules",
    "sharding",
    "solvers",
    "systems",
    "train",
    "types",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"bpeq.{name}")
    if name in _FUNCTIONS:
        return getattr(importlib.import_module(_FUNCTIONS[name]), name)
    raise AttributeError(f"module 'bpeq' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
