"""The ratios, what each is of, and what is wanted of it."""

from __future__ import annotations

GOALS = {
    "eqprop_fixed_b128": ("EP, 30 + 10 sweeps, over backprop, batch 128", "≤ 2.5"),
    "eqprop_certified_b128": ("EP to a residual of 1e-5, over backprop, batch 128", "≤ 2.5"),
    "eqprop_fixed_b20": ("EP, 30 + 10 sweeps, over backprop, batch 20", "≤ 3.5"),
    "eqprop_fixed_b1024": ("EP, 30 + 10 sweeps, over backprop, batch 1024", "≤ 3"),
    "centered_over_one_sided": ("EP at ±β over EP at β, batch 128", "≤ 1.25"),
    "sweeps_saved_mlp1": ("plain sweeps over accelerated ones, 784-512-10", "≥ 3"),
    "sweeps_saved_mlp3": ("the same, 784-512-512-512-10", "≥ 3"),
    "sweeps_saved_cnn": (
        "the same, CNN; some phases end in another equilibrium (docs/speed.md)",
        "≥ 3",
    ),
    "roofline_b1024": ("certified EP over the floor of its two products, batch 1024", "≤ 2.5"),
    "compile_seconds": ("an epoch's compile time, the longer of 10 and 1,000 sweeps, s", "≤ 1.5"),
    "numpy_over_xor_50": ("50 NumPy runs of XOR over 50 seeds at once", "≥ 100"),
    "memory_1000_over_10": ("EP's memory at 1,000 sweeps over 10", "≤ 1.05"),
    "cnn_sweep_over_floor": ("CNN: a sweep over the floor of two convolutions", "≤ 2.5"),
    "cnn_fixed": ("CNN: EP, 30 + 10 sweeps, over backprop, batch 100", "≤ 20"),
    "cnn_certified": ("CNN: accelerated EP over backprop, batch 100", "≤ 10"),
    "backprop_over_autodiff": ("hand-written backprop over jax.grad, the worst net", "≤ 1"),
}
