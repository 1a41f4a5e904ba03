"""The control study: its environment, its hand-written errors, the solved game, its smoke."""

import json
import math
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from bpeq.config.networks import Network
from bpeq.config.registry import load_study
from bpeq.layers import chain, dense, relu, tanh


@pytest.fixture(scope="module")
def study(studies):
    """The study's own modules."""
    name = load_study("control/study.py", studies).__module__
    parts = ("cartpole", "ppo", "tictactoe")
    return SimpleNamespace(**{part: sys.modules[f"{name}.{part}"] for part in parts})


@pytest.fixture(autouse=True)
def optax_promotes():
    with jax.numpy_dtype_promotion("standard"):
        yield


def published(state, push):
    """Barto, Sutton & Anderson 1983, eqs. 1 and 2 without friction, solved the other way round.

    The two accelerations are the solution of (M) ẍ + (m ℓ cos θ) θ̈ = F + m ℓ θ̇² sin θ and
    (cos θ) ẍ + (4/3 ℓ) θ̈ = g sin θ.
    """
    x, v, theta, omega = state
    force = 10.0 if push else -10.0
    ml = 0.1 * 0.5
    left = [[1.1, ml * math.cos(theta)], [math.cos(theta), 4 / 3 * 0.5]]
    right = [force + ml * omega * omega * math.sin(theta), 9.8 * math.sin(theta)]
    a, alpha = np.linalg.solve(left, right)
    return [x + 0.02 * v, v + 0.02 * a, theta + 0.02 * omega, omega + 0.02 * alpha]


def test_a_step_of_the_cart_solves_the_published_equations(study):
    rng = np.random.default_rng(0)
    states = rng.normal(size=(200, 4)) * [1, 2, 0.3, 2]
    pushes = rng.integers(0, 2, 200)
    expected = [published(state, push) for state, push in zip(states, pushes, strict=True)]
    found = study.cartpole.step(jnp.asarray(states), jnp.asarray(pushes))
    np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-12)


def test_a_cart_falls_past_its_limits_and_not_before(study):
    inside = jnp.array([[2.39999, 9, 0.2094, 9], [-2.39999, -9, -0.2094, -9]])
    assert not study.cartpole.fallen(inside).any()
    outside = jnp.array([[2.40001, 0, 0, 0], [-2.40001, 0, 0, 0], [0, 0, 0.2095, 0]])
    assert study.cartpole.fallen(jnp.concatenate([outside, -outside])).all()


@pytest.mark.parametrize("weights", [(0, 0, 0, 0), (0.1, 0.2, 1, 1), (0, 0, 1, 0)])
def test_the_cart_equals_gymnasiums_step_for_step(study, weights):
    gymnasium = pytest.importorskip("gymnasium")
    env = gymnasium.make("CartPole-v1")
    step = jax.jit(study.cartpole.step)
    first, _ = env.reset(seed=0)
    assert (np.abs(first) <= 0.05).all()
    state, count, done = jnp.asarray(env.unwrapped.state, jnp.float64), 0, False
    while not done:
        action = int(state @ jnp.asarray(weights, jnp.float64) > 0)
        seen, reward, fell, stopped, _ = env.step(action)
        state, count = step(state, jnp.asarray(action)), count + 1
        np.testing.assert_allclose(state, env.unwrapped.state, rtol=0, atol=1e-13)
        np.testing.assert_array_equal(np.float32(env.unwrapped.state), seen)
        state = jnp.asarray(
            env.unwrapped.state, jnp.float64
        )  # or round-off grows as the pole falls
        assert bool(study.cartpole.fallen(state)) == fell
        assert (count >= study.cartpole.STEPS) == stopped
        assert reward == 1
        done = fell or stopped
    assert (count == 500) == (weights == (0.1, 0.2, 1, 1))


