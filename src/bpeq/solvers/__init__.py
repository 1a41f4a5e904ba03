"""Fixed-point solvers: they repeat a sweep and report for each example how it ended."""

from bpeq.solvers._anderson import anderson
from bpeq.solvers._fixed_point import fixed_point
from bpeq.solvers._fixed_steps import fixed_steps
from bpeq.solvers._loops import Sweep, run_sweep

__all__ = ["Sweep", "anderson", "fixed_point", "fixed_steps", "run_sweep"]
