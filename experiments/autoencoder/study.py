"""Autoencoders: images through a narrow code and back, beside principal components."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from bpeq.experiment import Config, Network, Runner, build_networks, learner, seed_keys
from bpeq.layers import chain
from bpeq.settings import Count, NonNegative
from bpeq.training import loops
from bpeq.types import Batch, Key, Layer, Params

CLASSES = (
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00",
    "#56b4e9", "#000000", "#8c564b", "#7f7f7f", "#b2a800",
)  # fmt: skip


def run(
    config: Config,
    runner: Runner,
    *,
    noise: NonNegative = 0.3,
    code: Count = 3,
    smoke: bool = False,
) -> dict[str, Any]:
    """Trains the autoencoder on clean and on noisy images, and the linear one; autoencoder.png.

    Metrics, squared errors Σ (o − x)² an image, of the test set where not said otherwise:
    `squared_error_clean`, `squared_error_denoise` (from the noisy image to the clean one),
    `squared_error_linear`, and `pca_clean`, `pca_denoise` of as many principal components of the
    training images as the code has numbers; `squared_error_linear_train` and `pca_train` on the
    training set, where no linear code can be better than the components.

    Args:
      noise: σ of the Gaussian noise on every pixel. code: layers of the encoder.
      smoke: digits in place of MNIST, and five epochs.
    """
    data = None if smoke else config.build(config.data)
    pixels = None if data is None else (int(np.prod(data.x.shape[1:])),)
    wanted = dict.fromkeys(("autoencoder", "linear"), (pixels, pixels))
    networks = build_networks(config, wanted)
    layers = len(networks["autoencoder"].layer.parts)
    if code >= layers:
        raise config.error("study.code", code, f"must be 1 to {layers - 1}, of {layers} layers")
    if smoke:
        config = config.override('data={name="digits", validation=0}', "training.epochs=5")
        networks = {name: resized(network, 64) for name, network in networks.items()}
        data = config.build(config.data)
    images = np.asarray(data.x, np.float32).reshape(len(data.x), -1)
    task = Task(images, np.asarray(data.train[0]), np.asarray(data.test[0]), noise)
    size = config.training.batch_size
    if size > len(task.train):
        remedy = f"must be 1 to {len(task.train)}, the training set"
        raise config.error("training.batch_size", size, remedy)
    keys = seed_keys(config.seed, config.seeds)
    encoder = lambda layer: chain(*layer.parts[:code])  # noqa: E731
    width = encoder(networks["autoencoder"].layer).init(keys[0, 0], networks["autoencoder"].shape)
    components = principal(images[task.train], width[1][0])
    metrics: dict[str, Any] = {}
    trained = {}
    for name, net, sigma in (
        ("clean", "autoencoder", 0.0),
        ("denoise", "autoencoder", noise),
        ("linear", "linear", 0.0),
    ):
        params, test, train = fit(config, runner, networks[net], task, keys, name, sigma)
        metrics[f"squared_error_{name}"] = test
        if name == "linear":
            metrics["squared_error_linear_train"] = train
        trained[name] = jax.tree.map(lambda p: p[0], params)
    dirty = noisy(jax.random.key(1), images[task.test], noise)
    metrics["pca_clean"] = summed(components(images[task.test]), images[task.test])
    metrics["pca_denoise"] = summed(components(dirty), images[task.test])
    metrics["pca_train"] = summed(components(images[task.train]), images[task.train])
    net = networks["autoencoder"].layer
    shown = np.array([3, 2, 1, 18, 4, 8, 11, 0, 61, 7])  # a 0, a 1, … of the MNIST test set
    rows = {
        "image": images[task.test][shown],
        "reconstructed": net.forward(trained["clean"], images[task.test][shown])[0],
        "32 components" if width[1][0] == 32 else "components": components(
            images[task.test][shown]
        ),
        "noisy": dirty[shown],
        "denoised": net.forward(trained["denoise"], dirty[shown])[0],
        "components, noisy": components(dirty[shown]),
    }
    codes = encoder(net).forward(trained["clean"][:code], images[task.test])[0]
    labels = np.asarray(data.y)[task.test]
    draw(rows, np.asarray(codes), labels).savefig(runner.folder / "autoencoder.png", dpi=130)
    return metrics


class Task(NamedTuple):
    """All images `[n, pixels]`, which of them are trained and tested on, and the noise's σ."""

    images: Float[np.ndarray, "n pixels"]
    train: np.ndarray
    test: np.ndarray
    noise: float


