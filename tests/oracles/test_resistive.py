"""Deep resistive networks: circuits against SciPy, EP against implicit differentiation, g >= 0."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize
import scipy.sparse
import scipy.sparse.linalg

from bpeq import layers, optimizers, rules
from bpeq.core import trees
from bpeq.costs import squared_error
from bpeq.layers import chain, dense, flatten, gradient_error
from bpeq.solvers import fixed_point, fixed_steps
from bpeq.systems import hopfield, resistive
from bpeq.types import Activation, Batch

TIGHT = fixed_point(1e-13, 3000)
KEY = jax.random.key(0)
ACTIVATIONS = ["linear", "relu", "hard_sigmoid"]


def below_one():
    """A diode to a source of one volt: v <= 1."""
    one = Activation(
        lambda z: jnp.minimum(z, 1.0), lambda z: (z < 1).astype(z.dtype), lambda s: s * s / 2, False
    )
    return layers.activation_layer("below_one", one)


def net(name, depth=2, **settings):
    act = {"below_one": below_one}.get(name) or getattr(layers, name)
    hidden = [p for width in (7, 6, 5)[:depth] for p in (dense(width, bias_init="normal"), act())]
    return resistive(chain(flatten(), *hidden, dense(3, bias_init="normal")), **settings)


def problem(system, shape=(2, 2), batch=5, dtype=jnp.float64, seed=0):
    params, out = system.init(jax.random.key(seed), shape)
    params = trees.cast(params, dtype)
    x = jax.random.normal(jax.random.key(seed + 1), (batch, *shape), dtype)
    y = jax.random.normal(jax.random.key(seed + 2), (batch, *out), dtype)
    return params, Batch(x, y)


def settled(system, params, x, solver=TIGHT):
    def run(params, x):
        clamped = system.clamp(params, x)
        start = system.init_state(params, clamped)
        return solver(lambda s: system.sweep(params, clamped, s), start)

    return jax.jit(run)(params, x)


def circuit(params, x, gain, paired):
    """(resistors [(a, b, g)], the voltage of every source, first nodes free): written out by hand.

    Nodes are numbered layer by layer; a source is a node whose voltage is known.
    """
    blocks = [part for part in params if part]
    flat = np.concatenate([np.asarray(x), -np.asarray(x)], axis=-1).ravel() * gain
    sources = [*flat, gain, -gain]
    widths = [part["w"].shape[-1] * (2 if paired and part is blocks[-1] else 1) for part in blocks]
    free = sum(widths)
    resistors, start, below = [], 0, free + np.arange(len(flat))
    for part, width in zip(blocks, widths, strict=True):
        w, b = np.asarray(part["w"]), np.asarray(part["b"])
        if w.ndim == 3:  # the nodes of a pair: first all v⁺, then all v⁻
            w, b = np.concatenate(list(w), axis=1), np.concatenate(list(np.swapaxes(b, 0, 1)), 1)
        nodes = start + np.arange(width)
        for j, node in enumerate(nodes):
            resistors += [(node, other, w[i, j]) for i, other in enumerate(below)]
            resistors += [(node, free + len(flat) + sign, b[sign, j]) for sign in (0, 1)]
        start, below = start + width, nodes
    return resistors, np.array(sources), free


def edges(resistors, sources, free):
    """√g (v_a − v_b) of every resistor as A v − c, so that the power is ‖A v − c‖² / 2."""
    rows, right = scipy.sparse.lil_matrix((len(resistors), free)), np.zeros(len(resistors))
    for k, (a, b, g) in enumerate(resistors):
        for node, sign in ((a, 1.0), (b, -1.0)):
            if node < free:
                rows[k, node] = sign * np.sqrt(g)
            else:
                right[k] -= sign * np.sqrt(g) * sources[node - free]
    return rows.tocsr(), right


def flat(state):
    return np.concatenate([np.asarray(v).reshape(len(v), -1) for v in state], axis=1)


@pytest.mark.parametrize("outputs", ["single", "paired"])
@pytest.mark.parametrize("depth", [0, 1, 3])
def test_a_circuit_without_diodes_settles_where_nodal_analysis_says(depth, outputs):
    """The graph's Laplacian, solved by SciPy for the nodes that are no sources."""
    system = net("linear", depth, gain=3.0, outputs=outputs)
    params, batch = problem(system)
    state, info = settled(system, params, batch.x)
    assert info.converged.all()
    for x, ours in zip(batch.x, flat(state), strict=True):
        resistors, sources, free = circuit(params, x, 3.0, outputs == "paired")
        size = free + len(sources)
        a, b, g = (np.array(column) for column in zip(*resistors, strict=True))
        graph = scipy.sparse.coo_matrix((g, (a, b)), (size, size))
        graph = graph + graph.T
        laplacian = (scipy.sparse.diags(np.asarray(graph.sum(axis=1)).ravel()) - graph).tocsc()
        right = -laplacian[:free, free:] @ sources
        expected = scipy.sparse.linalg.spsolve(laplacian[:free, :free], right)
        np.testing.assert_allclose(ours, expected, atol=1e-8)


