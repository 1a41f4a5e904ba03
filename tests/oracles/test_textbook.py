"""The textbook's training step, written in NumPy, against ours; and training's own promises."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpeq import layers, optimizers
from bpeq.core import trees
from bpeq.costs import squared_error
from bpeq.layers import chain, dense
from bpeq.rules import backprop, eqprop
from bpeq.settings import SettingError
from bpeq.solvers import fixed_steps
from bpeq.systems import hopfield
from bpeq.training.evaluation import evaluator
from bpeq.training.loops import (
    Carry,
    epoch_scan,
    over_seeds,
    start,
    supervised,
    train,
)
from bpeq.types import Batch


@pytest.fixture(autouse=True)
def optax_promotes():
    """Optax raises Python floats to integer powers, which strict promotion forbids."""
    with jax.numpy_dtype_promotion("standard"):
        yield


X = np.array([[0.0, 0], [0, 1], [1, 0], [1, 1]])
Y = np.array([[0.0], [1], [1], [0]])


def xor_net():
    return chain(
        dense(4, init="normal", bias_init="normal"),
        layers.sigmoid(),
        dense(1, init="normal", bias_init="normal"),
        layers.sigmoid(),
    )


def test_a_hundred_textbook_steps_in_numpy_equal_ours():
    """Forward, δ's, mean gradient over the four rows, plain descent: equal to 1e-12 in float64."""
    network = xor_net()
    params, _ = network.init(jax.random.key(0), (2,))
    w1, b1, w2, b2 = (np.array(params[i][k]) for i in (0, 2) for k in ("w", "b"))
    result = train(
        backprop(network, squared_error()),
        optax.sgd(1.0),
        params,
        Batch(jnp.asarray(X), jnp.asarray(Y)),
        epochs=100,
        batch_size=4,
        key=jax.random.key(1),
    )
    sigma = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
    losses = []
    for _ in range(100):
        a1 = sigma(X @ w1 + b1)
        a2 = sigma(a1 @ w2 + b2)
        losses.append(0.5 * ((a2 - Y) ** 2).sum() / 4)
        delta2 = (a2 - Y) * a2 * (1 - a2)
        delta1 = (delta2 @ w2.T) * a1 * (1 - a1)
        w2, b2 = w2 - a1.T @ delta2 / 4, b2 - delta2.sum(0) / 4
        w1, b1 = w1 - X.T @ delta1 / 4, b1 - delta1.sum(0) / 4
    ours = [result.params[i][k] for i in (0, 2) for k in ("w", "b")]
    for found, expected in zip(ours, (w1, b1, w2, b2), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-12, rtol=0)
    np.testing.assert_allclose(result.metrics["loss"], losses, atol=1e-12, rtol=0)
    assert losses[-1] < losses[0]


def test_seeds_side_by_side_equal_seeds_one_by_one():
    network, n = xor_net(), 3
    rule, optimizer = backprop(network, squared_error()), optax.adam(0.01)
    keys = jax.random.split(jax.random.key(0), n)
    params = jax.vmap(lambda k: network.init(k, (2,))[0])(keys)
    run = epoch_scan(supervised(rule, optimizer), 2)
    x, y, rows = jnp.asarray(X), jnp.asarray(Y), jnp.arange(4)
    first = jnp.asarray(0)
    alone = [
        run(
            start(rule, optimizer, jax.tree.map(lambda p, i=i: p[i], params), keys[i]),
            x, y, rows, keys[i], first, 5,
        )[0].params
        for i in range(n)
    ]  # fmt: skip
    carry = jax.vmap(lambda p, k: start(rule, optimizer, p, k))(params, keys)
    together, _ = over_seeds(run)(carry, x, y, jnp.stack([rows] * n), keys, first, 5)
    for i in range(n):
        gap = jax.tree.map(lambda a, b, i=i: jnp.abs(a[i] - b).max(), together.params, alone[i])
        assert max(map(float, jax.tree.leaves(gap))) < 1e-14