def test_the_policys_error_is_the_gradient_of_its_cost(study):
    keys = jax.random.split(jax.random.key(0), 4)
    logits, before = jax.random.normal(keys[0], (64, 2)), -jax.random.uniform(keys[1], (64,)) - 0.2
    actions, advantage = jax.random.randint(keys[2], (64,), 0, 2), jax.random.normal(keys[3], (64,))

    def total(logits):
        log_p = jax.nn.log_softmax(logits)
        ratio = jnp.exp(log_p[jnp.arange(64), actions] - before)
        gain = jnp.minimum(ratio * advantage, jnp.clip(ratio, 0.8, 1.2) * advantage)
        return -jnp.sum(gain) + 0.01 * jnp.sum(jnp.exp(log_p) * log_p)

    cost, error = study.ppo.policy_error(logits, actions, before, advantage, 0.2, 0.01)
    np.testing.assert_allclose(cost.sum(), total(logits), rtol=1e-12)
    np.testing.assert_allclose(error, jax.grad(total)(logits), rtol=1e-10, atol=1e-13)


def test_an_impossible_action_adds_nothing_to_the_entropy(study):
    logits = jnp.array([[1e308, -1e308], [0.0, -jnp.inf]])
    cost, error = study.ppo.policy_error(
        logits, jnp.zeros(2, int), jnp.zeros(2), jnp.ones(2), 0.2, 0.01
    )
    assert cost.tolist() == [-1.0, -1.0]
    assert error.tolist() == [[0.0, 0.0]] * 2


def test_advantages_are_discounted_sums_within_each_episode(study):
    rng = np.random.default_rng(0)
    values, after = rng.normal(size=(2, 12, 3))
    fell = rng.random((12, 3)) < 0.2
    ended = fell | (rng.random((12, 3)) < 0.1)
    expected = np.zeros((12, 3))
    for cart in range(3):
        for t in range(12):
            weight = 1.0
            for k in range(t, 12):
                delta = 0.1 + 0.9 * after[k, cart] * (not fell[k, cart]) - values[k, cart]
                expected[t, cart] += weight * delta
                if ended[k, cart]:
                    break
                weight *= 0.9 * 0.8
    played = study.ppo.Played(None, None, None, None, jnp.asarray(fell), jnp.asarray(ended))
    found = study.ppo.advantages(jnp.asarray(values), jnp.asarray(after), played, 0.9, 0.8)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.fixture(scope="module")
def carts(study):
    """Two networks and five carts in the middle of things: one about to fall, one to be stopped."""
    actor = Network(chain(dense(6), tanh(), dense(2)), (4,), None)
    critic = Network(chain(dense(5), tanh(), dense(1)), (4,), None)
    descent = optax.sgd(1.0)
    carry = study.ppo.start(actor, critic, descent, 5)(jax.random.key(0))
    states = carry.states.at[1].set(jnp.array([0, 0, 0.209, 3.0]))
    return actor, critic, descent, carry._replace(states=states, ages=carry.ages.at[2].set(497))


def test_play_goes_on_where_it_was_and_starts_anew_where_it_ended(study, carts):
    actor, _, _, carry = carts
    after, played = study.ppo._play(actor, carry, jax.random.key(3), 6)
    states, ages, lasts = carry.states, carry.ages, carry.lasts
    for t in range(6):
        np.testing.assert_array_equal(played.states[t], states)
        log_p = jax.nn.log_softmax(actor.layer.forward(carry.params["actor"], states)[0])
        np.testing.assert_allclose(
            played.log_p[t], log_p[jnp.arange(5), played.actions[t]], rtol=1e-12
        )
        led = study.cartpole.step(states, played.actions[t])
        np.testing.assert_allclose(played.after[t], led, rtol=1e-12)
        ages, fell = ages + 1, study.cartpole.fallen(led)
        ended = fell | (ages == 500)
        np.testing.assert_array_equal(played.fell[t], fell)
        np.testing.assert_array_equal(played.ended[t], ended)
        lasts, ages = jnp.where(ended, ages, lasts), jnp.where(ended, 0, ages)
        following = played.states[t + 1] if t < 5 else after.states
        assert (np.abs(following[ended]) <= 0.05).all()
        states = jnp.where(ended[:, None], following, led)
    assert played.fell[:, 1].any()
    assert played.ended[:, 2].tolist() == [False, False, True, False, False, False]
    assert after.lasts[2] == 500
    np.testing.assert_array_equal(after.lasts, lasts)
    np.testing.assert_array_equal(after.ages, ages)


