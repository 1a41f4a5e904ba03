"""What recurrent layers share: one scan forward in time, one back, products outside of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.layers._dense import dense
from bpeq.layers._initialisers import Initialiser, initialise
from bpeq.types import Key, Layer, Params, Shape

Carry = tuple[Array, ...]


class Cell(NamedTuple):
    """One step in time, and its pull-back. A carry is (h,) or (h, c), each `[batch, features]`.

    gates: how many blocks of `features` columns the weights have.
    cells: how many arrays the carry has.
    step(z, r, carry) -> (carry, kept): z = x_t w + b and r = h_{t−1} u + c, both `[batch,
        gates·features]`; kept is what `pull` needs besides h_{t−1} and h_t.
    pull(kept, before, after, errors) -> (dz, dr, errors): before, after are h_{t−1}, h_t; `errors`
        is that on the carry after the step, and then, except through r, on the one before it. dr is
        None where it equals dz.
    """

    gates: int
    cells: int
    step: Callable[[Array, Array, Carry], tuple[Carry, Any]]
    pull: Callable[[Any, Array, Array, Carry], tuple[Array, Array | None, Carry]]


def recurrent(
    name: str,
    cell: Cell,
    features: int,
    return_sequences: bool,
    init: Initialiser,
    recurrent_init: Initialiser,
    biases: Callable[[], dict[str, Array]],
) -> Layer:
    """The layer that steps `cell` along axis 1 of x `[batch, steps, n]` from a carry of zeros.

    params: {"w": [n, gates·features], "u": [features, gates·features], "b": [gates·features]}, and
    "c" of b's shape where `biases()` has one.

    Backward: the errors run through time in one reverse scan, which carries ∂C/∂h_t, ∂C/∂c_t and
    puts out ∂C/∂z_t; all that weights need of them then is one product each over steps and batch:

        ∂C/∂h_{t−1} = … + uᵀ dr_t      ∂C/∂w = Σ_t x_t dz_t      ∂C/∂u = Σ_t h_{t−1} dr_t

    Both uᵀ and wᵀ (in dx_t = wᵀ dz_t) come from `feedback`.
    """
    columns = cell.gates * features

    def make(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if len(shape) != 2:
            raise ValueError(f"{name}: one example has shape {shape}, needs (steps, features)")
        steps, n = shape
        w_key, u_key = jax.random.split(key)
        blocks = [
            initialise(recurrent_init, own, (features, features), features)
            for own in jax.random.split(u_key, cell.gates)
        ]
        params = {
            "w": initialise(init, w_key, (n, columns), n),
            "u": jnp.concatenate(blocks, axis=1),
            **biases(),
        }
        return params, (steps, features) if return_sequences else (features,)

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        drive = _AFFINE.forward(params, x)[0].swapaxes(0, 1)
        start = (jnp.zeros((x.shape[0], features), drive.dtype),) * cell.cells

        def step(carry: Carry, z: Array) -> tuple[Carry, Any]:
            r = carry[0] @ params["u"]
            carry, kept = cell.step(z, r + params["c"] if "c" in params else r, carry)
            return carry, (carry[0], kept)

        carry, (h, kept) = lax.scan(step, start, drive)
        return (h.swapaxes(0, 1) if return_sequences else carry[0]), (x, h, kept)

    def backward(params: Params, feedback: Params, residuals: Any, dy: Array) -> tuple[Params, Any]:
        x, h, kept = residuals
        before = jnp.concatenate([jnp.zeros_like(h[:1]), h[:-1]])
        nothing = jnp.zeros_like(h[0])
        # The error arrives at every step, or at the last one only.
        last, seeds = (nothing, dy.swapaxes(0, 1)) if return_sequences else (dy, None)

        def back(errors: Carry, at: Any) -> tuple[Carry, Any]:
            own, h_before, h_after, seed = at
            if seed is not None:
                errors = (errors[0] + seed, *errors[1:])
            dz, dr, errors = cell.pull(own, h_before, h_after, errors)
            through = (dz if dr is None else dr) @ feedback["u"].T
            return (errors[0] + through, *errors[1:]), (dz, dr)

        start = (last, *(nothing,) * (cell.cells - 1))
        _, (dz, dr) = lax.scan(back, start, (kept, before, h, seeds), reverse=True)
        dparams, dx = _AFFINE.backward(params, feedback, x, dz.swapaxes(0, 1))
        dr = dz if dr is None else dr
        rows = dr.reshape(-1, columns)
        dparams["u"] = before.reshape(-1, features).T @ rows
        if "c" in params:
            dparams["c"] = jnp.sum(rows, axis=0)
        return dparams, dx

    return Layer(name, make, forward, backward)


_AFFINE = dense(1)  # its forward and backward take their sizes from the weights
