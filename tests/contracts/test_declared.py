"""Every package that recmtl imports is declared in pyproject.toml, and every declared one is imported."""

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
# One of these two installs the module, by device; neither can be an ordinary dependency.
FBGEMM = {"fbgemm-gpu", "fbgemm-gpu-cpu"}


def normalised(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(requirements: list[str]) -> set[str]:
    return {normalised(re.match(r"[A-Za-z0-9._-]+", requirement)[0]) for requirement in requirements}


def imports(source: str) -> Iterator[tuple[str, bool, int]]:
    """Each top-level package that a module imports, whether the import is inside a ``try`` or a function, the line."""

    def walk(node: ast.AST, guarded: bool) -> Iterator[tuple[str, bool, int]]:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name.partition(".")[0], guarded, node.lineno
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield (node.module or "").partition(".")[0], guarded, node.lineno
        for child in ast.iter_child_nodes(node):
            yield from walk(child, guarded or isinstance(node, ast.Try | ast.FunctionDef | ast.AsyncFunctionDef))

    return walk(ast.parse(source), False)


@pytest.fixture(scope="module")
def found() -> list[tuple[str, str, bool]]:
    """Where each third-party package is imported, its name, and whether the import waits until it is needed."""
    return [
        (f"{path.relative_to(ROOT)}:{line}", name, guarded)
        for path in sorted((ROOT / "recmtl").rglob("*.py"))
        for name, guarded, line in imports(path.read_text())
        if name not in sys.stdlib_module_names and name not in {"recmtl", "__future__"}
    ]


@pytest.fixture(scope="module")
def owners() -> dict[str, set[str]]:
    """An import's name to the distributions that install it."""
    return {name: set(map(normalised, dists)) for name, dists in packages_distributions().items()}


def test_whatever_is_imported_is_declared(found, owners):
    always = declared(PROJECT["dependencies"]) | FBGEMM
    needed_here = always | declared(EXTRAS["cuda"] + EXTRAS["onnx"])
    lacking = {
        where: name
        for where, name, waits in found
        if not owners.get(name, {normalised(name)}) & (needed_here if waits else always)
    }
    assert lacking == {}


def test_whatever_is_declared_is_imported(found, owners):
    used = {owner for _, name, _ in found for owner in owners.get(name, {normalised(name)})}
    assert declared(PROJECT["dependencies"]) - used == set()


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import torch.nn as nn", [("torch", False, 1)]),
        ("from numpy.linalg import norm", [("numpy", False, 1)]),
        ("from . import near", []),
        ("def f():\n    import onnx", [("onnx", True, 2)]),
        ("try:\n    import onnx\nexcept ImportError:\n    pass", [("onnx", True, 2)]),
    ],
)
def test_an_import_is_found_wherever_it_stands(source, expected):
    assert list(imports(source)) == expected