def test_every_epoch_visits_every_example_once_in_an_order_of_its_own():
    def step(carry, batch, key):
        return jnp.concatenate([carry[batch.x.size :], batch.x]), {"loss": batch.x.sum()}

    x = jnp.arange(12.0)
    run = epoch_scan(step, 3)
    orders = [
        run(jnp.zeros(12), x, x, jnp.arange(12), jax.random.key(0), jnp.asarray(e), 1)[0]
        for e in (0, 1, 0)
    ]
    assert sorted(orders[0].tolist()) == x.tolist()
    assert orders[0].tolist() == orders[2].tolist()  # data order is a function of (key, epoch)
    assert orders[0].tolist() != orders[1].tolist()
    both = run(jnp.zeros(12), x, x, jnp.arange(12), jax.random.key(0), jnp.asarray(0), 2)[0]
    assert both.tolist() == orders[1].tolist()  # two epochs at once are the same two epochs


def test_full_batches_are_not_shuffled():
    def step(carry, batch, key):
        return batch.x, {"loss": batch.x.sum()}

    x = jnp.arange(5.0)
    last, _ = epoch_scan(step, 5)(x, x, x, jnp.arange(5), jax.random.key(0), jnp.asarray(0), 1)
    assert last.tolist() == x.tolist()


def test_evaluation_in_chunks_equals_evaluation_at_once():
    network = chain(dense(3), layers.tanh(), dense(4))
    params, _ = network.init(jax.random.key(0), (5,))
    x = jax.random.normal(jax.random.key(1), (23, 5))
    y = jax.random.randint(jax.random.key(2), (23,), 0, 4)
    rule = backprop(network, squared_error())
    rows = jnp.arange(3, 23)
    measure = lambda chunk: evaluator(rule, squared_error(), "classification", chunk=chunk)(  # noqa: E731
        params, x, y, rows
    )
    output = network.forward(params, x[3:])[0]
    wrong = float((output.argmax(axis=1) != y[3:]).mean())
    for chunk in (1, 7, 20, 1000):
        np.testing.assert_allclose(measure(chunk)["error"], wrong, atol=1e-15)
        np.testing.assert_allclose(
            measure(chunk)["loss"], squared_error().value(output, y[3:]).mean(), rtol=1e-14
        )


def test_binary_and_regression_scores_by_hand():
    rule = backprop(chain(layers.linear()), squared_error())
    x, y = jnp.array([[0.6], [0.4], [0.9]]), jnp.array([[1.0], [1.0], [1.0]])
    binary = evaluator(rule, squared_error(), "binary")(((),), x, y, jnp.arange(3))
    np.testing.assert_allclose(binary["error"], 1 / 3)
    assert float(binary["solved"]) == 0.0
    y = jnp.array([[0.6], [0.4], [0.0]])
    regression = evaluator(rule, squared_error(), "regression", unit=10.0)(
        ((),), x, y, jnp.arange(3)
    )
    np.testing.assert_allclose(regression["rmse"], 10 * 0.9 / 3**0.5, rtol=1e-15)
    spread = ((np.array([0.6, 0.4, 0.0]) - 1 / 3) ** 2).sum()
    np.testing.assert_allclose(regression["r2"], 1 - 0.81 / spread, rtol=1e-14)


def test_ep_records_sweeps_and_unsettled_phases():
    network = chain(dense(3), layers.tanh(), dense(1))
    settle = fixed_steps(4, tolerance=0.0)
    rule = eqprop(hopfield(network), squared_error(), settle, settle)
    params, _ = network.init(jax.random.key(0), (2,))
    carry = start(rule, optax.sgd(0.1), params, jax.random.key(0))
    _, metrics = supervised(rule, optax.sgd(0.1))(
        carry, Batch(jnp.asarray(X) + 1, jnp.asarray(Y)), jax.random.key(0)
    )
    assert float(metrics["sweeps"]) == 12.0  # 4 free, 4 at +β, 4 at −β
    assert float(metrics["sweeps_nudged"]) == 4.0
    assert float(metrics["unsettled"]) == 1.0


