"""The locality audit against what is known of each rule, and of rules written here to be caught.

`error` in a row means that the error went through a weight; an output's own error needs no pass.
"""

import jax
import jax.numpy as jnp
import pytest
from jax.flatten_util import ravel_pytree

from bpeq import costs, layers, rules, systems
from bpeq.analysis.locality import audit_locality
from bpeq.analysis.locality.rows import Locality, WeightRow, markdown, overall
from bpeq.layers import chain, conv, dense, flatten, hard_sigmoid, max_pool, tanh
from bpeq.solvers import fixed_point, fixed_steps
from bpeq.types import Batch, Estimate, LearningRule

KEY = jax.random.key(0)
NET = chain(dense(4), tanh(), dense(6), tanh(), dense(3))
CNN = chain(
    conv(4, 3, stride=2), max_pool(2), hard_sigmoid(),
    conv(6, 3), max_pool(2), hard_sigmoid(), flatten(), dense(3),
)  # fmt: skip
SHAPES = {NET: (5,), CNN: (16, 16, 2)}
SQUARED, ENTROPY = costs.squared_error(), costs.softmax_cross_entropy()
FEW = fixed_steps(3)
STEADY = NET.init(KEY, (5,))[0]


def audit(rule, network=NET, system=None, batch=None, shape=None, named=True):
    shape = SHAPES.get(network) if shape is None else shape
    params = jax.eval_shape(lambda: (network if system is None else system).init(KEY, shape)[0])
    params = jax.tree.map(lambda p: jnp.ones(p.shape), params)
    if batch is None:
        y = jnp.ones((2, 1)) if network is ONE else jnp.array([0, 1])
        batch = Batch(jnp.ones((2, *shape)), y)
    return audit_locality(rule, params, batch, key=KEY, network=network if named else None)


def rows(rule, network=NET, **where):
    found = audit(rule, network, **where)
    assert found.unseen == ()
    return {row.weight: row for row in found.rows}


def column(found, name):
    """A column of the rows of weights, as `.w` is called in dense layers and convolutions."""
    return [getattr(row, name) for weight, row in found.items() if weight.endswith(".w")]


def estimator(gradient, init=lambda key, params: (params, ())):
    """A rule out of (params, batch, state, key) -> grads."""

    def estimate(params, batch, state, key):
        grads = gradient(params, batch, state, key)
        return Estimate(grads, jnp.zeros(()), batch.x, {}), state

    return LearningRule("mine", init, NET.forward, estimate)


def forward(params, x):
    a = jnp.tanh(x @ params[0]["w"] + params[0]["b"])
    b = jnp.tanh(a @ params[2]["w"] + params[2]["b"])
    return a, b, b @ params[4]["w"] + params[4]["b"]


def hebbian(pairs):
    """Weights' and biases' gradients from (below, above) of each layer."""
    first, second, third = ({"w": low.T @ high, "b": high.sum(0)} for low, high in pairs)
    return first, (), second, (), third


# --- the entries that issue and papers demand --------------------------------------------------


def test_backprops_rows_entry_by_entry():
    found = audit(rules.backprop(NET, SQUARED))
    states = [("input", "dense_1 forward", "dense_1 error")]
    states += [("dense_1 forward", "dense_2 forward", "dense_2 error")]
    assert found == Locality(
        "backprop",
        (
            WeightRow("dense_1.b", states[0][1:], (), ("forward",), "yes", ()),
            WeightRow("dense_1.w", states[0], (), ("forward",), "yes", ()),
            WeightRow("dense_2.b", states[1][1:], (), ("forward",), "yes", ()),
            WeightRow("dense_2.w", states[1], ("error",), ("forward",), "yes", ()),
            WeightRow("dense_3.b", ("dense_3 output error",), (), (), "no", ()),
            WeightRow(
                "dense_3.w", ("dense_2 forward", "dense_3 output error"), ("error",), (), "no", ()
            ),
        ),
    )
    whole = overall(found.rows)
    assert (whole.transposed, whole.stored, whole.error_pass) == (("error",), ("forward",), "yes")


def test_backprop_through_convolutions_flips_their_kernels_channels():
    found = rows(rules.backprop(CNN, ENTROPY), CNN)
    assert list(found) == [f"{n}.{p}" for n in ("conv_1", "conv_2", "dense_3") for p in "bw"]
    assert column(found, "transposed") == [(), ("error",), ("error",)]
    assert column(found, "stored") == [("forward",), ("forward",), ()]
    assert column(found, "error_pass") == ["yes", "yes", "no"]
    assert found["conv_2.w"].reads == ("conv_1 forward", "conv_2 forward", "conv_2 error")


