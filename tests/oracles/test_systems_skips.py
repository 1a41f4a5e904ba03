"""A graph of states: skips in the energy, its derivatives, the sweeps, the params and a config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.config.loading import ConfigError, load_config
from bpeq.config.problem import build
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.experiment.check import _check_energy
from bpeq.layers import chain, dense, flatten, gradient_error
from bpeq.rules import eqprop, recurrent_backprop
from bpeq.solvers import fixed_point
from bpeq.systems import hopfield
from bpeq.types import Batch

TIGHT = fixed_point(1e-14, 5000)
KEY = jax.random.key(0)


def skip_net(name="tanh", **settings):
    """Three hidden blocks and an output; a skip from the input and two between states."""
    blocks = [part for width in (6, 5, 4) for part in (dense(width), getattr(layers, name)())]
    skips = {(1, 3): dense(4, bias=False), (0, 2): chain(flatten(), dense(5))}
    if settings.get("output") != "readout":
        skips[2, 4] = dense(3)
    return hopfield(chain(flatten(), *blocks, dense(3)), skips=skips, **settings)


def image_net(name="sigmoid"):
    """Convolutions, with a max-pooled skip between states and a strided one from the image."""
    act = getattr(layers, name)
    network = chain(
        *(layers.conv(3, 3, padding="SAME"), act()),
        *(layers.conv(4, 3, padding="SAME"), layers.max_pool(2), act()),
        *(flatten(), dense(5), act()),
    )
    skips = {
        "0-2": layers.conv(4, 3, stride=2, padding="SAME"),
        "1-2": chain(layers.conv(4, 1), layers.max_pool(2)),
        "1-3": chain(layers.avg_pool(2), flatten(), dense(5)),
    }
    return hopfield(network, skips=skips)


def at_rest(system, shape=(2, 4), scale=0.8, seed=0):
    params, _ = system.init(jax.random.key(seed), shape)
    params = trees.scale(scale, params)
    x = jax.random.normal(jax.random.key(seed + 1), (5, *shape))
    return params, x, system.clamp(params, x)


def random_state(system, params, clamped, seed=9):
    """Every unit in (0, 1), inside the range of all activations."""
    start = system.init_state(params, clamped)
    return tuple(jax.random.uniform(jax.random.key(seed + i), s.shape) for i, s in enumerate(start))


def test_a_sweep_with_skips_is_the_written_formula():
    """s₁, s₂, s₃ in turn, the skip 1-3 leaving no two of them apart from each other; in NumPy."""
    system = hopfield(
        chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2)),
        skips={(0, 2): dense(3), (1, 3): dense(2)},
    )
    params, x, clamped = at_rest(system, (3,))
    state = random_state(system, params, clamped)
    w1, w2, w3 = (np.asarray(params[i]["w"]) for i in (0, 2, 4))
    b1, b2, b3 = (np.asarray(params[i]["b"]) for i in (0, 2, 4))
    v, c = (np.asarray(params[-1]["skips"]["0_2"][k]) for k in ("w", "b"))
    u, d = (np.asarray(params[-1]["skips"]["1_3"][k]) for k in ("w", "b"))
    s1, s2, s3 = map(np.asarray, state)
    s1 = np.tanh(x @ w1 + b1 + s2 @ w2.T + s3 @ u.T)
    s2 = np.tanh(s1 @ w2 + b2 + x @ v + c + s3 @ w3.T)
    s3 = s2 @ w3 + b3 + s1 @ u + d
    for ours, expected in zip(system.sweep(params, clamped, state), (s1, s2, s3), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-14)


def test_synchronous_sweeps_update_every_state_from_the_old_ones():
    network = chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2))
    system = hopfield(network, skips={(1, 3): dense(2, bias=False)}, schedule="synchronous")
    params, _, clamped = at_rest(system, (3,))
    s1, s2, s3 = random_state(system, params, clamped)
    w3, u = params[4]["w"], params[-1]["skips"]["1_3"]["w"]
    swept = system.sweep(params, clamped, (s1, s2, s3))
    np.testing.assert_allclose(swept[2], s2 @ w3 + s1 @ u, atol=1e-14)


@pytest.mark.parametrize("name", ["tanh", "sigmoid", "hard_sigmoid", "relu"])
def test_energy_never_rises_along_alternating_sweeps_with_skips(name):
    system = skip_net(name)
    params, _, clamped = at_rest(system, scale=0.3 if name == "relu" else 1.5)
    descends(system, params, clamped)


@pytest.mark.parametrize("name", ["sigmoid", "hard_sigmoid"])
def test_energy_never_rises_with_max_pooled_and_strided_skips(name):
    system = image_net(name)
    params, _, clamped = at_rest(system, (4, 4, 2), scale=1.5)
    descends(system, params, clamped)


def descends(system, params, clamped):
    sweep = jax.jit(lambda s: system.sweep(params, clamped, s))
    energy = jax.jit(lambda s: system.energy(params, clamped, s))
    state = random_state(system, params, clamped)
    found = [energy(state)]
    for _ in range(40):
        state = sweep(state)
        found.append(energy(state))
    found = np.stack(found)
    assert (np.diff(found, axis=0) / (1 + np.abs(found[:-1]))).max() <= 1e-12
    assert (found[0] - found[-1]).min() > 1e-2  # every example did move


SYSTEMS = {
    "state": lambda: (skip_net(), (2, 4)),
    "readout": lambda: (skip_net(output="readout"), (2, 4)),
    "image": lambda: (image_net(), (4, 4, 2)),
}


@pytest.mark.parametrize(
    "which", [n if n != "image" else pytest.param(n, marks=pytest.mark.long) for n in SYSTEMS]
)
def test_force_denergy_and_dforce_are_derivatives_of_the_energy_with_skips(which):
    system, shape = SYSTEMS[which]()
    params, x, clamped = at_rest(system, shape)
    state = random_state(system, params, clamped)
    slope = jax.grad(lambda s: system.energy(params, clamped, s).sum())(state)
    force = system.force(params, clamped, state)
    assert gradient_error(trees.scale(-1.0, force), slope) < 1e-13

    phases = jax.tree.map(
        lambda *s: jnp.stack(s), *(random_state(system, params, clamped, i) for i in (3, 30, 60))
    )
    weights = jnp.array([0.5, -1.5, 0.7])

    def total(params):
        clamped = system.clamp(params, x)
        return weights @ jax.vmap(lambda s: system.energy(params, clamped, s).sum())(phases)

    exact = jax.grad(total)(params)
    assert gradient_error(system.denergy(params, clamped, phases, weights)[0], exact) < 1e-13
    assert all(float(jnp.abs(g).max()) > 1e-3 for g in jax.tree.leaves(exact[-1]["skips"]))

    v = random_state(system, params, clamped, 5)
    exact = jax.vjp(lambda p: system.force(p, system.clamp(p, x), state), params)[1](v)[0]
    assert gradient_error(system.dforce(params, clamped, state, v)[0], exact) < 1e-13


@pytest.mark.parametrize(("nudging", "order"), [("one-sided", 1), ("centered", 2)])
@pytest.mark.parametrize("output", ["state", "readout"])
def test_ep_with_skips_errs_by_the_order_of_beta_against_implicit_differentiation(
    output, nudging, order
):
    system = skip_net(output=output)
    params, x, _ = at_rest(system)
    batch = Batch(x, jnp.array([0, 1, 2, 0, 1]))
    cost = squared_error() if output == "state" else softmax_cross_entropy()
    reference = recurrent_backprop(system, cost, TIGHT, TIGHT)
    exact = jax.jit(reference.estimate)(params, batch, reference.init(KEY, params)[1], KEY)[0]
    assert exact.info["free"].converged.all()
    assert exact.info["adjoint"].converged.all()
    rule = eqprop(system, cost, TIGHT, TIGHT, nudging=nudging)
    estimate, (_, state) = jax.jit(rule.estimate), rule.init(KEY, params)
    errors, betas = [], np.array([0.03, 0.01, 0.003])
    for beta in betas:
        ours = estimate(params, batch, {**state, "beta": jnp.asarray(beta)}, KEY)[0].grads
        gap = trees.sub(ours, exact.grads)
        errors.append(float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(exact.grads, exact.grads))))
    assert errors[-1] < 1e-2
    assert abs(np.polyfit(np.log(betas), np.log(errors), 1)[0] - order) <= 0.05


def test_a_skip_of_zero_weights_changes_nothing_but_the_order_of_updates():
    network = chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2))
    plain = hopfield(network)
    skipped = hopfield(network, skips={(0, 2): dense(3, init="zeros")})  # joins no two states
    params, x, clamped = at_rest(skipped, (3,))
    state = random_state(skipped, params, clamped)
    ours = skipped.sweep(params, clamped, state)
    theirs = plain.sweep(params[:-1], plain.clamp(params[:-1], x), state)
    assert all(bool((a == b).all()) for a, b in zip(ours, theirs, strict=True))


def test_the_networks_weights_are_its_own_and_a_skip_keeps_its_weights_beside_others():
    network = chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2))
    one, _ = hopfield(network, skips={(1, 3): dense(2)}).init(KEY, (3,))
    two, _ = hopfield(network, skips={(1, 3): dense(2), "0-2": dense(3)}).init(KEY, (3,))
    assert equal(one[:-1], network.init(KEY, (3,))[0])
    assert equal(two[:-1], one[:-1])
    assert equal(one[-1]["skips"]["1_3"], two[-1]["skips"]["1_3"])
    assert sorted(two[-1]["skips"]) == ["0_2", "1_3"]
    assert len(one) == len(network.parts) + 1


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_two_skips_of_one_shape_draw_different_weights():
    network = chain(dense(3), layers.tanh(), dense(3), layers.tanh(), dense(3), layers.tanh())
    skips = {(0, 2): dense(3), (0, 3): dense(3), (1, 3): dense(3)}
    params, _ = hopfield(network, skips=skips).init(KEY, (3,))
    drawn = [np.asarray(p["w"]) for p in params[-1]["skips"].values()]
    assert min(np.abs(a - b).max() for a in drawn for b in drawn if a is not b) > 0.1


def test_the_inputs_skips_are_driven_once_a_batch():
    calls = []

    def counting(layer):
        def forward(params, x, key=None):
            calls.append(x.shape)
            return layer.forward(params, x, key)

        return layer._replace(forward=forward)

    network = chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2))
    system = hopfield(network, skips={(0, 2): counting(dense(3)), (0, 3): counting(dense(2))})
    params, _, clamped = at_rest(system, (3,))
    assert len(calls) == 2
    state = random_state(system, params, clamped)
    system.sweep(params, clamped, state)
    system.energy(params, clamped, state)
    system.force(params, clamped, state)
    system.denergy(params, clamped, jax.tree.map(lambda s: s[None], state), jnp.ones(1))[0]
    assert len(calls) == 2


def test_a_second_connection_beside_an_own_one_adds_to_it():
    network = chain(dense(4), layers.tanh(), dense(2))
    system = hopfield(network, skips={(0, 1): dense(4), (1, 2): layers.linear()})
    params, x, clamped = at_rest(hopfield(network, skips={(0, 1): dense(4)}), (3,))
    drive = clamped.drives[0]
    expected = x @ (params[0]["w"] + params[-1]["skips"]["0_1"]["w"])
    np.testing.assert_allclose(drive, expected, atol=1e-14)
    with pytest.raises(ValueError, match=r"skips = '1-2': 'linear' gives shape \(4,\); state 2"):
        system.init(KEY, (3,))


def test_the_identity_skip_adds_a_state_to_a_later_one():
    network = chain(dense(3), layers.tanh(), dense(4), layers.tanh(), dense(3))
    system = hopfield(network, skips={(1, 3): layers.linear()})
    params, _, clamped = at_rest(system, (2,))
    state = random_state(system, params, clamped)
    swept = system.sweep(params, clamped, state)
    np.testing.assert_allclose(swept[2], swept[1] @ params[4]["w"] + swept[0], atol=1e-14)


NETWORK = chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2))


@pytest.mark.parametrize(
    ("skips", "message"),
    [
        (
            {(0, 4): dense(2)},
            r"skips = '0-4': there is no state 4; states are 0 \(the input\) to 3",
        ),
        ({(-1, 2): dense(3)}, r"skips = '-1-2': there is no state -1"),
        ({(2, 1): dense(4)}, "skips = '2-1': must go from a lower state to a higher one"),
        ({"2-2": dense(3)}, "skips = '2-2': must go from a lower state to a higher one"),
        ({"0:2": dense(3)}, "skips = '0:2': must name two states, such as"),
        ({(0, 1, 2): dense(3)}, r"skips = \(0, 1, 2\): must name two states"),
        ({(0.0, 2): dense(3)}, r"skips = \(0.0, 2\): must name two states"),
        ({(0, 2): dense(3), "0-2": dense(3)}, "skips = '0-2': is given twice"),
        ({(0, 2): dense}, "skips = '0-2': .* is not a layer; was a factory passed without its"),
        ({(0, 2): layers.tanh()}, "skips = '0-2': 'tanh' hides an activation"),
        ({(0, 2): layers.residual(dense(3), layers.relu())}, "skips = '0-2': 'relu' hides an"),
        ({(0, 2): chain(dense(3), layers.batch_norm())}, "skips = '0-2': 'batch_norm' "),
        ({(0, 2): chain(dense(3), layers.dropout(0.5))}, "skips = '0-2': 'dropout' "),
        ({(1, 2): layers.max_pool(2)}, "'1-2': the activation above max_pool takes negative"),
    ],
)
def test_a_skip_that_no_energy_can_hold_is_refused_when_it_is_built(skips, message):
    with pytest.raises(ValueError, match=f"hopfield: {message}"):
        hopfield(NETWORK, skips=skips)


def test_a_skip_to_the_readout_is_refused():
    with pytest.raises(ValueError, match=r"'1-3': block 3 is the readout, .* \(the input\) to 2"):
        hopfield(NETWORK, skips={(1, 3): dense(2)}, output="readout")


@pytest.mark.parametrize(
    ("skip", "message"),
    [
        (
            dense(5),
            r"skips = '0-2': 'dense' gives shape \(5,\); state 2 \('dense_2'\) has \(3,\)",
        ),
        (layers.conv(3, 3), r"skips = '0-2': conv: one example has shape \(3,\)"),
    ],
)
def test_a_skip_that_does_not_fit_is_refused_when_weights_are_drawn(skip, message):
    with pytest.raises(ValueError, match=message):
        hopfield(NETWORK, skips={(0, 2): skip}).init(KEY, (3,))


TOML = """
[data]
name = "xor"
[network]
layers = ["dense(4)", "tanh", "dense(3)", "tanh", "dense(1)"]
[system]
skips = {"0-2" = "dense(3)", "1-3" = {name = "dense", features = 1, bias = false}}
[rule]
name = "eqprop"
[training]
epochs = 1
batch_size = 4
"""


def config(tmp_path, *overrides):
    path = tmp_path / "skips.toml"
    path.write_text(TOML)
    return load_config(path, overrides)


def test_a_config_writes_skips_as_calls_and_its_energy_checks(tmp_path):
    read = config(tmp_path, "precision=float64")
    assert read.as_dict()["system"]["skips"]["1-3"]["bias"] is False
    problem = build(read)
    params = problem.init(KEY)
    assert params[-1]["skips"]["0_2"]["w"].shape == (2, 3)
    assert sorted(params[-1]["skips"]["1_3"]) == ["w"]
    row = _check_energy(problem, params, jnp.asarray(problem.data.x, jnp.float64))
    assert row.passed
    assert row.error < 1e-13


def test_an_override_reaches_inside_a_skip_and_puts_a_new_one(tmp_path):
    skips = ["system.skips.0-2.scale=0.5", "system.skips.0-3=dense(1, bias=False)"]
    tree = config(tmp_path, *skips).as_dict()["system"]["skips"]
    assert tree["0-2"]["scale"] == 0.5
    assert tree["0-2"]["features"] == 3
    assert tree["0-3"]["bias"] is False


@pytest.mark.parametrize(
    ("override", "line"),
    [
        ("system.skips.0-2=dens(3)", "--set system.skips.0-2 = 'dens.3.': .*did you mean 'dense'"),
        ("system.skips.0-2.feature=3", "--set system.skips.0-2.feature = 3: unknown key"),
        ("system.skips.0-2.features=0", "--set system.skips.0-2.features = 0: must be a whole"),
        ("system.skips=3", "--set system.skips = 3: must be a table of layers such as"),
        ("system.skips.0-7=dense(3)", "--set system.skips.0-7 = 'dense': there is no state 7"),
        ("system.skips.1-3=tanh", "--set system.skips.1-3 = 'tanh': 'tanh' hides an activation"),
        ("system.output=readout", "toml:system.skips.1-3 = 'dense': block 3 is the readout"),
        (
            "system.skips.0-2=dense(7)",
            r"--set system.skips.0-2 = 'dense': 'dense' gives shape \(7,\); state 2",
        ),
        ("system.angle=181", "--set system.angle = 181: must be a number >= 0 and <= 180"),
    ],
)
def test_a_wrong_skip_in_a_config_is_named_by_its_place(tmp_path, override, line):
    with pytest.raises(ConfigError, match=line):
        build(config(tmp_path, override))


def test_other_factories_take_tables_of_layers_too(tmp_path):
    """The signature is the schema: a user's system with a table of layers reads from a config."""
    (tmp_path / "tables_user.py").write_text(
        "from bpeq.systems import hopfield\n"
        "from bpeq.types import Layer, System\n"
        "def mine(network: Layer, more: dict[str, Layer]) -> System:\n"
        "    return hopfield(network, skips=more)\n"
    )
    table = 'more = {"0-2" = "dense(3)"}'
    text = TOML.replace("[system]", f'[system]\nname = "tables_user:mine"\n{table}')
    path = tmp_path / "user.toml"
    path.write_text("\n".join(line for line in text.splitlines() if not line.startswith("skips")))
    assert sorted(build(load_config(path)).init(KEY)[-1]["skips"]) == ["0_2"]
