"""GAN: a ring of eight Gaussians, with and without mode collapse, then digits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure
from safetensors.numpy import load_file

from bpeq import data
from bpeq.experiment import Config, Network, Runner, build_networks, build_optimizer, seed_keys
from bpeq.runs import run_folder
from bpeq.settings import Count, NonNegative, Positive
from bpeq.training import loops
from bpeq.types import Key

from . import adversarial

RADIUS, SIGMA, MODES = 2.0, 0.05, 8
SAMPLES, SHOWN = 10_000, 1000
NETWORKS = {
    "ring_generator": (None, (2,)),
    "ring_critic": ((2,), (1,)),
    "digits_generator": (None, (64,)),
    "digits_critic": ((64,), (1,)),
}
DUE = 0.25  # a mode is found once it gets this share of the samples that it is due
STRIDES = 20
OURS, REAL = "#0072b2", "#d55e00"


def run(
    config: Config,
    runner: Runner,
    *,
    updates: Count = 12000,
    batch: Count = 256,
    noise: NonNegative = 0.5,
    digits_updates: Count = 8000,
    digits_batch: Count = 64,
    digits_noise: NonNegative = 0.3,
    digits_rate: Positive = 0.25,
    smoke: bool = False,
) -> dict[str, Any]:
    """The ring with noise and without, then digits; leaves ring.png and digits.png.

    Metrics of 10,000 samples a seed: `modes`, how many of the 8 Gaussians get at least a quarter of
    the eighth that each is due; `quality`, the share within 3σ of one; both with `_without_noise`
    and `_untrained`; `quality_real`, of true data. Of the digits see `digits_judge`.

    Args:
      updates, batch, noise: of the ring's two networks, see `adversarial.adversarial`. digits_…:
        of the digits'; `digits_rate` times the optimizer's learning rate. smoke: a sixth of the
        ring's updates, a twentieth of the digits', without the run without noise.
    """
    if smoke:
        updates, digits_updates = max(updates // 6, 1), max(digits_updates // 20, 1)
    networks = build_networks(config, NETWORKS)
    keys = seed_keys(config.seed, config.seeds)
    pair = networks["ring_generator"], networks["ring_critic"]
    metrics: dict[str, Any] = {}
    pictures = {}
    for name, ending, strength in (("ring", "", noise), ("bare", "_without_noise", 0.0)):
        if smoke and ending:
            continue
        measures, shown, found = duel(
            config, runner, pair, keys, name, updates, strength, lambda k: ring(k, batch), on_ring
        )
        worst = int(np.argmin(found["modes"]))
        pictures["without" if ending else "with noise"] = [(at, made[worst]) for at, made in shown]
        metrics |= {f"{k}{ending}": v for k, v in found.items()}
        metrics |= {f"{k}_untrained": v for k, v in measures.items()}
    metrics["quality_real"] = on_ring(ring(jax.random.key(1), SAMPLES)[None])["quality"]
    draw_ring(runner.folder, pictures)

    images = data.digits()
    train, held = (images.x[rows].reshape(-1, 64) for rows in (images.train[0], images.test[0]))
    table, labels = jnp.asarray(train), images.y[images.train[0]]
    sample = lambda k: table[jax.random.randint(k, (digits_batch,), 0, len(table))]  # noqa: E731
    judge = lambda made: digits_judge(np.asarray(made), train, labels)  # noqa: E731
    rate = config.optimizer.settings["learning_rate"] * digits_rate
    pair = networks["digits_generator"], networks["digits_critic"]
    slower = config.changed(optimizer={"learning_rate": rate})
    measures, shown, found = duel(
        slower, runner, pair, keys, "digits", digits_updates, digits_noise, sample, judge
    )
    metrics |= {f"digits_{k}": v for k, v in found.items()}
    metrics |= {f"digits_{k}_untrained": v for k, v in measures.items()}
    metrics |= {f"digits_{k}_real": v for k, v in judge(held[None]).items()}
    draw_digits(runner.folder, [(at, made[0]) for at, made in shown], held)
    return metrics


def duel(
    config: Config,
    runner: Runner,
    pair: tuple[Network, Network],
    keys: Array,
    name: str,
    updates: int,
    noise: float,
    sample: Callable[[Key], Array],
    judge: Callable[[Array], dict[str, Any]],
) -> tuple[dict[str, Any], list[tuple[int, np.ndarray]], dict[str, Any]]:
    """What the judge says before, samples over time `[(updates, [seeds, 1000, …])]`, and after."""
    generator, critic = pair
    optimizer = build_optimizer(config, updates)
    carry = jax.vmap(adversarial.start(generator, critic, optimizer))(keys[:, 0])
    folder = runner.folder / "made"
    folder.mkdir(exist_ok=True)

    @jax.jit
    def make(params: Any) -> Array:
        def one(params: Any, key: Key) -> Array:
            return generator.layer.forward(params, generator.examples(key, SAMPLES))[0]

        return jax.vmap(one)(params, keys[:, 1])

    def measure(carry: adversarial.Carry) -> dict[str, Any]:
        made = make(carry.generator)
        kept = {
            "made": np.asarray(made[:, :SHOWN])
        }  # in a file: a run may go on in another process
        run_folder.save_arrays(folder / f"{name}-{int(carry.done[0])}.safetensors", kept)
        return judge(made)

    with runner.clock("evaluate"):
        before = measure(carry)
    step = adversarial.adversarial(generator, critic, optimizer, updates=updates, noise=noise)
    _, values, rows = runner.repeat(
        loops.over_seeds(loops.step_scan(step, sample)),
        carry,
        (keys[:, 2],),
        total=updates,
        every=max(updates // STRIDES, 1),
        measure=measure,
        name=name,
        params=lambda carry: (carry.generator, carry.critic),
    )
    moments = [0, *(row["step"] for row in rows)]
    made = (load_file(folder / f"{name}-{done}.safetensors")["made"] for done in moments)
    shown = list(zip(moments, made, strict=True))
    return before, shown, {k: values[f"{name}_{k}"] for k in before}


# --- the ring -----------------------------------------------------------------------------------


def centres() -> Float[Array, "modes 2"]:
    angles = jnp.linspace(0, 2 * jnp.pi, MODES, endpoint=False)
    return RADIUS * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=-1)


def ring(key: Key, count: int) -> Float[Array, "count 2"]:
    """Points of eight Gaussians, σ = 0.05, in a ring of radius 2."""
    which, where = jax.random.split(key)
    mode = jax.random.randint(which, (count,), 0, MODES)
    return centres()[mode] + SIGMA * jax.random.normal(where, (count, 2))


@jax.jit
def on_ring(made: Float[Array, "seeds n 2"]) -> dict[str, Array]:
    """`modes` found and the share `quality` of good samples: those within 3σ of a centre."""
    distance = jnp.linalg.norm(made[..., None, :] - centres(), axis=-1)
    good = distance < 3 * SIGMA  # the centres are farther apart than that
    shares = good.mean(axis=-2)
    return {"modes": (shares >= DUE / MODES).sum(axis=-1), "quality": shares.sum(axis=-1)}


# --- digits -------------------------------------------------------------------------------------


def digits_judge(made: np.ndarray, train: np.ndarray, labels: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of `made` `[seeds, n, 64]`, by each image's nearest one among the real of training.

    `classes`, how many of the ten digits at least 2 % of the images are nearest to; `distance`, the
    mean distance to the nearest; `copies`, the share of images nearer to a training image than any
    two training images are to each other; `spread`, the mean distance of two of the images.
    """
    closest = _distances(train, train)
    np.fill_diagonal(closest, np.inf)
    found: dict[str, list[float]] = {"classes": [], "distance": [], "copies": [], "spread": []}
    for each in made[:, :SHOWN]:
        gaps = _distances(each, train)
        shares = np.bincount(labels[gaps.argmin(1)], minlength=10) / len(each)
        found["classes"].append(int((shares >= 0.02).sum()))
        found["distance"].append(gaps.min(1).mean())
        found["copies"].append((gaps.min(1) < closest.min()).mean())
        found["spread"].append(_distances(each[::2], each[1::2]).mean())
    return {name: np.array(values) for name, values in found.items()}