BOUNDS = {"relu": (0, np.inf), "hard_sigmoid": (0, 1), "below_one": (-np.inf, 1)}


@pytest.mark.parametrize("outputs", ["single", "paired"])
@pytest.mark.parametrize("polarity", ["positive", "alternating"])
@pytest.mark.parametrize("name", BOUNDS)
def test_a_circuit_with_diodes_settles_where_bounded_least_squares_says(name, polarity, outputs):
    """min ½‖Av − c‖² within the diodes' bounds, by SciPy's active-set solver."""
    system = net(name, 2, gain=10.0, polarity=polarity, outputs=outputs)
    params, batch = problem(system)
    state, info = settled(system, params, batch.x)
    assert info.converged.all()
    low, high = BOUNDS[name]
    touched = inside = 0
    for x, ours in zip(batch.x, flat(state), strict=True):
        resistors, sources, free = circuit(params, x, 10.0, outputs == "paired")
        rows, right = edges(resistors, sources, free)
        lower, upper = np.full(free, -np.inf), np.full(free, np.inf)
        for first, width in ((0, 7), (7, 6)):
            for unit in range(width):
                turned = polarity == "alternating" and unit % 2 == 1
                lower[first + unit], upper[first + unit] = (-high, -low) if turned else (low, high)
        found = scipy.optimize.lsq_linear(
            rows.toarray(), right, (lower, upper), method="bvls", tol=1e-15
        )
        np.testing.assert_allclose(ours, found.x, atol=1e-8)
        at_bound = (ours == lower) | (ours == upper)
        touched, inside = touched + at_bound.sum(), inside + (~at_bound[:13]).sum()
    assert touched > 5  # diodes that conduct, and others that do not
    assert inside > 5


@pytest.mark.parametrize("outputs", ["single", "paired"])
def test_the_energy_is_half_the_power_of_all_resistors(outputs):
    system = net("relu", 2, gain=3.0, outputs=outputs)
    params, batch = problem(system)
    clamped = system.clamp(params, batch.x)
    state = jax.tree.map(
        lambda s: jax.random.normal(KEY, s.shape), system.init_state(params, clamped)
    )
    for x, v, ours in zip(batch.x, flat(state), system.energy(params, clamped, state), strict=True):
        resistors, sources, _ = circuit(params, x, 3.0, outputs == "paired")
        volts = np.concatenate([v, sources])
        power = sum(g * (volts[a] - volts[b]) ** 2 for a, b, g in resistors)
        np.testing.assert_allclose(ours, power / 2, rtol=1e-13)


IMAGE = chain(
    *(layers.conv(4, 3, bias_init="normal"), layers.avg_pool(2), layers.relu()),
    *(flatten(), dense(3, bias_init="normal")),
)
SYSTEMS = {
    "relu": (lambda: net("relu", 3, gain=2.0), (2, 2)),
    "box, paired": (lambda: net("hard_sigmoid", 2, gain=5.0, outputs="paired"), (2, 2)),
    "linear": (lambda: net("linear", 2, gain=2.0, outputs="paired"), (2, 2)),
    "image": (lambda: resistive(IMAGE, gain=3.0), (6, 6, 2)),
    "image, paired": (lambda: resistive(IMAGE, gain=3.0, outputs="paired"), (6, 6, 2)),
}


