"""Recurrent layers: one scan forward in time, one back; products over all steps outside of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.layers._dense import dense
from bpeq.layers._initialisers import Initialiser, initialise
from bpeq.settings import Count, checked
from bpeq.types import Key, Layer, Params, Shape

Carry = tuple[Array, ...]


@checked
def rnn(
    features: Count,
    return_sequences: bool = False,
    *,
    init: Initialiser = "glorot_uniform",
    recurrent_init: Initialiser = "orthogonal",
) -> Layer:
    """h_t = tanh(x_t w + h_{t−1} u + b) from h_0 = 0; y is the last h, or all of them.

    Backward through time, from the last step to the first, with γ_t the error on h_t:

        δ_t = γ_t ⊙ (1 − h_t²)      γ_{t−1} = ∂C/∂y_{t−1} + uᵀ δ_t      dx_t = wᵀ δ_t
        dw = Σ_t x_t δ_t      du = Σ_t h_{t−1} δ_t      db = Σ_t δ_t

    in one reverse scan, the sums as one product each. uᵀ and wᵀ come from `feedback`.

    Shapes: x `[batch, steps, n]`, y `[batch, features]` or, with return_sequences, `[batch, steps,
    features]`; params `{"w": [n, features], "u": [features, features], "b": [features]}`. Complex x
    works. Keeps x and h.

    Args:
      features: size of h, >= 1.
      return_sequences: whether y is h at every step, or at the last one only.
      init: initialiser of w.
      recurrent_init: initialiser of u, block by block.

    Raises:
      ValueError: a setting is out of range, or one example is no `[steps, n]` sequence.

    Example:
      >>> import jax
      >>> rnn(3, return_sequences=True).init(jax.random.key(0), (7, 4))[1]
      (7, 3)

    Source: Elman 1990, Finding structure in time; Werbos 1990, Backpropagation through time.
    """

    def step(z: Array, r: Array, carry: Carry) -> tuple[Carry, Any]:
        return (jnp.tanh(z + r),), ()

    def pull(kept: Any, before: Array, after: Array, errors: Carry) -> tuple[Array, None, Carry]:
        delta = errors[0] * (1.0 - after * after)
        return delta, None, (jnp.zeros_like(delta),)

    cell = RecurrentCell("rnn", 1, 1, step, pull, lambda: {"b": jnp.zeros((features,))})
    return _recurrent(cell, features, return_sequences, init, recurrent_init)


@checked
def gru(
    features: Count,
    return_sequences: bool = False,
    *,
    init: Initialiser = "glorot_uniform",
    recurrent_init: Initialiser = "orthogonal",
) -> Layer:
    """h_t = (1 − z) ⊙ n + z ⊙ h_{t−1}, n = tanh(A_n + r ⊙ R_n); y is the last h, or all of them.

    A = x_t w + b and R = h_{t−1} u + c, three blocks of columns for (r, z, n); r = σ(A_r + R_r),
    z = σ(A_z + R_z), from h_0 = 0. The reset gate r acts after the product, as in PyTorch and
    cuDNN, which makes R one product. Backward through time, with γ the error on h_t:

        δ_n = γ (1 − z)(1 − n²)      δ_r = δ_n R_n r(1−r)      δ_z = γ (h_{t−1} − n) z(1−z)
        dA = (δ_r, δ_z, δ_n)      dR = (δ_r, δ_z, δ_n r)      γ_{t−1} = ∂C/∂y_{t−1} + γ z + uᵀ dR
        dx_t = wᵀ dA      dw = Σ_t x_t dA_t      du = Σ_t h_{t−1} dR_t      db = Σ dA      dc = Σ dR

    in one reverse scan, the sums as one product each. uᵀ and wᵀ come from `feedback`.

    Shapes: x `[batch, steps, n]`, y `[batch, features]` or, with return_sequences, `[batch, steps,
    features]`; params `{"w": [n, 3·features], "u": [features, 3·features], "b", "c":
    [3·features]}`, u drawn block by block. Complex x works. Keeps x, h, r, z, n and R_n.

    Args:
      features: size of h, >= 1.
      return_sequences: whether y is h at every step, or at the last one only.
      init: initialiser of w.
      recurrent_init: initialiser of u, block by block.

    Raises:
      ValueError: a setting is out of range, or one example is no `[steps, n]` sequence.

    Example:
      >>> import jax
      >>> params, shape = gru(3).init(jax.random.key(0), (7, 4))
      >>> shape, params["u"].shape
      ((3,), (3, 9))

    Source: Cho et al. 2014, Learning phrase representations using RNN encoder-decoder.
    """

    def step(a: Array, recur: Array, carry: Carry) -> tuple[Carry, Any]:
        a_r, a_z, a_n = jnp.split(a, 3, axis=-1)
        r_r, r_z, r_n = jnp.split(recur, 3, axis=-1)
        r, z = lax.logistic(a_r + r_r), lax.logistic(a_z + r_z)
        n = jnp.tanh(a_n + r * r_n)
        return (n + z * (carry[0] - n),), (r, z, n, r_n)

    def pull(kept: Any, before: Array, after: Array, errors: Carry) -> tuple[Array, Array, Carry]:
        r, z, n, r_n = kept
        gamma = errors[0]
        d_n = gamma * (1.0 - z) * (1.0 - n * n)
        d_r = d_n * r_n * r * (1.0 - r)
        d_z = gamma * (before - n) * z * (1.0 - z)
        d_a = jnp.concatenate([d_r, d_z, d_n], axis=-1)
        return d_a, jnp.concatenate([d_r, d_z, d_n * r], axis=-1), (gamma * z,)

    def biases() -> dict[str, Array]:
        return dict.fromkeys("bc", jnp.zeros((3 * features,)))

    cell = RecurrentCell("gru", 3, 1, step, pull, biases)
    return _recurrent(cell, features, return_sequences, init, recurrent_init)


@checked
def lstm(
    features: Count,
    return_sequences: bool = False,
    *,
    init: Initialiser = "glorot_uniform",
    recurrent_init: Initialiser = "orthogonal",
    forget_bias: float = 1.0,
) -> Layer:
    """c_t = f ⊙ c_{t−1} + i ⊙ g, h_t = o ⊙ tanh(c_t); y is the last h, or all of them.

    (i, f, g, o) = (σ, σ, tanh, σ)(x_t w + h_{t−1} u + b), four blocks of columns; h_0 = c_0 = 0.
    Backward through time, with γ, κ the errors on h_t, c_t and q = tanh(c_t):

        κ ← κ + γ ⊙ o (1 − q²)      κ_{t−1} = κ ⊙ f      γ_{t−1} = ∂C/∂y_{t−1} + uᵀ δ_t
        δ_t = (κ g i(1−i), κ c_{t−1} f(1−f), κ i (1−g²), γ q o(1−o))
        dx_t = wᵀ δ_t      dw = Σ_t x_t δ_t      du = Σ_t h_{t−1} δ_t      db = Σ_t δ_t

    in one reverse scan, the sums as one product each. uᵀ and wᵀ come from `feedback`.

    Shapes: x `[batch, steps, n]`, y `[batch, features]` or, with return_sequences, `[batch, steps,
    features]`; params `{"w": [n, 4·features], "u": [features, 4·features], "b": [4·features]}`, u
    drawn block by block. Complex x works. Keeps x, h, the four gates, and c_{t−1} and tanh(c_t).

    Args:
      features: size of h and of c, >= 1.
      return_sequences: whether y is h at every step, or at the last one only.
      init: initialiser of w.
      recurrent_init: initialiser of u, block by block.
      forget_bias: where b starts for f; it starts at 0 for the others.

    Raises:
      ValueError: a setting is out of range, or one example is no `[steps, n]` sequence.

    Example:
      >>> import jax
      >>> params, shape = lstm(3).init(jax.random.key(0), (7, 4))
      >>> shape, params["u"].shape
      ((3,), (3, 12))

    Source: Hochreiter & Schmidhuber 1997, Long short-term memory; with the forget gate of Gers,
    Schmidhuber & Cummins 2000.
    """

    def step(z: Array, r: Array, carry: Carry) -> tuple[Carry, Any]:
        z = z + r
        i, f, g, o = jnp.split(z, 4, axis=-1)
        i, f, g, o = lax.logistic(i), lax.logistic(f), jnp.tanh(g), lax.logistic(o)
        c = f * carry[1] + i * g
        q = jnp.tanh(c)
        return (o * q, c), (i, f, g, o, carry[1], q)

    def pull(kept: Any, before: Array, after: Array, errors: Carry) -> tuple[Array, None, Carry]:
        i, f, g, o, c_before, q = kept
        gamma, kappa = errors
        kappa = kappa + gamma * o * (1.0 - q * q)
        d_i, d_f = kappa * g * i * (1.0 - i), kappa * c_before * f * (1.0 - f)
        d_g, d_o = kappa * i * (1.0 - g * g), gamma * q * o * (1.0 - o)
        delta = jnp.concatenate([d_i, d_f, d_g, d_o], axis=-1)
        return delta, None, (jnp.zeros_like(gamma), kappa * f)

    def biases() -> dict[str, Array]:
        return {"b": jnp.zeros((4, features)).at[1].set(forget_bias).reshape(-1)}

    cell = RecurrentCell("lstm", 4, 2, step, pull, biases)
    return _recurrent(cell, features, return_sequences, init, recurrent_init)


class RecurrentCell(NamedTuple):
    """One step in time, and its pull-back. A carry is (h,) or (h, c), each `[batch, features]`.

    name: the layer's name.
    gates: how many blocks of `features` columns the weights have.
    cells: how many arrays the carry has.
    step(z, r, carry) -> (carry, kept): z = x_t w + b and r = h_{t−1} u + c, both `[batch,
        gates·features]`; kept is what `pull` needs besides h_{t−1} and h_t.
    pull(kept, before, after, errors) -> (dz, dr, errors): before, after are h_{t−1}, h_t; `errors`
        is that on the carry after the step, and then, except through r, on the one before it. dr is
        None where it equals dz.
    biases: () -> {"b": [gates·features]}, and "c" of the same shape if the layer has one.
    """

    name: str
    gates: int
    cells: int
    step: Callable[[Array, Array, Carry], tuple[Carry, Any]]
    pull: Callable[[Any, Array, Array, Carry], tuple[Array, Array | None, Carry]]
    biases: Callable[[], dict[str, Array]]


def _recurrent(
    cell: RecurrentCell,
    features: int,
    return_sequences: bool,
    init: Initialiser,
    recurrent_init: Initialiser,
) -> Layer:
    """The layer that steps `cell` along axis 1 of x `[batch, steps, n]` from a carry of zeros.

    params: {"w": [n, gates·features], "u": [features, gates·features], "b": [gates·features]}, and
    "c" of b's shape where the cell has one.

    Backward: the errors run through time in one reverse scan, which carries ∂C/∂h_t, ∂C/∂c_t and
    puts out ∂C/∂z_t; all that weights need of them then is one product each over steps and batch:

        ∂C/∂h_{t−1} = … + uᵀ dr_t      ∂C/∂w = Σ_t x_t dz_t      ∂C/∂u = Σ_t h_{t−1} dr_t

    Both uᵀ and wᵀ (in dx_t = wᵀ dz_t) come from `feedback`.
    """
    columns = cell.gates * features

    def make(key: Key, shape: Shape) -> tuple[Params, Shape]:
        if len(shape) != 2:
            raise ValueError(f"{cell.name}: one example has shape {shape}, needs (steps, features)")
        steps, n = shape
        w_key, u_key = jax.random.split(key)
        blocks = [
            initialise(recurrent_init, own, (features, features), features)
            for own in jax.random.split(u_key, cell.gates)
        ]
        params = {
            "w": initialise(init, w_key, (n, columns), n),
            "u": jnp.concatenate(blocks, axis=1),
            **cell.biases(),
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

    return Layer(cell.name, make, forward, backward)


_AFFINE = dense(1)  # its forward and backward take their sizes from the weights