def test_an_update_descends_the_policys_and_the_critics_cost(study, carts):
    """In one part, whose order does not matter: the whole step against autodiff."""
    actor, critic, descent, carry = carts
    settings = {"discount": 0.9, "trace": 0.8, "clip": 0.2, "entropy": 0.03}
    step = study.ppo.ppo(actor, critic, descent, steps=6, passes=2, parts=1, **settings)
    after, metrics = step(carry, None, jax.random.key(7))
    _, played = study.ppo._play(actor, carry, jax.random.split(jax.random.key(7))[0], 6)
    value = lambda p, s: critic.layer.forward(p["critic"], s)[0][..., 0]  # noqa: E731
    values, later = value(carry.params, played.states), value(carry.params, played.after)
    gain = study.ppo.advantages(values, later, played, 0.9, 0.8)
    scaled = (gain - gain.mean()) / (gain.std() + 1e-8)

    def costs(params):
        log_p = jax.nn.log_softmax(actor.layer.forward(params["actor"], played.states)[0])
        taken = jnp.take_along_axis(log_p, played.actions[..., None], -1)[..., 0]
        ratio = jnp.exp(taken - played.log_p)
        kept = jnp.minimum(ratio * scaled, jnp.clip(ratio, 0.8, 1.2) * scaled)
        policy = -kept.mean() + 0.03 * (jnp.exp(log_p) * log_p).sum(-1).mean()
        return policy + 0.5 * ((value(params, played.states) - gain - values) ** 2).mean(), policy

    params, said = carry.params, []
    for _ in range(2):
        grads, policy = jax.grad(costs, has_aux=True)(params)
        params = jax.tree.map(jnp.subtract, params, grads)
        said.append(policy)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), after.params, params
    )
    np.testing.assert_allclose(metrics["loss"], np.mean(said), rtol=1e-9)
    np.testing.assert_allclose(metrics["return"], after.lasts.mean())


def test_an_episodes_return_is_how_many_steps_its_cart_was_up(study):
    push = lambda states: jnp.ones(len(states), jnp.int32)  # noqa: E731
    total, path = study.ppo.episodes(push, jax.random.key(0), 4)
    for cart in range(4):
        falls = int(np.flatnonzero(study.cartpole.fallen(path[:, cart]))[0])
        assert total[cart] == falls + 1  # the step that fells it is paid, as Gymnasium does
        np.testing.assert_array_equal(
            path[falls:, cart], np.broadcast_to(path[falls, cart], (500 - falls, 4))
        )


# --- tic-tac-toe -------------------------------------------------------------------------------


def test_all_games_of_tic_tac_toe_are_the_known_ones(study):
    """255,168 games: 131,184 won by the first player, 77,904 by the second, 46,080 drawn."""
    game, known = study.tictactoe, {}

    def ends(board):  # (won by the mover, by the other, drawn)
        if game.lost(board):
            return np.array([0, 1, 0])
        if not game.free(board):
            return np.array([0, 0, 1])
        if board not in known:
            after = [ends(game.play(board, move)) for move in game.free(board)]
            known[board] = np.sum(after, 0)[[1, 0, 2]]
        return known[board]

    assert ends(game.EMPTY).tolist() == [131184, 77904, 46080]
    assert len(known) == 4520
    assert set(known) == set(game.positions())
    assert game.value(game.EMPTY) == 0