def somewhere(system, params, clamped, phases=()):
    """A random state, or several phases of one."""
    start = system.init_state(params, clamped)
    keys = jax.random.split(jax.random.key(9), len(start))
    return tuple(
        jax.random.normal(k, (*phases, *s.shape), s.dtype) for k, s in zip(keys, start, strict=True)
    )


@pytest.mark.parametrize("name", SYSTEMS)
def test_energy_never_rises_along_sweeps_and_a_half_sweep_minimises_its_layers(name):
    system = SYSTEMS[name][0]()
    params, batch = problem(system, SYSTEMS[name][1])
    clamped = system.clamp(params, batch.x)
    state, sweep = somewhere(system, params, clamped), jax.jit(system.sweep)
    energy = jax.jit(system.energy)
    found = [energy(params, clamped, state)]
    for _ in range(30):
        state = sweep(params, clamped, state)
        found.append(energy(params, clamped, state))
    rises = jnp.diff(jnp.stack(found), axis=0) / found[-1]
    assert float(rises.max()) <= 1e-13
    assert float(rises.min()) < -1e-3
    # the layers that moved last are at their minimum: any move toward ground, all diodes allow it
    last = range(1, len(state), 2) if len(state) > 1 else range(1)
    for seed in range(5):
        keep = jax.random.uniform(jax.random.key(seed), (len(state), 1))
        moved = tuple(v * keep[l] if l in last else v for l, v in enumerate(state))
        assert (energy(params, clamped, moved) > found[-1]).all()


@pytest.mark.parametrize("phases", [1, 2, 4])
@pytest.mark.parametrize("name", SYSTEMS)
def test_denergy_is_the_weighted_gradient_of_the_energy(name, phases):
    system = SYSTEMS[name][0]()
    params, batch = problem(system, SYSTEMS[name][1])
    states = somewhere(system, params, system.clamp(params, batch.x), (phases,))
    weights = jnp.array([0.5, -1.5, 2.0, 0.3])[:phases]

    def total(params):
        clamped = system.clamp(params, batch.x)
        return weights @ jax.vmap(lambda s: system.energy(params, clamped, s).sum())(states)

    clamped = system.clamp(params, batch.x)
    ours = jax.jit(system.denergy)(params, clamped, states, weights)[0]
    assert gradient_error(ours, jax.jit(jax.grad(total))(params)) < 1e-13


@pytest.mark.parametrize("name", SYSTEMS)
def test_force_is_minus_the_gradient_of_the_energy_and_dforce_its_pull_back(name):
    system = SYSTEMS[name][0]()
    params, batch = problem(system, SYSTEMS[name][1])
    clamped = system.clamp(params, batch.x)
    state = somewhere(system, params, clamped)
    v = jax.tree.map(jnp.cos, state)

    @jax.jit
    def both(params, state):
        slope = jax.grad(lambda s: system.energy(params, clamped, s).sum())(state)
        _, pull = jax.vjp(lambda p: system.force(p, system.clamp(p, batch.x), state), params)
        ours = system.force(params, clamped, state), system.dforce(params, clamped, state, v)[0]
        return ours, (trees.scale(-1.0, slope), pull(v)[0])

    (force, dforce), (expected, pulled) = both(params, state)
    assert gradient_error(force, expected) < 1e-13
    assert gradient_error(dforce, pulled) < 1e-13


@pytest.mark.parametrize("outputs", ["single", "paired"])
def test_readout_backward_is_its_vjp_and_write_sets_single_outputs(outputs):
    system = net("relu", outputs=outputs)
    params, batch = problem(system)
    state = somewhere(system, params, system.clamp(params, batch.x))
    y, residuals = system.readout.forward(params, state)
    assert y.shape == (5, 3)
    _, ours = system.readout.backward(params, params, residuals, jnp.cos(y))
    expected = jax.vjp(lambda s: system.readout.forward(params, s)[0], state)[1](jnp.cos(y))[0]
    assert ours[:-1] == (None, None)
    np.testing.assert_array_equal(ours[-1], expected[-1])
    if outputs == "paired":
        assert system.write is None
        np.testing.assert_array_equal(y, state[-1][:, 0] - state[-1][:, 1])
    else:
        np.testing.assert_array_equal(
            system.readout.forward(params, system.write(state, batch.y))[0], batch.y
        )


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


