"""Mutants are what they say, and tests kill those that matter."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import mutation
from benchmarks.mutation import Mutant, Trial, mutants_of, page

MODULE = '''"""A docstring with 1 + 1."""

import torch


def share(x, mask, n=1):
    """Another one, x > 0."""
    total = torch.where(mask, x, 0.0).sum()  # ä: positions in a line are bytes
    return total / max(n - 1, 1)


def sign(x):
    if not x >= 0:
        raise ValueError("x" + "y")
    return min(x, 5) if x else -x
'''


@pytest.fixture
def mutants(tmp_path: Path) -> list[Mutant]:
    path = tmp_path / "module.py"
    path.write_text(MODULE, "utf-8")
    return mutants_of(path)


@pytest.mark.parametrize(
    ("function", "operator", "change"),
    [
        ("share", "mask", "torch.where(mask, x, 0.0)  ->  x"),
        ("share", "mask", "torch.where(mask, x, 0.0)  ->  0.0"),
        ("share", "arithmetic", "n - 1  ->  n + 1"),
        ("share", "arithmetic", "total / max(n - 1, 1)  ->  total * max(n - 1, 1)"),
        ("share", "constant", "1  ->  0"),
        ("share", "constant", "1  ->  0 (3)"),
        ("sign", "comparison", "x >= 0  ->  x > 0"),
        ("sign", "comparison", "x >= 0  ->  x < 0"),
        ("sign", "sign", "not x >= 0  ->  x >= 0"),
        ("sign", "constant", "5  ->  6"),
        ("sign", "condition", "min(x, 5) if x else -x  ->  -x"),
    ],
)
def test_one_thing_is_changed(mutants: list[Mutant], function: str, operator: str, change: str) -> None:
    (mutant,) = (m for m in mutants if m.key == f"module.py:{function}: {change}")
    assert mutant.operator == operator
    before, after = MODULE.splitlines(), mutant.source.splitlines()
    assert len(before) == len(after)
    assert [i + 1 for i, (a, b) in enumerate(zip(before, after)) if a != b] == [mutant.line]


def test_every_mutant_is_a_program_with_a_name_of_its_own(mutants: list[Mutant]) -> None:
    assert len({m.key for m in mutants}) == len(mutants)
    for mutant in mutants:
        compile(mutant.source, "module.py", "exec")
        assert mutant.source != MODULE


def test_words_are_left_alone(mutants: list[Mutant]) -> None:
    """Docstrings, imports and messages of errors compute nothing."""
    lines = MODULE.splitlines()
    for mutant in mutants:
        assert not any(word in lines[mutant.line - 1] for word in ("docstring", "Another", "raise", "import"))


def test_keys_do_not_depend_on_the_line(tmp_path: Path, mutants: list[Mutant]) -> None:
    path = tmp_path / "module.py"
    path.write_text(MODULE.replace("import torch", "import torch\n\n# a comment"), "utf-8")
    assert [m.key for m in mutants_of(path)] == [m.key for m in mutants]


def test_the_page_tells_holes_from_mutants_that_compute_the_same(mutants: list[Mutant]) -> None:
    dead, same, hole = mutants[:3]
    trials = [Trial(dead, "killed", 1.0), Trial(same, "survived", 9.0), Trial(hole, "survived", 9.0)]
    text = page(trials, {same.key: "because of a reason"}, "the command", "The machine.")
    assert "**1 of 3 are killed (33.3%); of those that compute something else, 1 of 2.**" in text
    assert "| `module.py` | 3 | 1 | 1 | 1 |" in text
    assert all(said in text for said in ("The machine.", "because of a reason", "the command"))
    assert text.index("because of a reason") < text.index("## Holes")
    assert "## Holes" not in page(trials[:2], {same.key: "because of a reason"}, "the command", "")


def test_the_published_run_is_of_this_code_and_killed_nearly_all() -> None:
    record = json.loads(mutation.RECORD.read_text("utf-8"))
    paths = list((mutation.ROOT / mutation.MATHS).glob("*.py"))
    bodies = {name: body for path in paths for name, body in mutation.bodies_of(path).items()}
    now = [m for path in paths for m in mutants_of(path)]
    known = [m.key for m in now if record["bodies"].get(f"{m.file}:{m.function}") == bodies[f"{m.file}:{m.function}"]]
    assert len(known) >= 0.9 * len(now), "much has changed: run `python -m benchmarks.mutation --again --write`"
    survivors = [key for key in known if record["outcomes"][key] == "survived"]
    assert len(survivors) <= 0.05 * len(known)
    explained = json.loads(mutation.SURVIVORS.read_text("utf-8"))
    assert not [key for key in survivors if key not in explained]


def test_a_body_is_what_is_computed(tmp_path: Path) -> None:
    path = tmp_path / "module.py"

    def bodies(text: str) -> dict[str, str]:
        path.write_text(text, "utf-8")
        return mutation.bodies_of(path)

    before = bodies(MODULE)
    assert before.keys() == {"module.py:share", "module.py:sign"}
    same = MODULE.replace("Another one", "Yet another").replace("(x, mask", "(x: float, mask").replace("  # ä", "  # ö")
    assert same != MODULE and bodies(same) == before
    for old, new in (("n=1", "n=2"), ("n - 1, 1", "n - 1, 2"), ("where(mask", "where(~mask")):
        other = bodies(MODULE.replace(old, new))
        assert [name for name in before if other[name] != before[name]] == ["module.py:share"]


def test_explanations_are_of_mutants_that_exist() -> None:
    explained = json.loads(mutation.SURVIVORS.read_text("utf-8"))
    keys = {m.key for p in (mutation.ROOT / mutation.MATHS).glob("*.py") for m in mutants_of(p)}
    assert set(explained) <= keys


SCRIPT = """
from benchmarks.mutation import MATHS, ROOT, Nursery, mutants_of, run
mutants = {m.key: m for m in mutants_of(ROOT / MATHS / "kl.py")}
wrong = mutants["kl.py:k2: d.square() / 2  ->  d.square() * 2"]
chosen = wrong, wrong._replace(source=(ROOT / MATHS / "kl.py").read_text())
with Nursery.opened(wider=()) as nursery:
    print([trial.outcome for trial in run(nursery, chosen, 2, lambda trial: None)])
"""


def test_a_wrong_formula_is_killed_and_the_right_one_survives() -> None:
    """In a process of its own, which has not imported the algorithms yet."""
    command = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(command, cwd=mutation.ROOT, capture_output=True, text=True, timeout=600)
    assert done.stdout.strip() == "['killed', 'survived']", done.stderr