def _distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0))


# --- pictures -----------------------------------------------------------------------------------


def chosen(shown: list[tuple[int, np.ndarray]]) -> list[tuple[int, np.ndarray]]:
    """Five moments: the start, then after a tenth, a fifth, a half and all of the updates."""
    last = len(shown) - 1
    return [shown[round(part * last)] for part in (0, 0.1, 0.2, 0.5, 1)]


def draw_ring(folder: Path, pictures: dict[str, list[tuple[int, np.ndarray]]]) -> None:
    """ring.png: samples over time, with noise and without, of the seeds that find fewest modes."""
    figure = Figure(figsize=(10, 2.3 * len(pictures)), layout="constrained")
    rows = figure.subplots(len(pictures), 5, squeeze=False)
    real = np.asarray(ring(jax.random.key(2), 400))
    for axes, (name, shown) in zip(rows, pictures.items(), strict=True):
        for one, (done, made) in zip(axes, chosen(shown), strict=True):
            one.scatter(*real.T, s=5, color=REAL, lw=0, alpha=0.5)
            one.scatter(*made.T, s=3, color=OURS, lw=0, alpha=0.5)
            one.set(xlim=(-2.6, 2.6), ylim=(-2.6, 2.6), aspect="equal", xticks=[], yticks=[])
            one.set_title(f"{done} updates", fontsize=9)
        axes[0].set_ylabel(name, fontsize=10)
    figure.suptitle(
        "points made (blue) and real ones (orange), by the seed that finds the fewest modes",
        fontsize=10,
    )
    figure.savefig(folder / "ring.png", dpi=120)


def draw_digits(folder: Path, shown: list[tuple[int, np.ndarray]], real: np.ndarray) -> None:
    """digits.png: sixteen images at five moments, from the same random numbers, and real ones."""
    figure = Figure(figsize=(10, 2.1), layout="constrained")
    columns = [(f"{done} updates", made) for done, made in chosen(shown)] + [("real", real)]
    for one, (title, images) in zip(figure.subplots(1, 6), columns, strict=True):
        tiles = np.pad(images[:16].reshape(16, 8, 8), ((0, 0), (1, 1), (1, 1)), constant_values=0.3)
        grid = tiles.reshape(4, 4, 10, 10).transpose(0, 2, 1, 3).reshape(40, 40)
        one.imshow(grid, cmap="gray_r", vmin=0, vmax=1)
        one.set_title(title, fontsize=9)
        one.axis("off")
    figure.savefig(folder / "digits.png", dpi=120)
