"""What does not fit a study is one line, before any step of it, and leaves no folder."""

import pytest


@pytest.mark.parametrize(
    ("name", "change", "line"),
    [
        ("control", "networks.actor.input=[3]", "the study's actor must take 4, not 3"),
        ("gan", "networks.digits_critic.input=[63]", "digits_critic must take 64, not 63"),
        ("sequence", "networks.gru.layers.1.features=2", "the study's gru must give 1, not 2"),
        ("sequence", "study.lengths=[]", "--set study.lengths = []: must be one or more"),
        ("sequence", "study.learning_rate=1", "study.learning_rate = 1: unknown key"),
        ("depth", "study.depths=[]", "--set study.depths = []: must be one or more"),
        ("depth", "data.name=diabetes", "--set data.name = 'diabetes': is no classification"),
        ("depth", "networks.relu.layers.4.features=3", "the study's relu must give 10, not 3"),
        ("autoencoder", "data.name=digits", "must take 64, not 784"),
        ("autoencoder", "study.code=7", "--set study.code = 7: must be 1 to 6, of 7 layers"),
        ("autoencoder", "training.batch_size=2000", "must be 1 to 1438, the training set"),
        ("language", "networks.text.tokens=50", "the study's text must give any × 50, not 64"),
        ("language", "networks.copy.input=[1]", "must be 2 tokens or more"),
        ("vision", "study.digits=no.toml", "no.toml: cannot read the config"),
    ],
)
def test_what_does_not_fit_is_told_at_once(call, studies, tmp_path, name, change, line):
    small = {"depth": "data.name=digits", "autoencoder": "study.smoke=true"}.get(name, "seed=0")
    small = "seed=0" if change == "data.name=digits" else small  # as it is without smoke
    said = call(
        *("run", studies.parent / "configs" / f"{name}.toml", "--out", tmp_path / "out"),
        *("--set", small, "--set", change),
    )
    assert (said.code, len(said.err)) == (2, 1)
    assert line in said.err[0]
    assert not (tmp_path / "out").exists()