ONE = chain(dense(4), tanh(), dense(1))
NETS = {
    "one output": (ONE, (5,)),
    "dense": (NET, None),
    "convolutions": (CNN, None),
    "norms": (chain(dense(8), layers.batch_norm(), tanh(), layers.layer_norm(), dense(3)), (5,)),
    "residual": (
        chain(dense(8), layers.residual(dense(8), tanh(), dense(8)), tanh(), dense(3)), (5,)
    ),
    "repeat": (chain(dense(8), layers.repeat(chain(dense(8), tanh()), 3), tanh(), dense(3)), (5,)),
    "attention": (chain(layers.attention(2), flatten(), dense(3)), (4, 6)),
    "lstm": (chain(layers.lstm(4), flatten(), dense(3)), (4, 6)),
}  # fmt: skip


@pytest.mark.parametrize(("network", "shape"), NETS.values(), ids=NETS)
def test_hand_written_backprop_and_autodiff_take_the_same(network, shape):
    """Two programs for one thing: JAX's reverse mode knows nothing of the layers' backward."""
    named = "residual" not in [part.name for part in network.parts]
    named = named and "repeat" not in [part.name for part in network.parts]
    ours, theirs = (
        audit(rule(network, ENTROPY), network, shape=shape, named=named)
        for rule in (rules.backprop, rules.autodiff)
    )
    assert ours.rows == theirs.rows
    assert ours.unseen == theirs.unseen == ()
    assert any("error" in row.transposed for row in ours.rows)


def feedback_alignment(network, cost):
    """The stand-in: the layers' `feedback` argument, with a tree of its own in the state."""

    def estimate(params, batch, state, key):
        output, kept = network.forward(params, batch.x)
        error = cost.error(output, batch.y) / len(output)
        return Estimate(network.backward(params, state, kept, error)[0], 0.0, output, {}), state

    def init(key, params):
        return params, jax.tree.map(lambda p: p + 1.0, params)

    return LearningRule("mine", init, network.forward, estimate)


@pytest.mark.parametrize("network", [NET, CNN], ids=["dense", "convolutions"])
def test_feedback_alignment_is_backprop_without_transposed_weights(network):
    ours = rows(feedback_alignment(network, SQUARED), network)
    exact = rows(rules.backprop(network, SQUARED), network)
    assert {row.transposed for row in ours.values()} == {()}
    assert ours == {name: row._replace(transposed=()) for name, row in exact.items()}


@pytest.mark.parametrize("nudging", ["centered", "one-sided", "holomorphic", "online"])
def test_tied_ep_couples_by_the_same_weight_and_passes_no_error(nudging):
    system = systems.hopfield(NET)
    found = rows(rules.eqprop(system, SQUARED, FEW, FEW, nudging=nudging))
    assert column(found, "transposed") == [(), ("coupling",), ("coupling",)]
    for name in ("stored", "global_signal"):
        assert {getattr(row, name) for row in found.values()} == {()}
    assert {row.error_pass for row in found.values()} == {"no"}
    phases = ["free", "nudged"] if nudging == "one-sided" else ["nudged"]
    seen = [f"dense_{i} {phase}" for i in (1, 2) for phase in phases]
    assert found["dense_2.w"].reads == tuple(seen)
    assert found["dense_1.w"].reads == ("input", *seen[: len(phases)])


def test_a_convolutional_ep_net_couples_by_its_kernel_and_nudges_through_its_readout():
    system = systems.hopfield(CNN, output="readout")
    for nudging in ("centered", "one-sided"):
        found = rows(rules.eqprop(system, ENTROPY, FEW, FEW, nudging=nudging), CNN)
        assert column(found, "transposed") == [(), ("coupling",), ("error",)]
        assert {row.error_pass for row in found.values()} == {"inside the sweeps"}
        assert {row.stored for row in found.values()} == {()}
    assert found["dense_3.w"].reads == ("conv_2 nudged", "dense_3 output error")


def test_an_automatic_beta_is_a_statistic_of_all_gradients():
    found = rows(rules.eqprop(systems.hopfield(NET), SQUARED, FEW, FEW, beta="auto"))
    everyone = ("batch statistic of dense_1, dense_2, dense_3",)
    assert {row.global_signal for row in found.values()} == {everyone}


def untied(name, **settings):
    system = systems.hopfield(NET, feedback="untied")
    rule = getattr(rules, name)(system, SQUARED, **settings)
    return rows(rule, system=system)


def test_vector_field_ep_on_an_untied_system_uses_no_weight_transposed():
    found = untied("vector_field_eqprop", free=FEW, nudged=FEW)
    assert {row.transposed for row in found.values()} == {()}
    assert {row.error_pass for row in found.values()} == {"no"}
    assert found["dense_2.w"].reads == ("dense_1 free", "dense_2 free", "dense_2 nudged")
    back = found["feedback.dense_2.w"]
    assert back.reads == ("dense_1 free", "dense_1 nudged", "dense_2 free")
    assert back.stored == found["dense_2.w"].stored == ("free",)  # ∂f/∂θ at s⁰ meets s^β
    assert found["feedback.dense_2.b"].reads == ()  # what comes down reads no bias