def errors(rule, params, batch, exact, betas):
    params, state = rule.init(KEY, params)
    estimate = jax.jit(rule.estimate)
    made = [estimate(params, batch, {**state, "beta": jnp.asarray(b)}, KEY)[0].grads for b in betas]
    return np.array([distance(grads, exact) for grads in made])


@pytest.mark.parametrize("outputs", ["single", "paired"])
@pytest.mark.parametrize("name", ["linear", "relu"])
@pytest.mark.parametrize(("nudging", "order"), [("one-sided", 1.0), ("centered", 2.0)])
def test_eps_error_to_implicit_differentiation_falls_with_its_order(name, outputs, nudging, order):
    system = net(name, gain=3.0, outputs=outputs)
    params, batch = problem(system)
    reference = rules.recurrent_backprop(system, squared_error(), TIGHT, TIGHT)
    exact = jax.jit(reference.estimate)(params, batch, (), KEY)[0]
    assert all(info.converged.all() for info in exact.info.values())
    betas = np.geomspace(0.1, 1e-4, 7)
    rule = rules.eqprop(system, squared_error(), TIGHT, TIGHT, nudging=nudging)
    found = errors(rule, params, batch, exact.grads, betas)
    fit = (found < 1e-1) & (found > 1e-11 / betas)
    assert fit.sum() >= 3
    slope = np.polyfit(np.log(betas[fit]), np.log(found[fit]), 1)[0]
    assert abs(slope - order) <= 0.05


def test_holomorphic_ep_runs_on_a_linear_circuit_and_is_refused_with_diodes():
    system = net("linear", gain=3.0)
    params, batch = problem(system)
    exact = rules.recurrent_backprop(system, squared_error(), TIGHT, TIGHT)
    exact = jax.jit(exact.estimate)(params, batch, (), KEY)[0].grads
    rule = rules.eqprop(system, squared_error(), TIGHT, TIGHT, nudging="holomorphic", beta=0.02)
    state = rule.init(KEY, params)[1]
    assert distance(jax.jit(rule.estimate)(params, batch, state, KEY)[0].grads, exact) < 1e-6
    with pytest.raises(ValueError, match=r"layer 2 \('relu'\) is not complex-differentiable"):
        rules.eqprop(net("relu"), squared_error(), nudging="holomorphic")


def test_in_float32_the_contrast_keeps_its_digits_at_a_high_gain():
    """The voltages are hundreds, their change under a nudge thousandths."""
    system = net("relu", 1, gain=300.0)
    params, batch = problem(system)
    exact = rules.recurrent_backprop(system, squared_error(), TIGHT, TIGHT)
    exact = jax.jit(exact.estimate)(params, batch, (), KEY)[0].grads
    phases = fixed_steps(60)
    rule = rules.eqprop(system, squared_error(), phases, phases, beta=0.1)
    params, batch = trees.cast((params, batch), jnp.float32)
    made = jax.jit(rule.estimate)(params, batch, rule.init(KEY, params)[1], KEY)[0]
    assert {g.dtype for g in jax.tree.leaves(made.grads)} == {jnp.dtype(jnp.float32)}
    assert distance(trees.cast(made.grads, jnp.float64), exact) < 0.01


def test_conductances_start_as_the_layers_own_weights_without_their_signs():
    network = chain(dense(4), layers.relu(), dense(2, bias_init="normal"))
    ours, _ = resistive(network).init(KEY, (3,))
    theirs, _ = network.init(KEY, (6,))
    for i in (0, 2):
        np.testing.assert_array_equal(ours[i]["w"], jnp.abs(theirs[i]["w"]))
        np.testing.assert_array_equal(ours[i]["b"][0] - ours[i]["b"][1], theirs[i]["b"])
        assert float(jnp.min(ours[i]["b"].sum(axis=0) - jnp.abs(theirs[i]["b"]))) == 0.0


def test_a_node_that_nothing_conducts_to_stays_grounded():
    system = net("relu")
    params, batch = problem(system)
    params = (*params[:-1], jax.tree.map(lambda g: g.at[..., 1].set(0.0), params[-1]))
    rule = rules.eqprop(system, squared_error(), TIGHT, TIGHT)
    made, _ = jax.jit(rule.estimate)(params, batch, rule.init(KEY, params)[1], KEY)
    assert made.output[:, 1].tolist() == [0.0] * 5
    assert all(jnp.isfinite(g).all() for g in jax.tree.leaves(made.grads))