def fit(
    config: Config,
    runner: Runner,
    network: Network,
    task: Task,
    keys: Key,
    name: str,
    sigma: float,
) -> tuple[Params, np.ndarray, np.ndarray]:
    """(params, squared error on the test set, and on the training set), seeds on axis 0."""
    settings, rows = config.training, jnp.asarray(task.train)
    size = settings.batch_size
    per_epoch = len(rows) // size
    updates = settings.epochs * per_epoch
    carry, update = learner(config, network, config.build(config.cost), keys, updates)
    x = jnp.asarray(task.images)

    def step(carry: Any, batch: Batch, key: Key) -> tuple[Any, dict[str, Array]]:
        noise_key, rule_key = jax.random.split(key)
        return update(carry, Batch(noisy(noise_key, batch.x, sigma), batch.y), rule_key)

    @jax.jit
    @jax.vmap
    def reconstructed_test(params: Params) -> Array:
        clean = x[task.test]
        return summed(
            network.layer.forward(params, noisy(jax.random.key(1), clean, sigma))[0], clean
        )

    @jax.jit
    @jax.vmap
    def reconstructed_train(params: Params) -> Array:
        return summed(network.layer.forward(params, x[task.train])[0], x[task.train])

    seeds = jnp.broadcast_to(rows, (len(keys), len(rows)))
    carry, values, _ = runner.repeat(
        loops.over_seeds(loops.epoch_scan(step, size)),
        carry,
        (x, x, seeds, keys[:, 2]),
        total=settings.epochs,
        every=settings.evaluate_every,
        measure=lambda carry: {"squared_error": reconstructed_test(carry.params)},
        row=lambda done: {"epoch": done, "step": done * per_epoch},
        unit="epoch",
        params=lambda carry: carry.params,
        name=name,
    )
    train = np.asarray(reconstructed_train(carry.params))
    return carry.params, values[f"{name}_squared_error"], train


def principal(images: np.ndarray, count: int) -> Any:
    """x -> its projection onto the first `count` principal components of some images."""
    mean = images.mean(axis=0, dtype=np.float64)
    centred = images - mean
    _, vectors = np.linalg.eigh(centred.T @ centred)
    basis = vectors[:, -count:]

    def project(x: Any) -> np.ndarray:
        return mean + (np.asarray(x, np.float64) - mean) @ basis @ basis.T

    return project


def noisy(key: Key, x: Any, sigma: float) -> Array:
    return x + sigma * jax.random.normal(key, x.shape, x.dtype)


def summed(found: Any, wanted: Any) -> Any:
    """Mean over images of Σ (found − wanted)² over pixels."""
    return ((found - wanted) ** 2).sum(axis=-1).mean()


def resized(network: Network, pixels: int) -> Network:
    """The same layers for images of another size: the last dense one gives as many outputs."""
    from bpeq.layers import dense

    parts = list(network.layer.parts)
    last = max(i for i, part in enumerate(parts) if part.name == "dense")
    parts[last] = dense(pixels)
    layer: Layer = chain(*parts)
    return network._replace(layer=layer, shape=(pixels,))


def draw(rows: dict[str, Any], codes: np.ndarray, labels: np.ndarray) -> Figure:
    """Images and what becomes of them, and the codes on their own two principal components."""
    figure = Figure(figsize=(11, 5), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    side = int(next(iter(rows.values())).shape[-1] ** 0.5)
    cells = left.subplots(len(rows), 10)
    for line, (name, images) in zip(cells, rows.items(), strict=True):
        for axes, image in zip(line, np.asarray(images), strict=True):
            axes.imshow(image.reshape(side, side), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        line[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    centred = codes - codes.mean(axis=0)
    _, vectors = np.linalg.eigh(centred.T @ centred)
    place = centred @ vectors[:, :-3:-1]
    axes = right.subplots()
    for digit in range(10):
        own = place[labels == digit][:200]
        axes.scatter(*own.T, s=5, color=CLASSES[digit], lw=0)
        axes.text(
            *place[labels == digit].mean(axis=0), str(digit), fontsize=14, weight="bold",
            color=CLASSES[digit], ha="center", va="center",
            bbox={"facecolor": "white", "alpha": 0.75, "lw": 0, "pad": 1},
        )  # fmt: skip
    axes.set(xlabel="first principal component of the codes", ylabel="second")
    axes.set_title("codes of test images, each digit's mean", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
