"""Written errors against `jax.grad` of the values, and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import costs, layers
from bpeq.core import numerics

COSTS = ["squared_error", "softmax_cross_entropy"]


@pytest.mark.parametrize("name", COSTS)
@pytest.mark.parametrize("labels", [True, False])
def test_error_is_the_gradient_of_the_value(name, labels):
    cost = getattr(costs, name)()
    output = 3 * jax.random.normal(jax.random.key(0), (6, 4))
    y = (
        jnp.arange(6, dtype=jnp.int32) % 4
        if labels
        else jax.random.uniform(jax.random.key(1), (6, 4))
    )
    grad = jax.grad(lambda o: cost.value(o, y).sum())(output)
    np.testing.assert_allclose(cost.error(output, y), grad, atol=1e-14)


@pytest.mark.parametrize("name", COSTS)
def test_labels_equal_their_one_hot_vectors(name):
    cost = getattr(costs, name)()
    output, y = jnp.arange(8.0).reshape(2, 4) ** 0.5, jnp.array([3, 0])
    one_hot = jnp.eye(4)[y]
    np.testing.assert_array_equal(cost.value(output, y), cost.value(output, one_hot))


def test_squared_error_carries_the_half():
    value = costs.squared_error().value(jnp.array([[3.0, 0.0]]), jnp.array([[0.0, 4.0]]))
    assert value.tolist() == [12.5]


def test_cross_entropy_survives_logits_of_ten_thousand():
    cost = costs.softmax_cross_entropy()
    output, y = jnp.array([[1e4, -1e4, 0.0]]), jnp.array([1])
    assert cost.value(output, y).tolist() == [2e4]
    assert cost.error(output, y).tolist() == [[1.0, -1.0, 0.0]]


INF, HUGE = np.inf, 3e38
EXTREMES = [  # outputs, label, C, p
    ([-INF, 0.0, 0.0], 1, np.log(2), [0.0, 0.5, 0.5]),
    ([-INF, 0.0, 0.0], 0, INF, [0.0, 0.5, 0.5]),
    ([HUGE, -HUGE], 0, 0.0, [1.0, 0.0]),
    ([HUGE, HUGE, -HUGE], 1, np.log(2), [0.5, 0.5, 0.0]),
    ([-HUGE, -HUGE], 0, np.log(2), [0.5, 0.5]),
]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize(("output", "label", "value", "p"), EXTREMES)
def test_cross_entropy_is_that_of_the_limit_at_outputs_without_bound(
    dtype, output, label, value, p
):
    """Value, written error and jax.grad, for a label and for its one-hot vector."""
    scale = 5e269 if dtype == jnp.float64 and HUGE in np.abs(output) else 1.0  # 1.5e308
    cost, output = costs.softmax_cross_entropy(), jnp.array([output], dtype) * scale
    one_hot = np.eye(output.shape[1])[label]
    rtol = 1e-6 if dtype == jnp.float32 else 1e-14
    for y in (jnp.array([label]), jnp.array([one_hot], dtype)):
        np.testing.assert_allclose(cost.value(output, y), [value], rtol=rtol)
        np.testing.assert_allclose(cost.error(output, y)[0], p - one_hot, rtol, rtol)
        if np.isfinite(value):
            grad = jax.grad(lambda o, y=y: cost.value(o, y).sum())(output)
            np.testing.assert_allclose(grad[0], p - one_hot, rtol, rtol)


def test_squared_error_of_outputs_without_bound_has_no_nan():
    cost, y = costs.squared_error(), jnp.zeros((1, 2), jnp.float32)
    for output in ([-INF, 0.0], [HUGE, -HUGE]):
        output = jnp.array([output], jnp.float32)
        grad = jax.grad(lambda o: cost.value(o, y).sum())(output)
        assert cost.value(output, y).tolist() == [INF]
        assert cost.error(output, y).tolist() == grad.tolist() == output.tolist()


def test_log_sum_exp_of_nothing_is_minus_infinity_with_derivative_zero():
    nothing = jnp.full(2, -INF)
    assert numerics.logsumexp(nothing) == -INF
    assert jax.grad(numerics.logsumexp)(nothing).tolist() == [0.0, 0.0]
    far = jnp.array([HUGE, -HUGE], jnp.float32)
    assert numerics.logsumexp(far) == np.float32(HUGE)
    assert jax.grad(numerics.logsumexp)(far).tolist() == [1.0, 0.0]


@pytest.mark.parametrize("low", [-INF, -HUGE])
def test_soft_pool_gives_no_weight_to_a_pixel_without_bound(low):
    layer = layers.soft_pool(2)
    x = jnp.array([[low, 0.0], [0.0, low]], jnp.float32).reshape(1, 2, 2, 1)
    y, kept = layer.forward((), x)
    by_hand = layer.backward((), (), kept, jnp.ones_like(y))[1]
    by_jax = jax.grad(lambda x: layer.forward((), x)[0].sum())(x)
    assert y.item() == 0.0
    assert by_hand.ravel().tolist() == by_jax.ravel().tolist() == [0.0, 0.5, 0.5, 0.0]
    top = jnp.array([[-low if low > -INF else 0.0, low], [low, low]], jnp.float32)
    y, kept = layer.forward((), top.reshape(1, 2, 2, 1))
    assert y.item() == top[0, 0]
    assert layer.backward((), (), kept, jnp.ones_like(y))[1].ravel().tolist() == [
        1.0,
        0.0,
        0.0,
        0.0,
    ]


def test_cross_entropy_of_uniform_outputs_is_log_classes():
    value = costs.softmax_cross_entropy().value(jnp.zeros((1, 10)), jnp.array([7]))
    np.testing.assert_allclose(value, np.log(10), rtol=1e-15)


def test_targets_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"\(3,\).*fit outputs of shape \(2, 4\)"):
        costs.squared_error().value(jnp.zeros((2, 4)), jnp.zeros(3, jnp.int32))


@pytest.mark.parametrize("name", COSTS)
def test_labels_on_a_single_output_are_refused_as_they_name_one_class_only(name):
    with pytest.raises(ValueError, match="have only one"):
        getattr(costs, name)().value(jnp.zeros((4, 1)), jnp.array([0, 1, 1, 0]))


def test_softmax_is_holomorphic():
    z = jnp.array([0.3, -1.2, 2.0])
    nudged = jax.lax.complex(z, jnp.array([1e-30, 0.0, 0.0]))
    step = numerics.softmax(nudged).imag / 1e-30
    np.testing.assert_allclose(step, jax.jacobian(numerics.softmax)(z)[:, 0], atol=1e-15)


def test_xlogy_is_zero_at_zero_with_a_finite_gradient():
    value, slope = jax.value_and_grad(lambda x: numerics.xlogy(x, x))(0.0)
    assert value == 0.0
    assert np.isfinite(slope)
