"""The lower bounds of pyproject.toml, and the two files of exact versions beside it."""

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LIBRARY = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
DEVELOPERS = [
    line for line in PROJECT["optional-dependencies"]["dev"] if not line.startswith("bpeq")
]


def lower_bounds(lines: list[str]) -> dict[str, Version]:
    """Each requirement's name and version. It must have a lower bound and no other."""
    bounds = {}
    for requirement in map(Requirement, lines):
        (bound,) = requirement.specifier
        assert bound.operator == ">=", requirement
        bounds[canonicalize_name(requirement.name)] = Version(bound.version)
    return bounds


def pinned(name: str) -> dict[str, Version]:
    """The versions of a constraints file: lines `name==version`, so no addresses."""
    pairs = [line.split("==") for line in (ROOT / name).read_text().splitlines()]
    return {canonicalize_name(package): Version(version) for package, version in pairs}


def test_oldest_constraints_are_the_lower_bounds():
    oldest, bounds = pinned("constraints-oldest.txt"), lower_bounds(LIBRARY)
    assert {name: oldest.get(name) for name in bounds} == bounds


def test_constraints_satisfy_the_lower_bounds():
    newest = pinned("constraints.txt")
    for name, bound in lower_bounds(LIBRARY + DEVELOPERS).items():
        assert newest[name] >= bound, name


@pytest.mark.parametrize("name", ["constraints.txt", "constraints-oldest.txt"])
def test_each_package_is_pinned_once(name):
    lines = (ROOT / name).read_text().splitlines()
    assert len(pinned(name)) == len(lines)
