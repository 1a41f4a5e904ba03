"""Feedback alignment and its kin: published formulas in NumPy, and backprop where they are it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpeq import layers, rules
from bpeq.analysis.gradient_fidelity import gradient_fidelity
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense, flatten
from bpeq.rules import (
    backprop,
    direct_feedback_alignment,
    feedback_alignment,
    kolen_pollack,
    sign_symmetric,
)
from bpeq.rules._feedback_alignment import second_draw
from bpeq.training import loops
from bpeq.types import Batch

KEY = jax.random.key(0)
FAMILY = ["feedback_alignment", "direct_feedback_alignment", "sign_symmetric", "kolen_pollack"]
THREE = chain(dense(6), layers.tanh(), dense(5), layers.sigmoid(), dense(3), layers.tanh())
NETS = {  # network, shape of one example
    "dense": (THREE, (4,)),
    "conv": (
        chain(
            *(layers.conv(3, 3, stride=2), layers.relu(), layers.conv(4, 3), layers.max_pool(2)),
            *(layers.tanh(), flatten(), dense(3)),
        ),
        (8, 8, 2),
    ),
    "batch norm": (
        chain(
            *(layers.conv(3, 3), layers.batch_norm(), layers.relu(), layers.avg_pool(2), flatten()),
            *(dense(5), layers.batch_norm(), layers.tanh(), layers.dropout(0.3), dense(3)),
        ),
        (4, 4, 2),
    ),
    "residual": (
        chain(
            *(dense(5), layers.layer_norm(), layers.tanh()),
            layers.residual(dense(7), layers.gelu(), dense(5)),
            layers.repeat(chain(dense(5), layers.softplus()), 3),
            dense(3),
        ),
        (4,),
    ),
    "tokens": (
        chain(
            *(layers.embedding(7, 6), layers.position_embedding(4), layers.attention(2, True)),
            *(layers.layer_norm(), layers.rnn(5), layers.tanh(), dense(3)),
        ),
        (4,),
    ),
    "recurrent": (chain(layers.lstm(5, return_sequences=True), layers.gru(4), dense(3)), (4, 6)),
}


def at(name, dtype=jnp.float64, seed=0):
    """A network with random parameters, gains and biases too, and a batch of six."""
    network, shape = NETS[name]
    like, _ = network.init(KEY, shape)
    leaves, structure = jax.tree.flatten(like)
    drawn = [
        leaf + 0.3 * jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), leaf.shape)
        for i, leaf in enumerate(leaves)
    ]
    params = jax.tree.map(
        lambda fresh, new, path: jnp.abs(new) if path.endswith("variance") else new,
        like,
        jax.tree.unflatten(structure, drawn),
        jax.tree.unflatten(structure, trees.names(like)),
    )
    x = jax.random.normal(jax.random.key(1), (6, *shape))
    if name == "tokens":
        x = jax.random.randint(jax.random.key(1), (6, *shape), 0, 7)
    batch = Batch(x, jax.random.randint(jax.random.key(2), (6,), 0, 3))
    return network, *trees.cast((params, batch), dtype)


def gradient(rule, params, batch, state):
    return jax.jit(rule.estimate)(params, batch, state, KEY)[0].grads


def same_bits(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(np.asarray(x).view(np.uint8), np.asarray(y).view(np.uint8))


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


def written(params, x, t, back):
    """The three-layer net's gradient in NumPy; back(l, errors) is what block l's activation gets.

    errors[k] is δ_k, in NumPy, for the layers above; l counts from 1.
    """
    w, b = ([np.asarray(params[i][name]) for i in (0, 2, 4)] for name in ("w", "b"))
    values = [np.tanh, lambda z: 1 / (1 + np.exp(-z)), np.tanh]
    slopes = [lambda a: 1 - a**2, lambda a: a * (1 - a), lambda a: 1 - a**2]
    a = [np.asarray(x)]
    for l in range(3):
        a.append(values[l](a[-1] @ w[l] + b[l]))
    errors = {3: (a[3] - np.eye(3)[np.asarray(t)]) / len(t) * slopes[2](a[3])}
    for l in (2, 1):
        errors[l] = back(l, errors) * slopes[l - 1](a[l])
    grads = [{"w": a[l].T @ errors[l + 1], "b": errors[l + 1].sum(axis=0)} for l in range(3)]
    return grads[0], (), grads[1], (), grads[2], ()


def weights(tree):
    """W_1, W_2, W_3, or what stands in their places, by number."""
    return {l: np.asarray(tree[2 * (l - 1)]["w"]) for l in (1, 2, 3)}


def through(tree):
    """Errors come down through the transposes of these weights."""
    b = weights(tree)
    return lambda l, errors: errors[l + 1] @ b[l + 1].T


def test_feedback_alignment_is_lillicraps_formula():
    """δ_l = (B_{l+1}ᵀ δ_{l+1}) ⊙ σ′(z_l), B the tree that the rule's init drew."""
    network, params, batch = at("dense")
    rule = feedback_alignment(network, squared_error())
    _, state = rule.init(jax.random.key(5), params)
    expected = written(params, *batch[:2], through(state["feedback"]))
    assert distance(gradient(rule, params, batch, state), expected) < 1e-14
    exact = gradient(backprop(network, squared_error()), params, batch, ())
    assert distance(written(params, *batch[:2], through(params)), exact) < 1e-14
    assert distance(expected, exact) > 0.1


