"""Tic-tac-toe: a network that learns by playing itself, and the solved game that judges it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from bpeq.experiment import Network
from bpeq.training.loops import Metrics
from bpeq.training.optimizers import apply_updates
from bpeq.types import Key, Params, Step

LINES = ((0, 1, 2), (3, 4, 5), (6, 7, 8), (0, 3, 6), (1, 4, 7), (2, 5, 8), (0, 4, 8), (2, 4, 6))
Board = tuple[int, ...]
"""Nine squares as the player to move sees them: 1 its own, −1 the other's, 0 free."""
EMPTY: Board = (0,) * 9


class Carry(NamedTuple):
    """Weights, the optimizer's state, and the boards of all games in play, `[games, 9]`."""

    params: Params
    optimizer: Any
    boards: Array


def features(boards: Array) -> Float[Array, "... 18"]:
    """One plane for the mover's marks, one for the other's."""
    return jnp.concatenate([boards == 1, boards == -1], axis=-1).astype(jnp.result_type(float))


def won(boards: Array) -> Bool[Array, " ..."]:
    """Three of the mover's own in a line."""
    return (boards[..., np.array(LINES)].sum(axis=-1) == 3).any(axis=-1)


def start(
    network: Network, optimizer: optax.GradientTransformation, games: int
) -> Callable[[Key], Carry]:
    def first(key: Key) -> Carry:
        params = network.init(key)
        return Carry(params, optimizer.init(params), jnp.zeros((games, 9), jnp.int32))

    return first


def self_play(network: Network, optimizer: optax.GradientTransformation, explore: float) -> Step:
    """One move in every game, and one update of what the network says each move is worth.

    The network plays both sides. A move a on a board s leads to s′, which the other player sees;
    its worth, as the network is taught it, is

        1 where it wins, 0 where it fills the board, else −max_b Q(s′)_b over the free squares

    and the error at the outputs is Q(s)_a − worth at a and 0 elsewhere, the worth held fixed. A
    share `explore` of all moves is random, so that what follows a mistake is learned too.

    Metrics: `loss`, the mean of ½ (Q(s)_a − worth)².

    Source: Watkins & Dayan 1992, Q-learning; for two players Littman 1994, Markov games as a
    framework for multi-agent reinforcement learning.
    """

    def step(carry: Carry, batch: Any, key: Key) -> tuple[Carry, Metrics]:
        params, _, boards = carry
        drawn, whether = jax.random.split(key)
        output, kept = network.layer.forward(params, features(boards))
        at_random = jax.random.uniform(drawn, boards.shape) + 2  # above any Q of a free square
        wild = jax.random.bernoulli(whether, explore, (len(boards), 1))
        moves = best(jnp.where(wild, at_random, output), boards)
        mark = jax.nn.one_hot(moves, 9, dtype=boards.dtype)
        after = boards + mark
        win, theirs = won(after), -after
        over = win | (after != 0).all(axis=-1)
        replies = network.layer.forward(params, features(theirs))[0]
        reply = jnp.max(jnp.where(theirs == 0, replies, -jnp.inf), axis=-1)
        worth = jnp.where(win, 1.0, jnp.where(over, 0.0, -reply))
        error = (output - worth[:, None]) * mark.astype(output.dtype)
        grads, _ = network.layer.backward(params, params, kept, error / len(boards))
        updates, state = optimizer.update(grads, carry.optimizer, params)
        boards = jnp.where(over[:, None], 0, theirs)
        loss = 0.5 * jnp.sum(error**2) / len(boards)
        params = apply_updates(params, updates, network.layer.trained)
        return Carry(params, state, boards), {"loss": loss}

    return step


def best(worth: Float[Array, "games 9"], boards: Array) -> Int[Array, " games"]:
    """The free square of the highest worth."""
    return jnp.argmax(jnp.where(boards == 0, worth, -jnp.inf), axis=-1)


# --- the solved game, in plain Python -----------------------------------------------------------


def play(board: Board, move: int) -> Board:
    """The board after the mover's move, as the other player sees it."""
    return tuple(-1 if i == move else -mark for i, mark in enumerate(board))


@cache
def lost(board: Board) -> bool:
    """The player who moved last has a line."""
    return any(board[a] + board[b] + board[c] == -3 for a, b, c in LINES)


@cache
def free(board: Board) -> list[int]:
    return [i for i, mark in enumerate(board) if mark == 0]


@cache
def value(board: Board) -> int:
    """1, 0 or −1: what the mover gets if both play perfectly."""
    if lost(board):
        return -1
    return max((-value(play(board, move)) for move in free(board)), default=0)


@cache
def perfect(board: Board) -> list[int]:
    """All of the mover's best moves."""
    return [move for move in free(board) if -value(play(board, move)) == value(board)]


@cache
def positions() -> tuple[Board, ...]:
    """Every position that a game can reach and that is not over: 4520."""
    found, edge = {EMPTY}, [EMPTY]
    while edge:
        edge = [after for b in edge for after in {play(b, m) for m in free(b)}]
        edge = [b for b in {*edge} - found if not lost(b) and 0 in b]
        found |= {*edge}
    return tuple(sorted(found))


def games(
    policy: dict[Board, int], replies: Callable[[Board], list[int]], first: bool
) -> Iterator[int]:
    """1, 0 or −1 for the policy, once for every game that the other's possible replies make."""

    def follow(board: Board, ours: bool) -> Iterator[int]:
        if lost(board) or 0 not in board:
            yield (-1 if ours else 1) * lost(board)
            return
        for move in [policy[board]] if ours else replies(board):
            yield from follow(play(board, move), not ours)

    return follow(EMPTY, first)


def judge(moves: np.ndarray, seed: int, random_games: int) -> dict[str, float]:
    """How a policy does: `moves` `[4520]` are its answers to `positions()`.

    `lost_to_perfect`, of all games against every best reply, moving first and second, and how many
    there are, `games_to_perfect`; `lost_to_anyone`, `games_to_anyone`, against every legal reply;
    `lost_to_random` and `won_against_random`, of `games_to_random`, every other one moving first;
    `wrong`, the share of all positions where the move is none of the best.
    """
    policy = dict(zip(positions(), moves.tolist(), strict=True))
    rng = np.random.default_rng(seed)
    sides = (True, False)
    ends = [end for first in sides for end in games(policy, perfect, first)]
    anyone = [end for first in sides for end in games(policy, free, first)]
    choose = lambda board: [int(rng.choice(free(board)))]  # noqa: E731
    chance = [next(games(policy, choose, i % 2 == 0)) for i in range(random_games)]
    return {
        "lost_to_perfect": ends.count(-1),
        "games_to_perfect": len(ends),
        "lost_to_anyone": anyone.count(-1),
        "games_to_anyone": len(anyone),
        "games_to_random": random_games,
        "lost_to_random": chance.count(-1),
        "won_against_random": chance.count(1),
        "wrong": sum(policy[b] not in perfect(b) for b in policy) / len(policy),
    }
