"""The autoencoder study: its components against another library's, and its smoke setting."""

import json

import jax
import numpy as np
import pytest
from sklearn.decomposition import PCA

import bpeq
from bpeq.config.loading import load_config
from bpeq.config.networks import Network
from bpeq.config.problem import seed_keys
from bpeq.config.registry import load_study
from bpeq.experiment.runner import Runner
from bpeq.layers import chain, dense


def test_principal_components_are_scikit_learns(studies):
    study = load_study("autoencoder/study.py", studies).__globals__
    images = bpeq.data.digits().x.reshape(-1, 64)
    train, test = images[:1000], images[1000:]
    model = PCA(n_components=16, svd_solver="full").fit(train.astype(np.float64))
    expected = model.inverse_transform(model.transform(test.astype(np.float64)))
    np.testing.assert_allclose(study["principal"](train, 16)(test), expected, atol=1e-10)


def test_an_epoch_descends_the_error_from_noisy_training_images_to_clean_ones(studies, tmp_path):
    study = load_study("autoencoder/study.py", studies).__globals__
    sets = ["training.epochs=1", "training.batch_size=6", "optimizer.name=sgd"]
    sets += ["optimizer.learning_rate=0.5", "schedule.name=constant"]
    config = load_config(studies.parent / "configs" / "autoencoder.toml", sets).without_study()
    network, keys = Network(chain(dense(2), dense(4)), (4,), None), seed_keys(0, 2)
    images = np.random.default_rng(0).random((9, 4))
    task = study["Task"](images, np.arange(3, 9), np.arange(3), 0.3)
    with jax.numpy_dtype_promotion("standard"):  # which optax needs
        params, test, train = study["fit"](
            config, Runner(tmp_path, "here"), network, task, keys, "denoise", 0.3
        )
    forward = lambda params, x: network.layer.forward(params, x)[0]  # noqa: E731
    error = lambda found, x: ((found - x) ** 2).sum(axis=1).mean()  # noqa: E731
    for seed in range(2):
        step_key = jax.random.split(jax.random.fold_in(keys[seed, 2], 0))[1]
        noise_key = jax.random.split(jax.random.fold_in(step_key, 0))[0]
        noise = 0.3 * jax.random.normal(noise_key, (6, 4))
        first = network.init(keys[seed, 0])
        cost = lambda p, e=noise: 0.5 * error(forward(p, images[3:] + e), images[3:])  # noqa: E731
        after = jax.tree.map(lambda p, g: p - 0.5 * g, first, jax.grad(cost)(first))
        own = jax.tree.map(lambda p, seed=seed: p[seed], params)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), own, after)
        np.testing.assert_allclose(train[seed], error(forward(own, images[3:]), images[3:]))
        noisy = study["noisy"](jax.random.key(1), images[:3], 0.3)
        assert 0.2 < np.std(noisy - images[:3]) < 0.4
        np.testing.assert_allclose(test[seed], error(forward(own, noisy), images[:3]))


@pytest.mark.long
def test_smoke(call, studies, tmp_path):
    """A linear code is never better than the components on what it was fitted to; a code of a noisy
    image is, even so early, nearer the clean one than what they make of it."""
    config = studies.parent / "configs" / "autoencoder.toml"
    said = call("run", config, "--seeds", 1, "--set", "study.smoke=true", "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, [])
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    mean = {name: metric["mean"] for name, metric in found.items()}
    assert mean["squared_error_linear_train"] > mean["pca_train"]
    assert mean["squared_error_denoise"] < mean["pca_denoise"]
    assert mean["squared_error_clean"] < mean["squared_error_denoise"]
    assert (tmp_path / "out" / "autoencoder.png").stat().st_size > 10_000
