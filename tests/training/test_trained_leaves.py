"""Which leaves training changes: as the layers declare, whatever the leaves are called."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpeq import layers, optimizers, rules, solvers, systems, train
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import batch_norm, chain, dense, flatten, repeat, residual, tanh, trained_leaves
from bpeq.training.loops import apply_estimate, start
from bpeq.types import Batch, Layer

KEY = jax.random.key(0)
BATCH = Batch(jax.random.normal(KEY, (8, 3, 2)), jnp.arange(8) % 3)


@pytest.fixture(autouse=True)
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        yield


def shift(name: str) -> Layer:
    """y = x + p, p a vector called `name`: what a user may write."""

    def init(key, shape):
        return {name: jnp.zeros(shape[-1:])}, shape

    def forward(params, x, key=None):
        return x + params[name], ()

    def backward(params, feedback, residuals, dy):
        return {name: dy.sum(axis=0)}, dy

    return Layer("shift", init, forward, backward)


def normed(own: Layer, around: str) -> Layer:
    """A network with batch norm and the layer `own`, inside of another combinator."""
    inner = (dense(4), batch_norm(), tanh(), own)
    placed = {
        "chain": inner,
        "nested chain": (chain(chain(*inner)),),
        "residual": (dense(4), residual(*inner)),
        "repeat": (dense(4), repeat(chain(*inner), 2)),
        "repeat in residual": (dense(4), residual(repeat(chain(*inner), 2))),
    }
    return chain(flatten(), *placed[around], dense(3))


def leaf_values(params, name):
    """All leaves called `name`, in order."""
    paths = jax.tree.leaves_with_path(params)
    return [leaf for path, leaf in paths if jax.tree_util.keystr(path[-1:], simple=True) == name]


ADAMW = optax.adamw(0.01, weight_decay=0.5)
WITH_RATES = optimizers.with_rates(
    optimizers.momentum(0.1), learning_rate=0.1, total_steps=4, schedule=optimizers.cosine()
)


@pytest.mark.parametrize("name", ["mean", "variance", "w"])
@pytest.mark.parametrize("optimizer", [ADAMW, WITH_RATES], ids=["adamw", "with_rates"])
def test_a_users_leaf_beside_batch_norm_trains_whatever_its_name(name, optimizer):
    network = normed(shift(name), "chain")
    params, _ = network.init(KEY, (3, 2))
    rule = rules.backprop(network, softmax_cross_entropy())
    after = train(rule, optimizer, params, BATCH, epochs=2, batch_size=4, key=KEY).params
    assert (jnp.abs(after[4][name]) > 1e-3).any()  # entry 4 is the layer: flatten comes first


@pytest.mark.parametrize("around", ["nested chain", "residual", "repeat", "repeat in residual"])
def test_combinators_carry_what_their_layers_declare(around):
    network = normed(shift("mean"), around)
    params, _ = network.init(KEY, (3, 2))
    rule = rules.backprop(network, softmax_cross_entropy())
    optimizer = optax.sgd(10.0, momentum=0.5)
    carry = start(rule, optimizer, params, KEY)
    estimate, _ = rule.estimate(params, BATCH, (), KEY)
    after, _ = apply_estimate(rule, optimizer, params, carry.optimizer, estimate)
    absorbed = network.absorb(params, network.forward(params, BATCH.x, KEY)[1])
    (expected,), (found,) = leaf_values(absorbed, "variance"), leaf_values(after, "variance")
    np.testing.assert_allclose(found, expected, rtol=1e-14)
    means = leaf_values(after, "mean")
    mask = leaf_values(trained_leaves(network, params), "mean")
    assert sorted(mask) == [False, True]
    assert (jnp.abs(means[mask.index(True)]) > 1e-3).any()


@pytest.mark.parametrize("name", ["backprop", "autodiff", "feedback_alignment", "sign_symmetric",
                                  "direct_feedback_alignment", "kolen_pollack"])  # fmt: skip
def test_decay_never_reaches_running_statistics(name):
    """One step of bpeq.train under decay: the statistics are those that `absorb` gives, exactly."""
    network = normed(shift("w"), "chain")
    params, _ = network.init(KEY, (3, 2))
    rule = getattr(rules, name)(network, softmax_cross_entropy())
    decaying = optax.adamw(0.5, weight_decay=1.0)
    after = train(rule, decaying, params, BATCH, epochs=1, batch_size=8, key=KEY).params
    x = BATCH.x.reshape(8, -1) @ params[1]["w"] + params[1]["b"]
    np.testing.assert_allclose(after[2]["mean"], 0.1 * x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(after[2]["variance"], 0.9 + 0.1 * x.var(axis=0), rtol=1e-12)
    assert (jnp.abs(after[1]["w"] - params[1]["w"]) > 0.1).any()


def test_all_that_a_rule_appends_is_trained():
    network = normed(shift("w"), "chain")
    rule = rules.kolen_pollack(network, softmax_cross_entropy())
    params, _ = rule.init(KEY, network.init(KEY, (3, 2))[0])
    mask = rule.trained(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert all(jax.tree.leaves(mask[-1]))
    assert leaf_values(mask[:-1], "mean") == [False]


@pytest.mark.parametrize("system", [systems.hopfield, systems.predictive])
def test_a_rule_that_relaxes_leaves_frozen_weights_alone(system):
    def frozen(layer):
        return layer._replace(trained=lambda params: jax.tree.map(lambda leaf: False, params))

    network = chain(flatten(), frozen(dense(4)), tanh(), dense(3))
    params, _ = network.init(KEY, (3, 2))
    brief = solvers.fixed_steps(2)
    rule = rules.eqprop(system(network), squared_error(), brief, brief)
    batch = Batch(BATCH.x, jax.nn.one_hot(BATCH.y, 3))
    after = train(rule, ADAMW, params, batch, epochs=1, batch_size=8, key=KEY).params
    jax.tree.map(np.testing.assert_array_equal, after[1], params[1])
    assert (after[3]["w"] != params[3]["w"]).all()


def test_a_layer_without_a_declaration_is_trained_whole():
    network = chain(dense(3), layers.tanh())
    params, _ = network.init(KEY, (2,))
    assert network.trained is None
    assert all(jax.tree.leaves(trained_leaves(network, params)))


def test_a_layer_that_absorbs_must_declare_what_it_writes():
    silent = batch_norm()._replace(trained=None)
    for network in (silent, chain(dense(3), silent), chain(dense(3), silent, batch_norm())):
        params, _ = network.init(KEY, (2,))
        with pytest.raises(ValueError, match="has `absorb`"):
            trained_leaves(network, params)
