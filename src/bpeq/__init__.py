"""bpeq: backpropagation and equilibrium propagation from one hand-written backward pass.

Everything is loaded when it is first used, so that `import bpeq` stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bpeq import costs, data, layers, optimizers, rules, solvers, systems, types
    from bpeq.energy_contract import check_energy
    from bpeq.fidelity import gradient_fidelity
    from bpeq.imperfections import imperfect
    from bpeq.loading import load_run
    from bpeq.locality import audit_locality
    from bpeq.parallel import data_parallel
    from bpeq.side_by_side import compare_rules
    from bpeq.training import train

__version__ = "0.1.0"

_MODULES = ("costs", "data", "layers", "optimizers", "rules", "solvers", "systems", "types")
_FUNCTIONS = {
    "compare_rules": "bpeq.side_by_side",
    "train": "bpeq.training",
    "data_parallel": "bpeq.parallel",
    "load_run": "bpeq.loading",
    "gradient_fidelity": "bpeq.fidelity",
    "audit_locality": "bpeq.locality",
    "imperfect": "bpeq.imperfections",
    "check_energy": "bpeq.energy_contract",
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
