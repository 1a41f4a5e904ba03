"""Control: CartPole by policy gradient, and tic-tac-toe by self-play."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from matplotlib.figure import Figure

from bpeq.experiment import Config, Network, Runner, build_networks, build_optimizer, seed_keys
from bpeq.settings import Count, Fraction
from bpeq.training import loops

from . import cartpole, ppo, tictactoe

EPISODES, RANDOM_GAMES = 100, 1000
NETWORKS = {"actor": ((4,), (2,)), "critic": ((4,), (1,)), "tictactoe": ((18,), (9,))}
SEARCHED = 100  # linear policies of the null control
OURS, CONTROL, GREEN, GREY = "#0072b2", "#d55e00", "#00785a", "#444444"
OPPONENTS = {
    "random": (CONTROL, "to a random player"),
    "perfect": (OURS, "to a perfect player"),
    "anyone": (GREEN, "against every possible reply"),
}
SHOWN = (-1, 0, 0, 0, 0, 0, 0, 0, 0)  # the other has taken a corner: only the centre does not lose


def run(
    config: Config,
    runner: Runner,
    *,
    iterations: Count = 150,
    carts: Count = 16,
    moves: Count = 128,
    passes: Count = 4,
    parts: Count = 4,
    turns: Count = 5000,
    games: Count = 256,
    explore: Fraction = 0.5,
    smoke: bool = False,
) -> dict[str, Any]:
    """Both games, every seed side by side; leaves control.png.

    Metrics of CartPole, over 100 greedy episodes: `mean_return`; `mean_return_untrained`, of the
    first weights; `mean_return_random`, of pushes at random; `mean_return_search`, of the best of
    100 linear policies with random weights. Of tic-tac-toe, `tictactoe_` and the names of
    `tictactoe.judge`; the same with `_untrained`, of the first weights.

    Args:
      iterations: of PPO, each `moves` steps of `carts` carts, learned from in `passes` passes of
        `parts` minibatches. turns: of self-play, each a move in `games` games, a share `explore` of
        them random. smoke: a fifth of the iterations, a tenth of the turns.
    """
    if carts * moves % parts:
        raise config.error("study.parts", parts, f"must divide the {carts * moves} moves")
    if smoke:
        iterations, turns = max(iterations // 5, 1), max(turns // 10, 1)
    strides = 4 if smoke else 30
    networks = build_networks(config, NETWORKS)
    keys = seed_keys(config.seed, config.seeds)
    rows, path, metrics = balance(
        config, runner, networks, keys, iterations, carts, moves, passes, parts, strides
    )
    played, worth, found = self_play(
        config, runner, networks["tictactoe"], keys, turns, games, explore, strides
    )
    at_random = metrics["mean_return_random"].mean()
    draw(runner.folder, rows, path, played, worth, carts * moves, at_random)
    return metrics | found


def balance(
    config: Config,
    runner: Runner,
    networks: dict[str, Network],
    keys: Array,
    iterations: int,
    carts: int,
    moves: int,
    passes: int,
    parts: int,
    strides: int,
) -> tuple[list[dict[str, Any]], tuple[np.ndarray, np.ndarray], dict[str, np.ndarray]]:
    """The rows of the training, one episode of 4 coordinates before and after it, and metrics."""
    actor, critic = networks["actor"], networks["critic"]
    optimizer = build_optimizer(config, iterations * passes * parts)
    carry = jax.vmap(ppo.start(actor, critic, optimizer, carts))(keys[:, 0])

    @jax.jit
    def greedy(params: Any) -> tuple[Array, Array]:
        def one(params: Any, key: Array) -> tuple[Array, Array]:
            choose = lambda s: jnp.argmax(actor.layer.forward(params, s)[0], axis=-1)  # noqa: E731
            total, path = ppo.episodes(choose, key, EPISODES)
            return total.mean(), path[:, 0]

        return jax.vmap(one)(params, keys[:, 1])

    with runner.clock("evaluate"):
        untrained, before = jax.device_get(greedy(carry.params["actor"]))
        at_random, searched = jax.device_get(jax.jit(jax.vmap(_nulls))(keys[:, 1]))
    step = ppo.ppo(actor, critic, optimizer, steps=moves, passes=passes, parts=parts)
    carry, values, rows = runner.repeat(
        loops.over_seeds(loops.step_scan(step)),
        carry,
        (keys[:, 2],),
        total=iterations,
        every=max(iterations // strides, 1),
        measure=lambda carry: {"mean_return": greedy(carry.params["actor"])[0]},
        name="cartpole",
        params=lambda carry: carry.params,
    )
    after = jax.device_get(greedy(carry.params["actor"])[1])
    return (
        rows,
        (before[0], after[0]),
        {
            "mean_return": values["cartpole_mean_return"],
            "mean_return_untrained": untrained,
            "mean_return_random": at_random,
            "mean_return_search": searched,
        },
    )


def _nulls(key: Array) -> tuple[Array, Array]:
    """The mean returns of pushes at random, and of the best of some random linear policies.

    The best is chosen by 10 episodes, and then judged by others.
    """
    keys = jax.random.split(key, 4)

    def tossed(states: Array) -> Array:  # a coin for every state: none is met twice
        noise = jax.lax.bitcast_convert_type(states, jnp.int32).sum()
        coins = jax.random.bernoulli(jax.random.fold_in(keys[0], noise), 0.5, states.shape[:-1])
        return coins.astype(jnp.int32)

    weights = jax.random.normal(keys[1], (SEARCHED, 4))
    linear = lambda w: lambda s: (s @ w > 0).astype(jnp.int32)  # noqa: E731
    trial = jax.vmap(lambda w: ppo.episodes(linear(w), keys[2], 10)[0].mean())(weights)
    chosen = weights[jnp.argmax(trial)]
    judged = ppo.episodes(linear(chosen), keys[3], EPISODES)[0].mean()
    return ppo.episodes(tossed, keys[3], EPISODES)[0].mean(), judged


def self_play(
    config: Config,
    runner: Runner,
    network: Network,
    keys: Array,
    turns: int,
    games: int,
    explore: float,
    strides: int,
) -> tuple[list[dict[str, Any]], np.ndarray, dict[str, np.ndarray]]:
    """The rows of the training, what the squares of `SHOWN` are worth to seed 0, and metrics."""
    optimizer = build_optimizer(config, turns)
    boards = jnp.asarray(tictactoe.positions())

    @jax.jit
    def answers(params: Any) -> Array:
        worth = jax.vmap(lambda p: network.layer.forward(p, tictactoe.features(boards))[0])(params)
        return jax.vmap(tictactoe.best, (0, None))(worth, boards)

    def judged(carry: tictactoe.Carry) -> dict[str, np.ndarray]:
        said = np.asarray(answers(carry.params))
        each = [tictactoe.judge(moves, seed, RANDOM_GAMES) for seed, moves in enumerate(said)]
        return {name: np.array([one[name] for one in each]) for name in each[0]}

    def shares(carry: tictactoe.Carry) -> dict[str, np.ndarray]:
        found = judged(carry)
        return {who: found[f"lost_to_{who}"] / found[f"games_to_{who}"] for who in OPPONENTS}

    carry = jax.vmap(tictactoe.start(network, optimizer, games))(keys[:, 0])
    with runner.clock("evaluate"):
        first, unlearned = judged(carry), shares(carry)
    carry, _, rows = runner.repeat(
        loops.over_seeds(loops.step_scan(tictactoe.self_play(network, optimizer, explore))),
        carry,
        (keys[:, 2],),
        total=turns,
        every=max(turns // strides, 1),
        measure=shares,
        name="lost",
        params=lambda carry: carry.params,
    )
    rows = [{"step": 0, "values": {f"lost_{k}": v for k, v in unlearned.items()}}, *rows]
    metrics = {f"tictactoe_{name}": found for name, found in judged(carry).items()}
    metrics |= {f"tictactoe_{name}_untrained": v for name, v in first.items()}
    own = jax.tree.map(lambda leaf: leaf[0], carry.params)
    worth = network.layer.forward(own, tictactoe.features(jnp.asarray([SHOWN])))[0][0]
    return rows, np.asarray(worth), metrics


def draw(
    folder: Path,
    balanced: list[dict[str, Any]],
    paths: tuple[np.ndarray, np.ndarray],
    played: list[dict[str, Any]],
    worth: np.ndarray,
    seen: int,
    at_random: float,
) -> None:
    """control.png: learning curves of both games, an episode, and what squares are worth."""
    figure = Figure(figsize=(9.6, 6.8), layout="constrained")
    (top, angle), (lost, board) = figure.subplots(2, 2)
    thousands = [row["step"] * seen / 1000 for row in balanced]
    values = lambda rows, name: np.array([row["values"][name] for row in rows])  # noqa: E731
    band(top, thousands, values(balanced, "cartpole_return"), CONTROL, "as it plays in training")
    band(top, thousands, values(balanced, "cartpole_mean_return"), OURS, "100 greedy episodes")
    top.axhline(475, color=GREY, lw=1, ls="--")
    top.text(thousands[0], 479, "475: solved", va="bottom", color=GREY, fontsize=9)
    top.axhline(at_random, color=GREY, lw=1, ls=":")
    top.text(thousands[-1], at_random + 8, "random pushes", ha="right", color=GREY, fontsize=9)
    top.set(title="CartPole, learning", xlabel="moves of a cart, thousands", ylim=(0, 520))
    top.set(ylabel="steps that the pole stays up")
    top.legend(frameon=False, fontsize=9, loc="center right")
    for path, colour, label in zip(paths, (CONTROL, OURS), ("untrained", "trained"), strict=True):
        down = np.flatnonzero(cartpole.fallen(path))
        path = path[: down[0] + 1] if len(down) else path
        seconds = cartpole.TAU * np.arange(1, len(path) + 1)
        angle.plot(seconds, np.degrees(path[:, 2]), color=colour, lw=1.4, label=label)
    for side in (-12, 12):
        angle.axhline(side, color=GREY, lw=1, ls="--")
    angle.text(10, 11.6, "fallen past 12°", ha="right", va="top", color=GREY, fontsize=9)
    angle.set(title="one episode before and after", xlabel="time, s", ylim=(-14, 14))
    angle.set(ylabel="pole's angle, degrees")
    angle.legend(frameon=False, fontsize=9, loc=(0.68, 0.68))
    steps = [row["step"] for row in played]
    for who, (colour, label) in OPPONENTS.items():
        band(lost, steps, values(played, f"lost_{who}"), colour, label)
    lost.set(title="tic-tac-toe, learning", xlabel="updates of self-play", ylim=(0, None))
    lost.set(ylabel="share of games lost")
    lost.legend(frameon=False, fontsize=9)
    squares(board, worth)
    for axes in (top, angle, lost):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(folder / "control.png", dpi=130)


def band(axes: Any, x: list[float], y: np.ndarray, colour: str, label: str) -> None:
    """Median of the seeds, y `[len(x), seeds]`, and their range."""
    axes.fill_between(x, y.min(1), y.max(1), color=colour, alpha=0.18, lw=0)
    axes.plot(x, np.median(y, 1), color=colour, lw=1.8, label=label)


def squares(axes: Any, worth: np.ndarray) -> None:
    """What the network says that each move is worth, and what it is."""
    low = np.where(np.array(SHOWN) == 0, worth, np.nan).reshape(3, 3)
    axes.imshow(low, cmap="cividis", vmin=-1, vmax=1)
    for i, mark in enumerate(SHOWN):
        place = {"x": i % 3, "y": i // 3, "ha": "center", "va": "center"}
        if mark:
            axes.text(s="×" if mark == -1 else "○", fontsize=36, color=GREY, **place)
            continue
        truth = -tictactoe.value(tictactoe.play(SHOWN, i))
        colour = "white" if worth[i] < 0.2 else "black"
        axes.text(s=f"{worth[i]:+.2f}\n({truth:+d})", fontsize=11, color=colour, **place)
    axes.set_title("○ to move: worth of each square (the truth)")
    axes.set(xticks=np.arange(0.5, 2), yticks=np.arange(0.5, 2))
    axes.set(xticklabels=[], yticklabels=[])
    axes.grid(color="white", lw=3)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