def test_direct_feedback_alignment_is_noeklands_formula():
    """δ_l = (B_lᵀ δ_L) ⊙ σ′(z_l), with matrices of one's own."""
    network, params, batch = at("dense")
    rng = np.random.default_rng(0)
    matrices = {1: rng.normal(size=(3, 6)), 2: rng.normal(size=(3, 5))}
    rule = direct_feedback_alignment(network, squared_error())
    state = {"feedback": tuple(map(jnp.asarray, matrices.values()))}
    expected = written(params, *batch[:2], lambda l, errors: errors[3] @ matrices[l])
    assert distance(gradient(rule, params, batch, state), expected) < 1e-14


@pytest.mark.parametrize("magnitude", ["random", "uniform"])
def test_sign_symmetric_reads_the_signs_of_the_current_weights(magnitude):
    """B = sign(W) ⊙ M, M fixed by the rule's init, which saw other weights."""
    network, params, batch = at("dense")
    rule = sign_symmetric(network, squared_error(), magnitude=magnitude)
    _, state = rule.init(jax.random.key(5), at("dense", seed=7)[1])
    before = weights(state["magnitudes"])
    concordant = tuple(
        {"w": np.sign(np.asarray(params[i]["w"])) * before[i // 2 + 1]} if i % 2 == 0 else ()
        for i in range(6)
    )
    expected = written(params, *batch[:2], through(concordant))
    assert distance(gradient(rule, params, batch, state), expected) < 1e-14
    other = weights(at("dense", seed=7)[1])
    for l, m in before.items():
        assert (m >= 0).all()
        assert (m == m[0, 0]).all() == (magnitude == "uniform")
        np.testing.assert_allclose(np.linalg.norm(m), np.linalg.norm(other[l]), rtol=1e-13)


def test_kolen_pollack_is_feedback_alignment_with_weights_plus_their_gap():
    """δ_l = ((W + D)_{l+1}ᵀ δ_{l+1}) ⊙ σ′(z_l); the gap D has no gradient, and apply ignores it."""
    network, params, batch = at("dense")
    rule = kolen_pollack(network, squared_error())
    both, state = rule.init(jax.random.key(5), params)
    gap = both[-1]["feedback"]
    back = jax.tree.map(lambda w, d: np.asarray(w) + np.asarray(d), params, gap)
    found = gradient(rule, both, batch, state)
    assert distance(found[:-1], written(params, *batch[:2], through(back))) < 1e-14
    same_bits(found[-1]["feedback"], trees.zeros(params))
    same_bits(rule.apply(both, batch.x), network.forward(params, batch.x)[0])
    assert distance(back, second_draw(jax.random.key(5), params)) < 1e-15


@functools.cache
def backprops(name, dtype=jnp.float64):
    network, params, batch = at(name, dtype)
    return gradient(backprop(network, softmax_cross_entropy()), params, batch, ())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", NETS)
def test_with_the_weights_as_feedback_it_is_backprop_to_the_last_bit(name, dtype):
    """Every bit of every leaf, in training, each in a jit of its own."""
    network, params, batch = at(name, dtype)
    rule = feedback_alignment(network, softmax_cross_entropy())
    same_bits(gradient(rule, params, batch, {"feedback": params}), backprops(name, dtype))


@pytest.mark.parametrize("name", ["conv", "residual"])
def test_with_the_weights_magnitudes_or_without_a_gap_it_is_backprop(name):
    network, params, batch = at(name)
    cost, exact = softmax_cross_entropy(), backprops(name)
    both = (*params, {"feedback": trees.zeros(params)})
    same_bits(gradient(kolen_pollack(network, cost), both, batch, ())[:-1], exact)
    state = {"magnitudes": jax.tree.map(jnp.abs, params)}
    found = gradient(sign_symmetric(network, cost), params, batch, state)
    assert layers.gradient_error(found, exact) < 1e-15  # sign(W)·|W| is computed where it is read


@pytest.mark.parametrize("rule_name", FAMILY)
@pytest.mark.parametrize("name", ["dense", "conv", "batch norm", "tokens", "recurrent"])
def test_the_last_layers_gradient_is_backprops_whatever_the_feedback(name, rule_name):
    network, params, batch = at(name)
    last = len(network.parts) - 1
    rule = getattr(rules, rule_name)(network, softmax_cross_entropy())
    ours, exact = gradient(rule, *rule_init(rule, params, batch)), backprops(name)
    if name == "dense":  # its last part is an activation
        last -= 1
    same_bits(ours[last], exact[last])
    if name == "recurrent" and rule_name == "direct_feedback_alignment":
        same_bits(ours, exact)  # one block alone: nothing is routed between blocks
    else:
        assert distance(ours[:last], exact[:last]) > 1e-2


def rule_init(rule, params, batch):
    params, state = rule.init(jax.random.key(5), params)
    return params, batch, state


@pytest.mark.parametrize("angle", [0.0, 45.0, 90.0, 180.0])
def test_feedback_is_drawn_at_the_angle_from_weights_that_were_drawn_themselves(angle):
    network, shape = NETS["batch norm"]
    params, _ = network.init(KEY, shape)
    rule = feedback_alignment(network, squared_error(), angle=angle)
    drawn = rule.init(jax.random.key(5), params)[1]["feedback"]
    again, other = (rule.init(jax.random.key(k), params)[1]["feedback"] for k in (5, 6))
    same_bits(drawn, again)
    turned = 0
    for w, b, c in zip(*map(jax.tree.leaves, (params, drawn, other)), strict=True):
        w, b, c = (np.asarray(leaf).ravel() for leaf in (w, b, c))
        if (w == w[0]).all():  # biases of zero, gains of one
            np.testing.assert_array_equal(b, w)
            continue
        turned += 1
        np.testing.assert_allclose(np.linalg.norm(b), np.linalg.norm(w), rtol=1e-13)
        cosine = w @ b / np.linalg.norm(w) ** 2
        assert abs(cosine - np.cos(np.radians(angle))) < 1e-13
        assert np.allclose(b, c) == (angle in (0.0, 180.0))
    assert turned == 3


def test_direct_feedback_alignment_with_one_hidden_block_is_feedback_alignment():
    network = chain(flatten(), dense(6), layers.tanh(), dense(3), layers.sigmoid())
    params, _ = network.init(KEY, (2, 2))
    batch = Batch(jax.random.normal(jax.random.key(1), (6, 2, 2)), jnp.array([0, 1, 2, 2, 1, 0]))
    indirect = feedback_alignment(network, squared_error())
    state = indirect.init(jax.random.key(5), params)[1]
    direct = direct_feedback_alignment(network, squared_error())
    sent = {"feedback": (state["feedback"][3]["w"].T,)}
    ours, theirs = gradient(direct, params, batch, sent), gradient(indirect, params, batch, state)
    assert distance(ours, theirs) < 1e-15


def test_direct_feedback_alignment_by_the_weights_products_is_backprop_in_a_linear_net():
    linear = layers.linear
    network = chain(dense(6), linear(), dense(5), linear(), dense(3))
    params, _ = network.init(KEY, (4,))
    batch = Batch(jax.random.normal(jax.random.key(1), (6, 4)), jnp.array([0, 1, 2, 2, 1, 0]))
    w = weights(params)
    state = {"feedback": (jnp.asarray((w[2] @ w[3]).T), jnp.asarray(w[3].T))}
    ours = gradient(direct_feedback_alignment(network, squared_error()), params, batch, state)
    assert distance(ours, gradient(backprop(network, squared_error()), params, batch, ())) < 1e-15


@pytest.mark.parametrize("name", ["conv", "batch norm", "tokens"])
def test_every_block_gets_its_own_pull_back_of_the_error_sent_to_it(name):
    """By jax.vjp of each block with its activation, in training; images and normalisation too."""
    network, params, batch = at(name)
    cost, n = softmax_cross_entropy(), len(network.parts)
    blocks = layers.cut(network)

    def forward(params, x, where):
        values = [x]
        for i in where:
            own = jax.random.fold_in(KEY, i)
            values.append(network.parts[i].forward(params[i], values[-1], own)[0])
        return values

    shapes = [v.shape for v in jax.eval_shape(lambda: forward(params, batch.x, range(n)))]
    rng = np.random.default_rng(3)
    matrices = [jnp.asarray(rng.normal(size=(3, *shapes[b.slice.stop][1:]))) for b in blocks[:-1]]

    @jax.jit
    def pulled(params):
        inputs = forward(params, batch.x, range(n))
        error = cost.error(inputs[-1], batch.y) / 6  # the last block is linear: e = ∂C/∂z
        expected = list(params)
        for block, matrix in zip(blocks, [*matrices, jnp.eye(3)], strict=True):
            where = range(block.slice.start, min(block.slice.stop + 1, n))
            _, pull = jax.vjp(lambda p, w=where: forward(p, inputs[w[0]], w)[-1], params)
            (grads,) = pull(jnp.tensordot(error, matrix, 1))
            expected[where.start : where.stop] = grads[where.start : where.stop]
        return tuple(expected)

    rule = direct_feedback_alignment(network, cost)
    ours = gradient(rule, params, batch, {"feedback": tuple(matrices)})
    assert layers.gradient_error(ours, pulled(params)) < 1e-13
    assert len(matrices) == len(blocks) - 1 > 0


def test_the_matrices_come_from_the_states_key_the_same_in_every_estimate():
    """Of Glorot's variance: read off a linear convolution's gradients, one output error a time."""
    network = chain(layers.conv(40, 3), layers.linear(), flatten(), dense(3))
    params, _ = network.init(KEY, (5, 5, 1))
    rule = direct_feedback_alignment(network, squared_error())
    x = jax.random.normal(jax.random.key(1), (1, 5, 5, 1))
    output = network.forward(params, x)[0]

    def sent(error, key, own=KEY):
        """∂C/∂w of the convolution with this output error alone."""
        batch = Batch(x, output - jnp.asarray([error], output.dtype))
        return np.asarray(rule.estimate(params, batch, {"feedback": key}, own)[0].grads[0]["w"])

    scale = np.sqrt(2 / (3 + 5 * 5 * 40))
    rows = [sent(np.eye(3)[k], jax.random.key(8)) for k in range(3)]
    mixed = sent([2.0, -1.0, 3.0], jax.random.key(8), jax.random.key(1))
    np.testing.assert_allclose(mixed, 2 * rows[0] - rows[1] + 3 * rows[2], atol=1e-14)
    assert not np.allclose(rows[0], sent([1.0, 0.0, 0.0], jax.random.key(9)))
    # Σ over the image of x·B is, for unit Gaussian B, of variance Σ x² under each offset.
    padded = np.pad(np.asarray(x)[0, :, :, 0], 1)
    energy = np.array(
        [[(padded[i : i + 5, j : j + 5] ** 2).sum() for j in range(3)] for i in range(3)]
    )
    normal = np.stack(rows)[:, :, :, 0] / np.sqrt(energy)[None, :, :, None] / scale
    assert abs(normal.std() - 1) < 0.1
    assert abs(normal.mean()) < 0.1


@pytest.mark.parametrize("rule_name", FAMILY)
def test_running_statistics_are_absorbed_as_under_backprop(rule_name):
    """One update: population statistics of every bit as backprop's, no decay or rate on them."""
    network, params, batch = at("batch norm")
    cost, optimizer = softmax_cross_entropy(), optax.sgd(0.1)
    moved = {}
    for name in ("backprop", rule_name):
        rule = getattr(rules, name)(network, cost)
        carry = loops.start(rule, optimizer, params, jax.random.key(5))
        carry, _ = jax.jit(loops.supervised(rule, optimizer))(carry, batch, KEY)
        moved[name] = carry.params
        assert len(carry.params) == len(params) + (name == "kolen_pollack")
    for i in (1, 6):
        for leaf in ("mean", "variance"):
            same_bits(moved[rule_name][i][leaf], moved["backprop"][i][leaf])
            assert (moved[rule_name][i][leaf] != params[i][leaf]).all()


@pytest.mark.parametrize("rule_name", FAMILY)
def test_the_reference_is_the_exact_gradient_of_the_forward_map(rule_name):
    network, params, batch = at("dense")
    rule = getattr(rules, rule_name)(network, squared_error())
    params_, _, state = rule_init(rule, params, batch)
    exact = rule.info.reference.estimate(params_, batch, (), KEY)[0]
    right = jax.grad(
        lambda p: squared_error().value(network.forward(p, batch.x)[0], batch.y).mean()
    )
    assert distance(exact.grads[: len(params)], right(params)) < 1e-14
    found = gradient_fidelity(rule, params_, batch, key=KEY, state=state, network=network)
    rows = ["dense_1", "dense_2", "dense_3"]
    assert list(found.layers) == rows + ["feedback"] * (rule_name == "kolen_pollack")
    assert found.layers["dense_3"].relative_error < 1e-14
    assert found.layers["dense_1"].relative_error > 0.1


def teacher(seed=0):
    """Linear regression by a linear net with two hidden layers, started small, as in the paper."""
    network = chain(dense(20, scale=0.3), layers.linear(), dense(20, scale=0.3), dense(5))
    params, _ = network.init(jax.random.key(seed), (10,))
    x = jax.random.normal(jax.random.key(1), (100, 10))
    return network, params, Batch(x, x @ jax.random.normal(jax.random.key(2), (10, 5)))


@pytest.mark.parametrize("rule_name", ["feedback_alignment", "direct_feedback_alignment"])
def test_learning_aligns_the_weights_with_the_feedback(rule_name):
    """The angle between estimate and gradient below the top falls from about 90° to below 60°."""
    network, params, batch = teacher()
    rule = getattr(rules, rule_name)(network, squared_error())
    exact = backprop(network, squared_error())
    _, state = rule.init(jax.random.key(5), params)

    def step(params, _):
        ours = rule.estimate(params, batch, state, KEY)[0]
        theirs = exact.estimate(params, batch, (), KEY)[0].grads
        pair = ours.grads[0]["w"], theirs[0]["w"]
        cosine = trees.dot(*pair) / jnp.sqrt(trees.dot(*pair[:1] * 2) * trees.dot(*pair[1:] * 2))
        return trees.sub(params, trees.scale(0.02, ours.grads)), (ours.loss, cosine)

    _, (loss, cosine) = jax.jit(lambda p: jax.lax.scan(step, p, length=400))(params)
    assert abs(cosine[0]) < 0.2
    assert cosine[200] > 0.5
    assert loss[-1] < 0.05 * loss[0]


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda c: feedback_alignment(THREE, c, angle=181.0), "feedback_alignment: angle = 181"),
        (lambda c: kolen_pollack(THREE, c, angle=-1.0), "kolen_pollack: angle = -1"),
        (lambda c: kolen_pollack(dense(3), c), "kolen_pollack: needs a chain, got .* 'dense'"),
        (lambda c: sign_symmetric(THREE, c, magnitude="one"), r"must be 'random' \| 'uniform'"),
        (
            lambda c: direct_feedback_alignment(NETS["residual"][0], c),
            r"direct_feedback_alignment: layer 3 \('residual'\) hides an activation",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make(squared_error())
