"""The README's promises: its Python runs, its commands parse, its table lists what there is."""

import re
from pathlib import Path

import jax

from bpeq.config import loading
from bpeq.config.registry import KINDS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def test_the_library_example_runs_and_learns():
    code = re.search(r"```python\n(.*?)```", README, re.S).group(1)
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("import")]
    assert len([line for line in lines if not line.startswith("from")]) <= 12
    names = {}
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):  # as a user has it
        exec(compile(code, "README.md", "exec"), names)
    assert names["error"] < 0.06


def test_the_table_of_rules_is_the_registry():
    table = re.search(r"\| rule \|.*?\n\n", README, re.S).group(0)
    assert set(re.findall(r"^\| `(\w+)`", table, re.M)) == set(KINDS["rules"])


def test_every_config_named_in_the_readme_loads():
    names = set(re.findall(r"configs/\w+\.toml", README))
    assert len(names) >= 3
    for name in names:
        tree = loading.load_config(ROOT / name).as_dict()
        assert "experiment" in tree or tree["training"]["epochs"] >= 1


def test_the_make_targets_named_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w[\w-]*)", README):
        assert re.search(rf"^{target}:", makefile, re.M), target