RULES = {
    "eqprop": lambda s, c: rules.eqprop(s, c),
    "continual_eqprop": lambda s, c: rules.continual_eqprop(s, c, rate=1e-3),
    "vector_field_eqprop": lambda s, c: rules.vector_field_eqprop(s, c),
    "asymmetric_eqprop": lambda s, c: rules.asymmetric_eqprop(s, c),
    "recurrent_backprop": lambda s, c: rules.recurrent_backprop(s, c),
    "bptt": lambda s, c: rules.bptt(s, c),
    "contrastive_hebbian": lambda s, c: rules.contrastive_hebbian(s, c),
    "coupled_learning": lambda s, c: rules.coupled_learning(s, c),
}
OPTIMIZERS = {
    "sgd": lambda: optimizers.sgd(0.3),
    "momentum": lambda: optimizers.momentum(0.1),
    "rmsprop": lambda: optimizers.rmsprop(0.1),
    "adam": lambda: optimizers.adam(0.1),
    "adamw": lambda: optimizers.adamw(0.1, weight_decay=0.1),
}


def trained(rule, params, batch, optimizer):
    """A few updates as `bpeq.train` makes them."""
    from bpeq.training.loops import start, supervised

    step = supervised(rule, optimizer)
    carry = start(rule, optimizer, params, KEY)
    with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
        for _ in range(5):
            carry, _ = jax.jit(step)(carry, batch, KEY)
    return carry.params


@pytest.mark.parametrize(
    ("rule", "optimizer"),
    [*(("eqprop", o) for o in OPTIMIZERS), *((r, "sgd") for r in RULES if r != "eqprop")],
)
def test_conductances_stay_non_negative_in_training(rule, optimizer):
    system = net("relu")
    params, batch = problem(system)
    made = RULES[rule](system, squared_error())
    after = trained(made, params, batch, OPTIMIZERS[optimizer]())
    assert min(float(g.min()) for g in jax.tree.leaves(after)) == 0.0
    loose = trained(made._replace(absorb=None), params, batch, OPTIMIZERS[optimizer]())
    assert not all((g >= 0).all() for g in jax.tree.leaves(loose))  # or it diverges
    assert distance(after, params) > 1e-3


def test_rules_on_a_system_whose_weights_are_free_absorb_nothing():
    network = chain(dense(2), layers.relu(), dense(2))
    assert rules.eqprop(hopfield(network), squared_error()).absorb is None


def test_a_second_estimate_compiles_nothing():
    system = net("relu", outputs="paired")
    params, batch = problem(system, dtype=jnp.float32)
    rule = rules.eqprop(system, squared_error(), fixed_steps(5), fixed_steps(5))
    state = rule.init(KEY, params)[1]
    chex.clear_trace_counter()
    estimate = jax.jit(chex.assert_max_traces(rule.estimate, n=1))
    grads = estimate(params, batch, state, KEY)[0].grads
    params = rule.absorb(optax.apply_updates(params, grads), {})
    assert not any(leaf.weak_type for leaf in jax.tree.leaves(params))
    estimate(params, batch, state, jax.random.key(1))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([dense(2), layers.tanh()], r"layer 1 \('tanh'\) is no projection onto an interval"),
        ([dense(2), layers.max_pool(2)], r"layer 1 \('max_pool'\) is no crossbar of resistors"),
        ([dense(2), dense(2)], r"'dense_1' has 2 layers of resistors \(dense, dense\)"),
        ([dense(2), layers.relu(), flatten()], r"'flatten_2' has 0 layers of resistors \(none\)"),
    ],
)
def test_what_no_circuit_can_be_made_of_is_refused(parts, message):
    with pytest.raises(ValueError, match=f"resistive: {message}"):
        resistive(chain(*parts))


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"gain": 0.0}, "gain = 0.0: must be a number > 0"),
        ({"polarity": "negative"}, r"polarity = 'negative': must be 'alternating' \| 'positive'"),
        ({"outputs": "double"}, r"outputs = 'double': must be 'single' \| 'paired'"),
    ],
)
def test_a_setting_out_of_range_is_refused(setting, words):
    with pytest.raises(ValueError, match=words):
        net("relu", **setting)