@pytest.mark.parametrize("name", ["sgd", "momentum", "rmsprop", "adam", "adamw"])
def test_layer_rates_are_the_learning_rate_of_each_block(name):
    """Two blocks at rates r₁, r₂ move as in two runs whose only rate is r₁, or r₂."""
    network = chain(dense(3), layers.tanh(), dense(2))
    params, _ = network.init(jax.random.key(0), (4,))
    factory = getattr(optimizers, name)

    def after(**kwargs):
        rate = kwargs.pop("rate")
        optimizer = optimizers.with_rates(
            factory(rate), learning_rate=rate, total_steps=9, **kwargs
        )
        state, at = optimizer.init(params), params
        for i in range(3):
            grads = jax.tree.map(lambda p, i=i: jnp.sin(p + i), at)
            updates, state = optimizer.update(grads, state, at)
            at = optax.apply_updates(at, updates)
        return at

    mixed = after(rate=0.5, layer_rates=[0.1, 0.02], network=network)
    if name == "adamw":  # its decay reads the weights, which differ: compare first blocks only
        np.testing.assert_allclose(mixed[0]["w"], after(rate=0.1)[0]["w"], rtol=1e-12)
    else:
        np.testing.assert_allclose(mixed[0]["w"], after(rate=0.1)[0]["w"], rtol=1e-12)
        np.testing.assert_allclose(mixed[2]["w"], after(rate=0.02)[2]["w"], rtol=1e-12)
    frozen = after(rate=0.5, layer_rates=[0.0, 0.5], network=network)
    np.testing.assert_array_equal(frozen[0]["w"], params[0]["w"])


def test_skips_have_the_rate_of_the_block_that_they_drive_and_feedback_that_of_its_forward_one():
    network = chain(dense(3), layers.tanh(), dense(2), layers.tanh(), dense(2))
    skips = {(0, 2): dense(2), (1, 3): dense(2)}
    params, _ = hopfield(network, skips=skips, feedback="untied").init(jax.random.key(0), (4,))
    optimizer = optimizers.with_rates(
        optimizers.sgd(1.0),
        learning_rate=1.0,
        total_steps=1,
        layer_rates=[0.1, 0.2, 0.3],
        network=network,
    )
    ones = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(ones, optimizer.init(params), params)
    rates = {
        name: -float(leaf.ravel()[0])
        for name, leaf in zip(trees.names(updates), jax.tree.leaves(updates), strict=True)
        if name.endswith("w")
    }
    by_connection = {"5.skips.0_2.w": 0.2, "5.skips.1_3.w": 0.3, "6.feedback.1_3.w": 0.3}
    by_connection |= {"6.feedback.dense_2.0.w": 0.2, "6.feedback.dense_3.0.w": 0.3}
    assert rates == pytest.approx({"0.w": 0.1, "2.w": 0.2, "4.w": 0.3} | by_connection, rel=1e-12)


def test_schedules_start_at_one_and_end_where_they_say():
    at = jnp.array([0.0, 0.5, 1.0])
    np.testing.assert_allclose(optimizers.cosine(final=0.2)(at), [1, 0.6, 0.2], atol=1e-15)
    np.testing.assert_allclose(optimizers.linear_decay(final=0.0)(at), [1, 0.5, 0], atol=1e-15)
    np.testing.assert_allclose(optimizers.exponential(final=0.01)(at), [1, 0.1, 0.01], rtol=1e-12)
    np.testing.assert_allclose(optimizers.constant()(at), [1, 1, 1])
    warm = optimizers.cosine(warmup=0.5)
    np.testing.assert_allclose(warm(jnp.array([0.0, 0.25, 0.5, 1.0])), [0, 0.5, 1, 0], atol=1e-15)


