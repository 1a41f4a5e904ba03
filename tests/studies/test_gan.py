"""The GAN study: its hand-written errors through both networks, its judges, its smoke."""

import json
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpeq.config.networks import Network
from bpeq.config.registry import load_study
from bpeq.layers import chain, dense, tanh


@pytest.fixture(scope="module")
def study(studies):
    run = load_study("gan/study.py", studies)
    return SimpleNamespace(
        **run.__globals__, opponents=sys.modules[f"{run.__module__}.adversarial"]
    )


def test_the_critics_error_is_the_gradient_of_its_cost(study):
    logits = jnp.array([[-30.0], [-1.0], [0.5], [40.0]])
    real = jnp.array([[1.0], [0.0], [1.0], [0.0]])
    p = jax.nn.sigmoid
    by_hand = [-jnp.log(p(-30.0)), -jnp.log(p(1.0)), -jnp.log(p(0.5)), 40.0]
    cost, error = study.opponents.cross_entropy(logits, real)
    np.testing.assert_allclose(cost, by_hand, rtol=1e-12)
    total = lambda o: study.opponents.cross_entropy(o, real)[0].sum()  # noqa: E731
    np.testing.assert_allclose(error, jax.grad(total)(logits), rtol=1e-12, atol=1e-15)


def test_a_critic_that_is_sure_and_right_has_no_cost(study):
    sure, real = jnp.array([[jnp.inf], [-jnp.inf], [3e300]]), jnp.array([[1.0], [0.0], [1.0]])
    cost, error = study.opponents.cross_entropy(sure, real)
    assert cost.tolist() == [0.0] * 3
    assert error.tolist() == [[0.0]] * 3
    grad = jax.grad(lambda o: study.opponents.cross_entropy(o, real)[0].sum())(sure)
    assert grad.tolist() == [[0.0]] * 3


def test_both_networks_descend_their_costs_the_generator_through_the_new_critic(study):
    generator = Network(chain(dense(5), tanh(), dense(2)), (3,), None)
    critic = Network(chain(dense(6), tanh(), dense(1)), (2,), None)
    with jax.numpy_dtype_promotion("standard"):
        descent = optax.sgd(1.0)
        before = study.opponents.start(generator, critic, descent)(jax.random.key(0))
        step = study.opponents.adversarial(generator, critic, descent, updates=9, noise=0.25)
        real, key = jax.random.normal(jax.random.key(1), (4, 2)) + 1, jax.random.key(2)
        after, metrics = step(before, real, key)
    keys = jax.random.split(key, 5)
    z, (blur, other) = generator.examples(keys[1], 4), 0.25 * jax.random.normal(keys[0], (2, 4, 2))
    logits = lambda p, x: critic.layer.forward(p, x)[0][:, 0]  # noqa: E731
    made = lambda p: generator.layer.forward(p, z)[0] + other  # noqa: E731

    def critics(p):
        fake = logits(p, made(before.generator))
        gain = jnp.log(jax.nn.sigmoid(logits(p, real + blur))) + jnp.log(jax.nn.sigmoid(-fake))
        return -gain.mean()

    def generators(p):
        return -jnp.log(jax.nn.sigmoid(logits(after.critic, made(p)))).mean()

    for cost, old, new in (
        (critics, before.critic, after.critic),
        (generators, before.generator, after.generator),
    ):
        expected = jax.grad(cost)(old)
        found = jax.tree.map(jnp.subtract, old, new)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-13), found, expected
        )
    np.testing.assert_allclose(2 * metrics["loss"], critics(before.critic), rtol=1e-12)
    np.testing.assert_allclose(metrics["generator_loss"], generators(before.generator), rtol=1e-12)


def test_the_noise_that_the_critic_sees_falls_to_nothing_by_half_the_run(study):
    generator = Network(chain(dense(2)), (3,), None)
    critic = Network(chain(dense(6), tanh(), dense(1)), (2,), None)
    descent, key = optax.sgd(1.0), jax.random.key(2)
    real = jax.random.normal(jax.random.key(1), (4, 2))

    def update(noise, done):
        step = study.opponents.adversarial(generator, critic, descent, updates=8, noise=noise)
        return step(before._replace(done=jnp.asarray(done)), real, key)[0]

    with jax.numpy_dtype_promotion("standard"):
        before = study.opponents.start(generator, critic, descent)(jax.random.key(0))
        quiet, early, late = update(0.0, 0), update(0.5, 1), (update(0.5, 4), update(0.5, 7))
        same = update(0.375, 0)
    for a, b in ((late[0], quiet), (late[1], quiet), (early, same)):
        for net in ("critic", "generator"):
            jax.tree.map(
                lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12),
                getattr(a, net),
                getattr(b, net),
            )
    assert np.abs(early.critic[0]["w"] - quiet.critic[0]["w"]).max() > 1e-3
    assert (early.done, late[0].done) == (2, 5)


def test_the_rings_judge_counts_modes_and_good_samples(study):
    centres = np.asarray(study.centres())
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 2, rtol=1e-12)
    made = np.concatenate([
        np.repeat(centres[:3] + np.array([0.1499, 0]), 20, axis=0),  # three modes, all good
        np.repeat(centres[3:4] + np.array([0, 0.1501]), 20, axis=0),  # past 3σ
        centres[4:5],  # one sample: less than a quarter of what is due
        np.zeros((19, 2)),
    ])  # fmt: skip
    found = study.on_ring(jnp.asarray(made)[None])
    assert found["modes"].tolist() == [3]
    np.testing.assert_allclose(found["quality"], [61 / 100], rtol=1e-6)
    true = study.on_ring(study.ring(jax.random.key(0), 20_000)[None])
    assert true["modes"].tolist() == [8]
    np.testing.assert_allclose(
        true["quality"], [1 - np.exp(-9 / 2)], atol=0.003
    )  # Rayleigh: 98.9 %


def test_the_digits_judge_sees_collapse_and_copies(study):
    rng = np.random.default_rng(0)
    train, labels = rng.random((200, 64)), np.arange(200) % 10
    half, collapsed = train[labels < 5], np.repeat(train[7:8] + 0.05, 100, axis=0)
    found = study.digits_judge(np.stack([half, collapsed]), train, labels)
    assert found["classes"].tolist() == [5, 1]
    np.testing.assert_allclose(found["distance"], [0, 0.4], atol=1e-6)
    assert found["copies"].tolist() == [1, 1]
    np.testing.assert_allclose(found["spread"][1], 0, atol=1e-6)
    apart = [np.linalg.norm(a - b) for a in half[::2] for b in half[1::2]]
    np.testing.assert_allclose(found["spread"][0], np.mean(apart), rtol=1e-12)


@pytest.mark.long
def test_smoke(call, studies, tmp_path):
    """Even so short, most modes are found, and the digits come nearer to real ones."""
    config = studies.parent / "configs" / "gan.toml"
    said = call("run", config, "--seeds", 1, "--set", "study.smoke=true", "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, [])
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    mean = {name: metric["mean"] for name, metric in found.items()}
    assert mean["modes"] >= 6 > 2 >= mean["modes_untrained"]
    assert mean["quality_untrained"] < 0.1 < 0.6 < mean["quality"] < mean["quality_real"]
    real, made, untrained = (mean[f"digits_distance{end}"] for end in ("_real", "", "_untrained"))
    assert real < made < 0.75 * untrained
    for name in ("ring.png", "digits.png"):
        assert (tmp_path / "out" / name).stat().st_size > 5_000
