"""The house: imports go one way, nothing draws from process-wide generators, modules say what they are."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("convgym", "algos", "benchmarks")  # from the bottom to the top: each may import those before it
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
# The command line is the door to the whole house: `convgym compare` hands over to the benchmark.
DOORS = {("algos/cli.py", "benchmarks.compare")}
TEXT_ONLY = frozenset({"numpy", "gymnasium", "pydantic", "yaml", "convgym"})  # what convgym may import
# The one module that talks to a network; it imports these when somebody asks for it (the extra `llm`).
REMOTE = {"convgym/remote.py": frozenset({"openai", "tenacity", "pybreaker"})}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """Yields ``(module, line)`` of every import, those in functions and of ``import_module`` included."""
    package = path.relative_to(ROOT).parts[:-1]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            yield ".".join(filter(None, (base, node.module))), node.lineno
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            yield from ((str(arg.value), node.lineno) for arg in node.args[:1] if isinstance(arg, ast.Constant))


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_go_one_way(path):
    own = PACKAGES.index(path.relative_to(ROOT).parts[0])
    above = {*PACKAGES[own + 1 :], "tests"}
    wrong = [
        f"{name(path)}:{line} imports {module}"
        for module, line in imports(path)
        if module.split(".")[0] in above and (name(path), module) not in DOORS
    ]
    assert wrong == []


def test_doors_open_when_they_are_used():
    """Importing a door loads nothing from above: its import stands inside a function."""
    for path, module in DOORS:
        top = [node for node in tree(ROOT / path).body if isinstance(node, ast.Import | ast.ImportFrom)]
        assert not any(module.split(".")[0] in ast.unparse(node) for node in top)


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "convgym")], ids=name)
def test_convgym_speaks_text_only(path):
    allowed = TEXT_ONLY | sys.stdlib_module_names | REMOTE.get(name(path), frozenset())
    wrong = [
        f"{name(path)}:{line} imports {module}" for module, line in imports(path) if module.split(".")[0] not in allowed
    ]
    assert wrong == []


def test_algorithms_know_the_head_of_their_family_and_no_sibling():
    """A relative is what it changes in `clipped`, `grpo` or `ppo`; what else two share lives in algos/maths."""
    heads = {"algos.clipped", "algos.grpo", "algos.ppo"}
    zoo = {f"algos.{path.stem}" for path in (ROOT / "algos").glob("*.py")} - {
        "algos.__init__", "algos.base", "algos.cli", "algos.checks",
    }  # fmt: skip
    for module in zoo:
        path = ROOT / f"{module.replace('.', '/')}.py"
        others = set() if module in heads else heads
        assert not {imported for imported, _ in imports(path)} & (zoo - {module} - others), module


# -- process-wide generators -------------------------------------------------------------------------

# What makes a generator of one's own, and what reads the common one (to test that it stays untouched).
OWN = {
    "random": {"Random", "SystemRandom"},
    "numpy.random": {
        "Generator",
        "SeedSequence",
        "BitGenerator",
        "PCG64",
        "PCG64DXSM",
        "Philox",
        "SFC64",
        "default_rng",
    },
}
STATE = {"random": {"getstate", "setstate"}, "numpy.random": {"get_state", "set_state"}}


def global_draws(path: Path, legal: dict[str, set[str]]) -> list[str]:
    """Finds uses of ``random`` and ``numpy.random`` functions that draw from, or seed, a shared generator."""
    aliases: dict[str, str] = {}
    found = []
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                aliases[alias.asname or alias.name.split(".")[0]] = (
                    alias.name if alias.asname else alias.name.split(".")[0]
                )
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                aliases[alias.asname or alias.name] = full
                if node.module in legal and alias.name not in legal[node.module]:
                    found.append(f"{name(path)}:{node.lineno} {full}")
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.Attribute):
            continue
        head, *rest = ast.unparse(node).split(".")
        module, _, function = ".".join([aliases.get(head, ""), *rest]).rpartition(".")
        if module in legal and function not in legal[module] and not function.startswith("_"):
            found.append(f"{name(path)}:{node.lineno} {module}.{function}")
    return found


@pytest.mark.parametrize("path", [*MODULES, *TESTS], ids=name)
def test_nothing_draws_from_a_process_wide_generator(path):
    legal = {key: OWN[key] | STATE[key] for key in OWN}
    assert global_draws(path, legal) == []


@pytest.mark.parametrize(
    ("code", "count"),
    [
        ("import random\nrandom.random()", 1),
        ("import random as r\nr.seed(3)\nr.shuffle([])", 2),
        ("from random import choice", 1),
        ("import numpy as np\nnp.random.rand(3)\nnp.random.seed(1)", 2),
        ("import numpy.random as npr\nnpr.normal()", 1),
        ("from numpy import random\nrandom.normal()", 1),
        ("from numpy.random import normal, default_rng", 1),
        ("import random, numpy as np\nrandom.Random(3).random()\nnp.random.default_rng(1).normal()", 0),
        ("from random import Random\nRandom(1).random()\nrng = Random(2)\nrng.shuffle([])", 0),
    ],
)
def test_the_search_itself_finds_what_it_should(code, count, tmp_path, monkeypatch):
    path = tmp_path / "module.py"
    path.write_text(code, "utf-8")
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert len(global_draws(path, OWN)) == count


# -- what a reader meets first -----------------------------------------------------------------------


@pytest.mark.parametrize("path", [p for p in MODULES if p.read_text("utf-8").strip()], ids=name)
def test_every_module_says_what_it_is(path):
    assert ast.get_docstring(tree(path)), f"{name(path)} has no docstring"


@pytest.mark.parametrize("path", [p for p in MODULES if p.is_relative_to(ROOT / "convgym")], ids=name)
def test_public_names_are_documented(path):
    for node in tree(path).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            if node.name.endswith("Arguments"):
                continue  # argument models: their fields are described to the agent
            assert ast.get_docstring(node), f"{name(path)}: {node.name} has no docstring"