def test_clip_norm_scales_gradients_down_to_the_norm_and_never_up():
    optimizer = optimizers.with_rates(
        optimizers.sgd(1.0), learning_rate=1.0, total_steps=1, clip_norm=0.5
    )
    for norm, expected in ((5.0, 0.5), (0.1, 0.1)):
        grads = {"a": jnp.array([0.6, 0.8]) * norm}
        updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
        np.testing.assert_allclose(jnp.linalg.norm(updates["a"]), expected, rtol=1e-12)


@pytest.mark.parametrize("clip", [0.0, -1.0])
def test_a_clip_norm_that_is_not_positive_is_refused(clip):
    with pytest.raises(SettingError) as error:
        optimizers.with_rates(optimizers.sgd(1.0), learning_rate=1.0, total_steps=1, clip_norm=clip)
    assert (error.value.setting, error.value.value) == ("clip_norm", clip)


@pytest.mark.parametrize("clip", [1e-30, 1.0])
def test_a_gradient_of_zero_gives_an_update_of_zero_at_any_clip_norm(clip):
    optimizer = optimizers.with_rates(
        optimizers.sgd(1.0), learning_rate=1.0, total_steps=1, clip_norm=clip
    )
    grads = {"a": jnp.zeros(2, jnp.float32), "b": jnp.zeros(3, jnp.float32)}
    updates, _ = optimizer.update(grads, optimizer.init(grads), grads)
    assert [u.tolist() for u in updates.values()] == [[0.0] * 2, [0.0] * 3]


def test_train_leaves_the_given_parameters_alone():
    network = xor_net()
    params, _ = network.init(jax.random.key(0), (2,))
    before = jax.tree.map(np.array, params)
    rule = backprop(network, squared_error())
    batch = Batch(jnp.asarray(X), jnp.asarray(Y))
    result = train(
        rule, optax.sgd(1.0), params, batch, epochs=2, batch_size=2, key=jax.random.key(0)
    )
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), params, before)))
    assert trees.size(result.params) == 17


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 5}, "batch_size = 5: must be 1 to 4"),
        ({"batch_size": 0}, "batch_size = 0: must be 1 to 4"),
        ({"epochs": 0}, "epochs = 0: must be >= 1"),
    ],
)
def test_train_refuses_sizes_that_do_not_fit(change, message):
    network = xor_net()
    params, _ = network.init(jax.random.key(0), (2,))
    rule = backprop(network, squared_error())
    arguments = {"epochs": 1, "batch_size": 1, "key": jax.random.key(0)} | change
    with pytest.raises(ValueError, match=message):
        train(rule, optax.sgd(1.0), params, Batch(jnp.asarray(X), jnp.asarray(Y)), **arguments)


@pytest.mark.parametrize("labels", [[0, 1, 2, 3], [0, -1, 2, 1]])
def test_train_refuses_labels_that_are_no_class(labels):
    network = chain(dense(3))
    params, _ = network.init(jax.random.key(0), (2,))
    batch = Batch(jnp.asarray(X), jnp.asarray(labels))
    rule = backprop(network, squared_error())
    with pytest.raises(ValueError, match="must be 0 to 2, the network has 3 outputs"):
        train(rule, optax.sgd(1.0), params, batch, epochs=1, batch_size=1, key=jax.random.key(0))


def test_a_part_passed_without_its_parentheses_is_refused_by_name():
    with pytest.raises(ValueError, match=r"backprop: cost = .*must be a Cost"):
        backprop(chain(dense(3)), squared_error)


def test_carry_keeps_its_structure_so_that_scans_can_hold_it():
    network = xor_net()
    rule = backprop(network, squared_error())
    params, _ = network.init(jax.random.key(0), (2,))
    carry = start(rule, optax.adam(0.1), params, jax.random.key(0))
    after, _ = supervised(rule, optax.adam(0.1))(
        carry, Batch(jnp.asarray(X), jnp.asarray(Y)), jax.random.key(0)
    )
    assert isinstance(after, Carry)
    assert jax.tree.structure(after) == jax.tree.structure(carry)