def test_homeostasis_sends_random_probes_through_transposed_weights():
    found = untied("vector_field_eqprop", free=FEW, nudged=FEW, homeostasis=1.0)
    assert column(found, "transposed") == [(), *[("probe",)] * 4]


@pytest.mark.parametrize("solver", [FEW, fixed_point(1e-3, 9)], ids=["scan", "while"])
def test_asymmetric_ep_needs_every_connection_backward_where_it_nudges(solver):
    """That of a feedback weight is up: its way in the free phase is down."""
    found = untied("asymmetric_eqprop", free=solver, nudged=solver)
    assert column(found, "transposed") == [(), *[("activity (nudged)",)] * 4]
    assert {row.error_pass for row in found.values()} == {"no"}
    tied = rows(rules.asymmetric_eqprop(systems.hopfield(NET), SQUARED, FEW, FEW))
    assert column(tied, "transposed") == [(), ("coupling",), ("coupling",)]


@pytest.mark.parametrize("method", ["fixed-point", "neumann", "gmres"])
def test_recurrent_backprop_passes_an_error_through_the_coupling(method):
    rule = rules.recurrent_backprop(systems.hopfield(NET), SQUARED, FEW, FEW, method=method)
    found = audit(rule)
    names = [each.partition(" ")[0] for each in found.unseen]
    assert names == (["triangular_solve"] if method == "gmres" else [])
    table = {row.weight: row for row in found.rows}
    assert column(table, "transposed") == [(), *[("coupling", "error")] * 2]
    assert {row.error_pass for row in found.rows} == {"yes"}
    assert column(table, "stored") == [("free",)] * 3


def test_bptt_stores_the_free_phase_and_passes_errors_back_through_it():
    found = untied("bptt", sweeps=3)
    assert column(found, "transposed") == [(), *[("error",)] * 4]
    assert {row.stored for name, row in found.items() if name[-2:] == ".w"} == {("free",)}
    assert found["dense_1.w"].error_pass == "yes"
    tied = rows(rules.bptt(systems.hopfield(NET), SQUARED, sweeps=3))
    assert column(tied, "transposed") == [(), *[("coupling", "error")] * 2]


def test_continual_ep_takes_what_ep_takes():
    found = rows(rules.continual_eqprop(systems.hopfield(NET), SQUARED, FEW, sweeps=3))
    assert column(found, "transposed") == [(), ("coupling",), ("coupling",)]
    assert {(row.stored, row.error_pass, row.global_signal) for row in found.values()} == {
        ((), "no", ())
    }


def test_predictive_coding_is_local_until_its_sweeps_are_sequential():
    """By gradient: prediction errors come down; in sequence: output errors do, in each sweep."""
    found = {}
    for schedule in ("gradient", "sequential"):
        system = systems.predictive(NET, schedule=schedule)
        found[schedule] = rows(rules.eqprop(system, SQUARED, FEW, FEW))
    plain, swept = found["gradient"], found["sequential"]
    assert column(plain, "transposed") == [(), ("coupling",), ("coupling",)]
    assert {row.error_pass for row in plain.values()} == {"no"}
    assert plain["dense_1.w"].reads == ("input", "dense_1 drive", "dense_1 nudged")
    assert column(swept, "transposed") == [(), ("error",), ("error",)]
    assert {row.error_pass for row in swept.values()} == {"inside the sweeps"}


SENT = {  # transposed weights, global signals, passes: of the weights w, input side first
    "feedback_alignment": ([()] * 3, [()] * 3, ["yes", "yes", "no"]),
    "direct_feedback_alignment": (
        [()] * 3, [("error of dense_3, past the layers between",), (), ()], ["yes", "yes", "no"],
    ),
    "sign_symmetric": ([(), *[("error (its sign)",)] * 2], [()] * 3, ["yes", "yes", "no"]),
    # It holds B − W, so that its program reads W on the way down.
    "kolen_pollack": ([(), *[("error",)] * 2], [()] * 3, ["yes", "yes", "no"]),
    "target_propagation": ([()] * 3, [()] * 3, ["no"] * 3),
}  # fmt: skip


@pytest.mark.parametrize("name", SENT)
def test_rules_on_a_network_by_what_they_send_down(name):
    """Direct feedback alignment draws its matrices in the estimate: they are no leaves."""
    found = rows(getattr(rules, name)(NET, SQUARED))
    own = [f"dense_{i}.w" for i in (1, 2, 3)]
    for field, expected in zip(
        ("transposed", "global_signal", "error_pass"), SENT[name], strict=True
    ):
        assert [getattr(found[weight], field) for weight in own] == expected
    stored = {found[weight].stored for weight in own[:2]}
    assert stored == {("forward",)}


