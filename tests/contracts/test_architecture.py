"""The rooms and their order, the light import, and what no file may contain."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import bpeq
from bpeq.config.registry import KINDS

SOURCE = Path(bpeq.__file__).parent
ROOMS = [
    ("settings", "ranges that settings are annotated with"),
    ("types", "the words: layer, cost, system, solver, rule, estimate"),
    ("core", "trees, numerics, sharding, tracing: what everything stands on"),
    ("costs", "costs with written errors"),
    ("layers", "hand-written forward and backward pairs, and their combinators"),
    ("solvers", "fixed_steps, fixed_point, anderson"),
    ("data", "built-in data, files, arrays"),
    ("systems", "hopfield, predictive, resistive, from_energy, from_field; devices"),
    ("rules", "one rule, one file"),
    ("training", "loops, optimizers, schedules, data-parallel, evaluation"),
    (
        "analysis",
        "gradient fidelity, bias order, equilibrium, GDU, cost, energy contract, locality",
    ),
    ("runs", "the run folder: files, lock, manifest, metrics log, checkpoints; knows no config"),
    ("report", "tables, plots, pages; reads run folders only"),
    ("config", "registry, schema, overrides: TOML to checked settings, and settings to parts"),
    ("experiment", "what a command does: train, study, resume, verify, compare, tune, sweep, ..."),
    ("cli", "commands, exit codes, terminal, signals"),
]
"""Each room imports only from rooms above it in this list. CONTRIBUTING prints the same list."""
FACES = {"__init__", "__main__", "optimizers", "sharding", "shards"}
"""Modules beside the rooms: they hand out what the rooms hold."""
PLACE = {name: i for i, (name, _) in enumerate(ROOMS)}
FILES = sorted(SOURCE.rglob("*.py"))


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_modules(path: Path) -> set[str]:
    """The dotted names below `bpeq` that a file imports, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "bpeq":
            base = node.module.removeprefix("bpeq").lstrip(".")
            found |= {f"{base}.{alias.name}".lstrip(".") for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name[5:] for a in node.names if a.name.startswith("bpeq.")}
    return found


def test_rooms_are_those_of_the_list():
    found = {room(path) for path in FILES} - FACES
    assert found == set(PLACE)
    packages = [path for path in SOURCE.iterdir() if path.is_dir() and path.name != "__pycache__"]
    assert len(packages) <= 13
    assert len(list(SOURCE.glob("*.py"))) <= 8


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_go_to_rooms_above(path):
    own = room(path)
    if own in FACES:
        return
    others = {name.split(".")[0] for name in imported_modules(path)} - {own}
    assert not others & FACES, "a face is for users; the library imports the room itself"
    assert {name for name in others if PLACE[name] > PLACE[own]} == set()


def test_no_circle_of_modules():
    names = {path: ".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in FILES}
    names = {path: name.removesuffix(".__init__") for path, name in names.items()}
    known = set(names.values())

    def module_of(dotted: str) -> str | None:
        while dotted and dotted not in known:
            dotted = dotted.rpartition(".")[0]
        return dotted or None

    arrows = {
        name: {module_of(other) for other in imported_modules(path)} - {None, name}
        for path, name in names.items()
        if name != "__init__"
    }
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(arrows.get(name, ())):
                walk(other, (*way, name))
            done.add(name)

    for name in sorted(arrows):
        walk(name, ())


def test_contributing_prints_the_rooms():
    text = (SOURCE.parents[1] / "CONTRIBUTING.md").read_text()
    listed = "\n".join(f"{name:<11} {words}" for name, words in ROOMS)
    assert listed in text


@pytest.mark.parametrize(
    "module", ["bpeq", "bpeq.layers", "bpeq.rules", "bpeq.systems", "bpeq.training.loops"]
)
def test_library_import_loads_none_of_the_upper_rooms_packages(module):
    heavy = ["pydantic", "typer", "rich", "matplotlib", "sklearn", "pooch", "jinja2"]
    code = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_backward_uses_autodiff():
    for path in (SOURCE / "layers").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and node.name == "backward":
                text = ast.unparse(node)
                for word in ("jax.grad", "jax.vjp", "value_and_grad", "linear_transpose"):
                    assert word not in text, f"{path.name}: {word} in a backward"


def test_library_code_neither_prints_nor_touches_files():
    below = set(list(PLACE)[: PLACE["runs"]]) - {"data"}
    for path in FILES:
        if room(path) in below:
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            names = {ast.unparse(call.func) for call in calls}
            assert not names & {"print", "open", "Path"}, path


def test_modules_stay_small():
    """A module is as long as its idea: few are long, and a very long one has several ideas."""
    sizes = {p: len(p.read_text().splitlines()) for p in FILES}
    assert {p.name: n for p, n in sizes.items() if n > 380} == {}
    assert sum(n > 300 for n in sizes.values()) < len(sizes) / 5


def test_no_function_shares_its_name_with_a_room():
    names = {name for table in KINDS.values() for name in table} | set(bpeq._FUNCTIONS)
    assert not names & {room(path) for path in FILES}


def test_dir_and_all_of_the_face_resolve():
    for name in bpeq.__all__:
        assert getattr(bpeq, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        bpeq.nonsense  # noqa: B018


def test_the_old_name_of_sharding_still_works_and_warns():
    code = "import bpeq.shards, bpeq.sharding; print(bpeq.shards.mean is bpeq.sharding.mean)"
    command = [sys.executable, "-W", "default", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
    assert "DeprecationWarning" in done.stderr


def test_the_list_of_slow_tests_names_tests_that_there_are():
    tests = SOURCE.parents[1] / "tests"
    names = (tests / "slow.txt").read_text().splitlines()
    for line in (line for line in names if line and not line.startswith("#")):
        path, _, test = line.partition("::")
        function = test.partition("[")[0]
        assert f"def {function}(" in (tests.parent / path).read_text(), line