def test_perfect_play_never_loses_and_the_judge_sees_who_does(study):
    game = study.tictactoe
    best = game.judge(np.array([game.perfect(b)[0] for b in game.positions()]), 0, 50)
    assert (best["lost_to_perfect"], best["lost_to_anyone"], best["lost_to_random"]) == (0, 0, 0)
    assert best["wrong"] == 0
    worst = [next((m for m in game.free(b) if m not in game.perfect(b)), game.free(b)[0])
             for b in game.positions()]  # fmt: skip
    bad = game.judge(np.array(worst), 0, 50)
    assert bad["lost_to_perfect"] == bad["games_to_perfect"] > 0
    assert bad["wrong"] > 0.5


@pytest.mark.parametrize("second", [False, True])
def test_the_judge_sees_who_loses_on_one_side_only(study, second):
    """Perfect on one side, blundering wherever it can on the other."""
    game = study.tictactoe

    def answer(board):
        best = game.perfect(board)
        blunders = [move for move in game.free(board) if move not in best]
        other = (9 - board.count(0)) % 2 == second
        return (blunders or best)[0] if other else best[0]

    found = game.judge(np.array([answer(board) for board in game.positions()]), 0, 60)
    for who in ("perfect", "anyone", "random"):
        assert 0 < found[f"lost_to_{who}"] < found[f"games_to_{who}"]
    assert found["lost_to_random"] + found["won_against_random"] <= found["games_to_random"] == 60


def test_self_play_descends_the_squared_error_to_what_the_move_is_worth(study):
    game = study.tictactoe
    network = Network(chain(dense(16), relu(), dense(9)), (18,), None)
    params = network.init(jax.random.key(0))
    boards = jnp.array([  # one that the mover can win, one to be filled, two under way
        [1, 1, 0, -1, -1, 0, 0, 0, 0],
        [1, -1, 1, 1, -1, -1, -1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [-1, 0, 0, 0, 1, 0, 0, 0, -1],
    ])  # fmt: skip
    q = network.layer.forward(params, game.features(boards))[0]
    moves = game.best(q, boards).tolist()
    worth = []
    for board, move in zip(boards.tolist(), moves, strict=True):
        after = game.play(tuple(board), move)
        said = network.layer.forward(params, game.features(jnp.array([after])))[0][0]
        over = 1.0 if game.lost(after) else 0.0
        worth.append(over if over or 0 not in after else -max(said[m] for m in game.free(after)))

    def cost(params):
        own = network.layer.forward(params, game.features(boards))[0][
            jnp.arange(4), jnp.array(moves)
        ]
        return 0.5 * jnp.mean((own - jnp.asarray(worth)) ** 2)

    descent = optax.sgd(1.0)
    carry = game.Carry(params, descent.init(params), boards)
    after, metrics = game.self_play(network, descent, 0.0)(carry, None, jax.random.key(1))
    grads = jax.tree.map(jnp.subtract, params, after.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12),
        grads,
        jax.grad(cost)(params),
    )
    np.testing.assert_allclose(metrics["loss"], cost(params), rtol=1e-12)
    assert after.boards[1].tolist() == [0] * 9
    assert after.boards[3].tolist() == list(game.play(tuple(boards[3].tolist()), moves[3]))


@pytest.mark.long  # a minute of compiling
def test_smoke(call, studies, tmp_path):
    """Even so short, the pole stays up longer than at random, and few games are lost."""
    config = studies.parent / "configs" / "control.toml"
    said = call("run", config, "--seeds", 1, "--set", "study.smoke=true", "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, [])
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    mean = {name: metric["mean"] for name, metric in found.items()}
    assert mean["mean_return"] > 100 > 30 > mean["mean_return_random"]
    assert mean["tictactoe_lost_to_random"] < 50 < 300 < mean["tictactoe_lost_to_random_untrained"]
    assert mean["tictactoe_wrong"] < 0.12 < 0.4 < mean["tictactoe_wrong_untrained"]
    assert (tmp_path / "out" / "control.png").stat().st_size > 20_000