def test_rules_that_hold_an_output_send_it_down_the_coupling():
    system = systems.hopfield(NET)
    found = rows(rules.contrastive_hebbian(system, SQUARED, FEW, FEW))
    assert column(found, "transposed") == [(), ("coupling",), ("coupling", "target")]
    assert {(row.error_pass, row.stored) for row in found.values()} == {("no", ())}
    found = rows(rules.coupled_learning(system, SQUARED, FEW, FEW))
    assert column(found, "transposed") == [(), ("coupling",), ("coupling",)]
    # o + η(y − o) is where the output is held: o must be remembered
    assert found["dense_3.w"].reads == ("dense_2 nudged", "dense_3 free", "dense_3 output error")
    assert column(found, "stored") == [(), (), ("free",)]


# --- rules written to be caught ----------------------------------------------------------------


def test_a_name_changes_nothing():
    rule = rules.backprop(NET, SQUARED)
    posing = rule._replace(name="eqprop")
    assert audit(posing).rows == audit(rule).rows


def test_direct_feedback_alignment_sends_the_output_error_past_layers():
    def gradient(params, batch, state, key):
        a, b, output = forward(params, batch.x)
        e = SQUARED.error(output, batch.y)
        low, high = (e @ state[0]) * (1 - a * a), (e @ state[1]) * (1 - b * b)
        return hebbian([(batch.x, low), (a, high), (b, e)])

    init = lambda key, params: (params, (jnp.ones((3, 4)), jnp.ones((3, 6))))  # noqa: E731
    found = rows(estimator(gradient, init))
    assert {row.stored for row in found.values()} == {("forward",), ()}
    past = ("error of dense_3, past the layers between",)
    assert column(found, "global_signal") == [past, (), ()]
    assert column(found, "transposed") == [(), (), ()]
    assert column(found, "error_pass") == ["yes", "yes", "no"]


def backward(by_weight):
    """Backprop written out, each transposed product by `by_weight(weight, error)`."""

    def gradient(params, batch, state, key):
        a, b, output = forward(params, batch.x)
        e = SQUARED.error(output, batch.y)
        high = by_weight(params[4]["w"], e) * (1 - b * b)
        low = by_weight(params[2]["w"], high) * (1 - a * a)
        return hebbian([(batch.x, low), (a, high), (b, e)])

    return estimator(gradient)


