"""The autoencoder study: its components against another library's, and its smoke setting."""

import json

import numpy as np
from sklearn.decomposition import PCA

import bpeq
from bpeq.registry import load_study


def test_principal_components_are_scikit_learns(studies):
    study = load_study("autoencoder/study.py", studies).__globals__
    images = bpeq.data.digits().x.reshape(-1, 64)
    train, test = images[:1000], images[1000:]
    model = PCA(n_components=16, svd_solver="full").fit(train.astype(np.float64))
    expected = model.inverse_transform(model.transform(test.astype(np.float64)))
    np.testing.assert_allclose(study["principal"](train, 16)(test), expected, atol=1e-10)


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