WAYS = {
    "transpose": lambda w, e: e @ w.T,
    "einsum": lambda w, e: jnp.einsum("bo,io->bi", e, w),
    "sums": lambda w, e: jnp.sum(e[:, None, :] * w, axis=2),
    "vmap": lambda w, e: jax.vmap(lambda row: w @ row)(e),
    "loop": lambda w, e: jax.lax.map(lambda row: w @ row, e),
    "vjp": lambda w, e: jax.linear_transpose(lambda a: a @ w, jnp.ones((2, len(w))))(e)[0],
    "jit": lambda w, e: jax.jit(lambda w, e: (w @ e.T).T)(w, e),
    "cond": lambda w, e: jax.lax.cond(e[0, 0] > 0, lambda: e @ w.T, lambda: 2 * e @ w.T),
    "jacrev": lambda w, e: e @ jax.jacrev(lambda a: a @ w)(jnp.ones(len(w))),
    "jacfwd": lambda w, e: e @ jax.jacfwd(lambda a: a @ w)(jnp.ones(len(w))),
    "identity": lambda w, e: e @ (w @ jnp.eye(w.shape[1])).T,
    "flattened": lambda w, e: e @ w.ravel().reshape(w.shape).T,
    "permutation": lambda w, e: e @ w.ravel()[jnp.arange(w.size).reshape(w.shape).T],
    "twice": lambda w, e: e @ jnp.concatenate([w, w])[: len(w)].T,
    "padded": lambda w, e: e @ jnp.pad(w.ravel(), (0, 7))[: w.size].reshape(w.shape).T,
    "behind zeros": lambda w, e: e @ jnp.append(jnp.zeros(7), w)[7:].reshape(w.shape).T,
    "product": lambda w, e: (e[:, None, :] * w) @ jnp.ones(w.shape[1]),
    "columns": lambda w, e: sum(e[:, j, None] * w[:, j] for j in range(w.shape[1])),
    "looked up": lambda w, e: sum(
        e[:, j, None] * jnp.take(w, j, axis=1) for j in range(w.shape[1])
    ),
    "one-hot": lambda w, e: sum(
        e[:, j, None] * (w @ jnp.eye(w.shape[1])[j]) for j in range(w.shape[1])
    ),
    "scan": lambda w, e: jax.lax.scan(
        lambda sent, part: (sent + part[0][:, None] * part[1], None),
        jnp.zeros((2, len(w))), (e.T, w.T),
    )[0],
    "counted": lambda w, e: jax.lax.fori_loop(
        0, w.shape[1], lambda j, sent: sent + e[:, j, None] * w[:, j], jnp.zeros((2, len(w)))
    ),
    "scattered": lambda w, e: e @ jnp.zeros_like(w).at[jnp.arange(len(w))].set(w).T,
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_transposed_weight_is_found_however_it_is_written(way):
    found = rows(backward(WAYS[way]))
    assert column(found, "transposed") == [(), ("error",), ("error",)]
    assert column(found, "error_pass") == ["yes", "yes", "no"]
    assert column(found, "stored") == [("forward",), ("forward",), ()]


DARK = {  # no audit could tell all that is read here; it must not clear it
    "sums": lambda w, e: jnp.stack([jnp.sum(e * row, -1) for row in w], 1),
    "tangents": lambda w, e: jnp.stack([
        jnp.sum(e * jax.jvp(lambda a: a @ w, (a,), (jnp.zeros_like(a).at[:, i].set(1),))[1], -1)
        for i, a in enumerate([jnp.ones((2, len(w)))] * len(w))
    ], 1),
    "cumulative": lambda w, e: jnp.cumsum(e[:, None, :] * w, -1)[..., -1],
    "entries": lambda w, e: sum(
        jnp.stack([e[:, j] * w[i, j] for i in range(len(w))], 1) for j in range(w.shape[1])
    ),
    "distance": lambda w, e: jnp.sum((e[:, None, :] + w) ** 2 - e[:, None, :] ** 2 - w**2, -1) / 2,
    "maximum": lambda w, e: jnp.max(e[:, None, :] * w, -1),
    "inverse": lambda w, e: e @ jnp.linalg.pinv(w),
    "callback": lambda w, e: jax.pure_callback(
        lambda w, e: e @ w.T, jax.ShapeDtypeStruct((2, len(w)), e.dtype), w, e
    ),
}  # fmt: skip


@pytest.mark.parametrize("way", DARK)
def test_no_weight_is_lost_in_silence(way):
    """Either the weight is seen to be transposed, or that is `unknown` and the place is named."""
    found = audit(backward(DARK[way]))
    table = {row.weight: row for row in found.rows}
    for weight in ("dense_2.w", "dense_3.w"):
        assert table[weight].transposed in (("error",), ("unknown",))
        assert found.unseen or table[weight].transposed == ("error",)
    assert table["dense_1.w"].transposed == ()


def test_what_is_lost_is_named_with_its_line():
    found = audit(backward(lambda w, e: (jnp.abs(e[:, None, :] + w)).sum(-1)))
    assert [row.transposed for row in found.rows][3::2] == [("unknown",)] * 2
    assert [entry.partition(":")[0] for entry in found.unseen] == ["add (test_locality.py"]


@pytest.mark.parametrize("name", ["backprop", "autodiff"])
def test_params_that_pass_through_a_flat_vector_are_the_same_params(name):
    rule = getattr(rules, name)(NET, SQUARED)

    def gradient(params, batch, state, key):
        flat, back = ravel_pytree(params)
        return rule.estimate(back(2 * flat), batch, state, key)[0].grads

    found, plain = audit(estimator(gradient)), audit(rule)
    assert (found.rows, found.unseen) == (plain.rows, ())


def test_the_gradient_by_a_flat_vector_is_backprop():
    def gradient(params, batch, state, key):
        flat, back = ravel_pytree(params)
        cost = lambda flat: SQUARED.value(forward(back(flat), batch.x)[2], y).mean()  # noqa: E731
        y = jax.nn.one_hot(batch.y, 3)
        return back(jax.grad(cost)(flat))

    found = rows(estimator(gradient))
    assert column(found, "transposed") == [(), ("error",), ("error",)]
    assert {row.error_pass for row in found.values()} == {"yes"}


def test_params_that_are_one_vector_are_unknown_where_they_are_used_both_ways():
    """One leaf holds all weights: its axis is summed over and left in every product."""
    params = {"all": jnp.ones(5 * 4 + 4 * 3)}

    def estimate(params, batch, state, key):
        w, v = params["all"][:20].reshape(5, 4), params["all"][20:].reshape(4, 3)
        a = jnp.tanh(batch.x @ w)
        e = a @ v - batch.y
        grads = batch.x.T @ (e @ v.T * (1 - a * a)), a.T @ e
        return Estimate({"all": ravel_pytree(grads)[0]}, jnp.zeros(()), e, {}), state

    rule = LearningRule("mine", lambda key, params: (params, ()), None, estimate)
    batch = Batch(jnp.ones((2, 5)), jnp.ones((2, 3)))
    found = audit_locality(rule, params, batch, key=KEY)
    assert found.rows[0].transposed == ("unknown",)
    assert {entry.partition(":")[0] for entry in found.unseen} == {"dot_general (test_locality.py"}


def test_a_state_that_copies_the_weights_is_their_transport_a_step_late():
    """state -> (B, new state): kept as it was, copied, averaged, flattened, through another."""

    def transposed(read, write):
        def estimate(params, batch, state, key):
            a, b, output = forward(params, batch.x)
            e = SQUARED.error(output, batch.y)
            back = read(state)
            high = e @ back[4]["w"].T * (1 - b * b)
            low = high @ back[2]["w"].T * (1 - a * a)
            grads = hebbian([(batch.x, low), (a, high), (b, e)])
            return Estimate(grads, jnp.zeros(()), batch.x, {}), write(state, params, e)

        init = lambda key, params: (params, write({"A": params, "B": params}, params, 0))  # noqa: E731
        found = audit(LearningRule("mine", init, NET.forward, estimate))
        assert found.unseen == ()
        return {row.transposed for row in found.rows}, found.carried

    late = {(), ("error (a step late)",)}
    kept = transposed(lambda s: s["B"], lambda s, p, e: s)
    assert kept == ({()}, ())
    mean = lambda s, p, e: {"B": jax.tree.map(lambda b, w: 0.9 * b + 0.1 * w, s["B"], p)}  # noqa: E731
    for read, write in (
        (lambda s: s["B"], lambda s, p, e: {"B": p}),
        (lambda s: s["B"], mean),
        (lambda s: ravel_pytree(STEADY)[1](s["B"]), lambda s, p, e: {"B": ravel_pytree(p)[0]}),
        (lambda s: s["A"], lambda s, p, e: {"A": s["B"], "B": p}),
    ):
        found, carried = transposed(read, write)
        assert found == late
        assert any("dense_2.w" in state for state in carried)
    found, carried = transposed(lambda s: s["B"], lambda s, p, e: {"B": s["B"], "e": e})
    assert (found, carried) == ({()}, ("state.e (errors)",))


def test_sign_symmetry_uses_the_transposed_sign():
    found = rows(backward(lambda w, e: e @ jnp.sign(w).T))
    assert column(found, "transposed") == [(), *[("error (its sign)",)] * 2]


@pytest.mark.parametrize(
    "whole",
    [lambda w: jnp.sign(w) * jnp.abs(w), lambda w: jnp.round(w) + (w - jnp.round(w))],
    ids=["sign and size", "round and rest"],
)
def test_several_functions_of_a_weight_are_the_weight(whole):
    found = rows(backward(lambda w, e: e @ whole(w).T))
    assert column(found, "transposed") == [(), *[("error",)] * 2]


def test_hebbs_rule_reads_two_activities_and_nothing_else():
    def gradient(params, batch, state, key):
        a, b, output = forward(params, batch.x)
        return hebbian([(batch.x, a), (a, b), (b, output)])

    found = rows(estimator(gradient))
    assert found["dense_2.w"] == WeightRow(
        "dense_2.w", ("dense_1 forward", "dense_2 forward"), (), (), "no", ()
    )


def test_node_perturbation_broadcasts_one_number_an_example():
    def gradient(params, batch, state, key):
        noise = jax.random.normal(key, (2, 4))
        a, _, output = forward(params, batch.x)
        b = jnp.tanh((a + noise) @ params[2]["w"] + params[2]["b"])
        moved = b @ params[4]["w"] + params[4]["b"]
        gain = (SQUARED.value(moved, batch.y) - SQUARED.value(output, batch.y))[:, None]
        return hebbian([(batch.x, gain * noise), (a, gain * b), (b, gain * output)])

    found = rows(estimator(gradient))
    assert found["dense_1.w"].reads == ("input", "noise")
    assert found["dense_1.w"].global_signal == ("a number from dense_3",)
    assert {row.error_pass for row in found.values()} == {"no"}


def third_factor(pooled, source=lambda a, b, e: e):
    """Hebb's rule, times a number that `pooled` makes of the output's error."""

    def gradient(params, batch, state, key):
        a, b, output = forward(params, batch.x)
        e = SQUARED.error(output, batch.y)
        return hebbian([(batch.x, a * pooled(source(a, b, e))), (a, b), (b, e)])

    return estimator(gradient)


def own_sum(a, b):
    """A sum that lax.reduce and lax.reduce_window do not know."""
    return 1.0 * (a + b)


POOLED = {
    "mean": lambda d: d.mean(1, keepdims=True),
    "slices": lambda d: sum(d[:, k : k + 1] ** 2 for k in range(3)),
    "columns": lambda d: sum(d[:, k] ** 2 for k in range(3))[:, None],
    "pieces": lambda d: sum(jnp.split(d, 3, axis=1)),
    "scan": lambda d: jax.lax.scan(lambda c, row: (c + row, c), jnp.zeros(2), d.T)[0][:, None],
    "last round": lambda d: jax.lax.scan(lambda c, row: (c + row, c), jnp.zeros(2), d.T)[1][-1:].T,
    "counted": lambda d: jax.lax.fori_loop(0, 3, lambda k, c: c + d[:, k], jnp.zeros(2))[:, None],
    "cumulative": lambda d: jnp.cumsum(d, axis=1)[:, -1:],
    "associative": lambda d: jax.lax.associative_scan(jnp.add, d, axis=1)[:, -1:],
    "sorted": lambda d: jnp.sort(d, axis=1)[:, -1:],
    "largest": lambda d: jax.lax.top_k(d, 1)[0],
    "where the largest is": lambda d: jnp.argmax(d, 1, keepdims=True).astype(d.dtype),
    "window": lambda d: jax.lax.reduce_window(d, 0.0, jax.lax.add, (1, 3), (1, 1), "VALID"),
    "own window": lambda d: jax.lax.reduce_window(d, 0.0, own_sum, (1, 3), (1, 1), "VALID"),
    "own sum": lambda d: jax.lax.reduce(d, 0.0, own_sum, (1,))[:, None],
    "one unit": lambda d: d[:, :1],
    "taken": lambda d: jnp.take(d, 1, axis=1)[:, None],
    "choice by one unit": lambda d: jnp.where(d[:, :1] > 0, 1.0, 2.0),
    "branch": lambda d: jax.lax.cond(d[0, 0] > 0, lambda: 1.0, lambda: 2.0),
    "ones": lambda d: d @ jnp.ones((3, 1)),
    "several ones": lambda d: d @ jnp.full((3, 4), 1 / 3),
    "constants": lambda d: d @ jnp.array([[1.0], [2.0], [3.0]]),
    "einsum": lambda d: jnp.einsum("bi,ij->bj", d, jnp.ones((3, 1))),
    "segments": lambda d: jax.ops.segment_sum(d.T, jnp.zeros(3, int), 1).T,
    "Fourier": lambda d: jnp.fft.fft(d, axis=1)[:, :1].real,
    "flattened": lambda d: d.reshape(-1)[::3][:, None],
}  # fmt: skip


@pytest.mark.parametrize("way", POOLED)
def test_a_number_of_an_outputs_error_is_global_however_it_is_pooled(way):
    found = rows(third_factor(POOLED[way]))
    low = found["dense_1.w"]
    assert (low.reads, low.error_pass) == (("input", "dense_1 forward"), "no")
    assert low.global_signal == ("a number from dense_3",)
    assert found["dense_3.w"].reads == ("dense_2 forward", "dense_3 output error")
    assert found["dense_3.w"].global_signal == ()


def test_one_hidden_unit_that_others_read_is_global():
    found = rows(third_factor(lambda b: b[:, 2:3], lambda a, b, e: b))
    assert found["dense_1.w"].global_signal == ("a number from dense_2",)
    assert found["dense_2.w"].reads == ("dense_1 forward", "dense_2 forward")
    found = rows(third_factor(lambda a: a[:, 2:3], lambda a, b, e: a))
    assert found["dense_1.w"].reads == ("input", "dense_1 forward")  # a unit of the same layer
    assert found["dense_1.w"].global_signal == ()


def test_an_outputs_error_put_together_again_from_its_units_is_local():
    ways = {
        "columns": lambda e: jnp.stack([e[:, k] for k in range(3)], 1),
        "slices": lambda e: jnp.concatenate([2 * e[:, k : k + 1] for k in range(3)], 1),
        "scan": lambda e: jax.lax.scan(lambda c, row: (c, 2 * row), 0, e.T)[1].T,
    }

    def gradient(params, batch, state, key, way):
        a, b, output = forward(params, batch.x)
        e = way(SQUARED.error(output, batch.y))
        return hebbian([(batch.x, a), (a, (e @ params[4]["w"].T) * (1 - b * b)), (b, e)])

    for way in ways.values():
        found = rows(estimator(lambda *args, way=way: gradient(*args, way)))
        assert found["dense_3.w"].reads == ("dense_2 forward", "dense_3 output error")
        assert found["dense_2.w"].reads == ("dense_1 forward", "dense_2 forward", "dense_2 error")
        assert {row.global_signal for row in found.values()} == {()}


def test_a_signal_from_an_unknown_primitive_is_unknown_with_its_line():
    shape = jax.ShapeDtypeStruct((2, 1), jnp.float64)
    found = audit(third_factor(lambda d: jax.pure_callback(lambda d: d[:, :1], shape, d)))
    table = {row.weight: row for row in found.rows}
    assert "unknown" in table["dense_1.w"].global_signal
    assert table["dense_2.w"].global_signal == ()
    assert [each.partition(":")[0] for each in found.unseen] == ["pure_callback (test_locality.py"]


def test_a_gradient_clipped_by_its_norm_is_global():
    def gradient(params, batch, state, key):
        grads = rules.backprop(NET, SQUARED).estimate(params, batch, (), key)[0].grads
        norm = jnp.sqrt(sum(jnp.sum(g * g) for g in jax.tree.leaves(grads)))
        return jax.tree.map(lambda g: g / norm, grads)

    found = rows(estimator(gradient))
    everyone = ("batch statistic of dense_1, dense_2, dense_3",)
    assert {row.global_signal for row in found.values()} == {everyone}


def test_batch_normalisation_is_a_batch_statistic_and_layer_normalisation_is_none():
    for norm, signal in ((layers.batch_norm(), "batch statistic of dense_1.0"), (None, "")):
        network = chain(dense(4), norm or layers.layer_norm(), tanh(), dense(3))
        found = rows(rules.backprop(network, SQUARED), network, shape=(5,))
        assert found["dense_1.0.w"].global_signal == ((signal,) if signal else ())
        assert found["dense_1.1.gain"].transposed == ("error (entry by entry)",)


def test_contrastive_hebbian_clamps_and_passes_no_error():
    def gradient(params, batch, state, key):
        y = jax.nn.one_hot(batch.y, 3, dtype=batch.x.dtype)

        def settled(clamp):
            def sweep(s, _):
                low = jnp.tanh(batch.x @ params[0]["w"] + s[1] @ params[2]["w"].T)
                high = jnp.tanh(low @ params[2]["w"] + s[2] @ params[4]["w"].T)
                return (low, high, y if clamp else high @ params[4]["w"]), None

            start = (jnp.zeros((2, 4)), jnp.zeros((2, 6)), y if clamp else jnp.zeros((2, 3)))
            low, high, top = jax.lax.scan(sweep, start, length=4)[0]
            return hebbian([(batch.x, low), (low, high), (high, top)])

        return jax.tree.map(jnp.subtract, settled(False), settled(True))

    found = rows(estimator(gradient))
    both = ("dense_1 free", "dense_1 nudged", "dense_2 free", "dense_2 nudged")
    assert found["dense_2.w"] == WeightRow("dense_2.w", both, ("coupling",), (), "no", ())
    assert found["dense_3.w"].transposed == ("coupling", "target")


def test_target_propagation_computes_targets_and_no_error():
    def gradient(params, batch, state, key):
        a, b, output = forward(params, batch.x)
        high, low = (lambda h: jnp.tanh(h @ state[0])), (lambda h: jnp.tanh(h @ state[1]))
        t3 = output - 0.1 * SQUARED.error(output, batch.y)
        t2 = high(t3) - high(output) + b
        t1 = low(t2) - low(b) + a
        return hebbian([(batch.x, a - t1), (a, b - t2), (b, output - t3)])

    init = lambda key, params: (params, (jnp.ones((3, 6)), jnp.ones((6, 4))))  # noqa: E731
    found = rows(estimator(gradient, init))
    assert found["dense_1.w"].reads == ("input", "dense_1 forward", "dense_1 target")
    assert column(found, "transposed") == [(), (), ()]
    assert {row.error_pass for row in found.values()} == {"no"}


def test_a_users_own_energy_goes_by_its_own_names():
    params = {"U": jnp.ones((4, 3)), "V": jnp.ones((4, 5)), "k": jnp.ones(())}
    system = systems.from_energy(
        lambda p, s, x: (
            0.5 * jnp.sum(s["h"] ** 2) + 0.5 * jnp.sum(s["o"] ** 2) + p["k"] * jnp.sum(s["o"] ** 4)
            - s["h"] @ p["U"] @ s["o"] - s["h"] @ (p["V"] @ x)
        ),
        lambda p, x: {"h": jnp.zeros(4), "o": jnp.zeros(3)},
        lambda p, s: s["o"],
        lambda key, shape: (params, (3,)),
    )  # fmt: skip
    batch = Batch(jnp.ones((2, 5)), jnp.ones((2, 3)))
    rule = rules.eqprop(system, SQUARED, FEW, FEW, nudging="one-sided")
    found = {row.weight: row for row in audit_locality(rule, params, batch, key=KEY).rows}
    both = ("V free", "V nudged", "U free", "U nudged")  # a state goes by the weight that drives it
    assert found["U"] == WeightRow("U", both, ("coupling",), (), "no", ())
    assert found["k"] == WeightRow("k", both[2:], (), (), "no", ())


def test_what_is_not_followed_is_said():
    found = audit(backward(lambda w, e: jnp.fft.irfft(jnp.fft.rfft(e @ w.T), n=len(w))))
    assert {each.partition(":")[0] for each in found.unseen} == {"fft (test_locality.py"}
    assert markdown([found]).endswith(f"\n\nmine: not followed: {', '.join(found.unseen)}.")


def test_markdown_has_a_row_a_rule_and_a_row_a_weight():
    lines = markdown([audit(rules.backprop(NET, SQUARED))]).splitlines()
    read = "input, forward, output error, error"
    assert lines[2] == f"| backprop | {read} | error | forward | yes | no |"
    read = "dense_1 forward, dense_2 forward, dense_2 error"
    assert f"| backprop | dense_2.w | {read} | error | forward | yes | no |" in lines
