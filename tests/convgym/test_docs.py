"""The examples in docstrings run, and every environment has a page."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil
import re
import runpy
from pathlib import Path

import pytest

import convgym
from convgym import wrappers
from tests.convgym.play import IDS, bare

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(m.name for m in pkgutil.walk_packages(convgym.__path__, "convgym."))
HEADINGS = (
    "Description", "Observation", "Action", "Tools", "Reward", "Episode end", "Difficulty", "Splits", "Audit",
    "Version history",
)  # fmt: skip


@pytest.mark.parametrize("module", ["convgym", *MODULES])
def test_examples_run(module):
    assert doctest.testmod(importlib.import_module(module)).failed == 0


def test_there_are_examples():
    assert sum(doctest.testmod(importlib.import_module(module)).attempted for module in MODULES) >= 8


def test_an_environments_docstring_is_its_page(env_id):
    lines = inspect.getdoc(type(bare(env_id))).splitlines()
    assert [line.removesuffix(":") for line in lines if line.removesuffix(":") in HEADINGS] == list(HEADINGS)


def test_the_generated_pages_are_up_to_date():
    """`make docs` after a change of a scenario's docstring."""
    page = runpy.run_path(str(ROOT / "docs" / "generate.py"))["page"]
    for env_id in IDS:
        name = env_id.removeprefix("convgym/").removesuffix("-v0")
        written = (ROOT / "docs" / "scenarios" / f"{name}.md").read_text("utf-8")
        assert written == page(env_id), f"docs/scenarios/{name}.md is stale: run `make docs`"


def test_the_pages_name_every_wrapper():
    concepts = ROOT / "docs" / "concepts"
    text = "".join((concepts / page).read_text("utf-8") for page in ("rewards.md", "environments.md"))
    assert [name for name in wrappers.__all__ if not re.search(rf"\b{name}[`(]", text)] == []


TABLES = [
    ("concepts/environments", "recall"), ("concepts/rewards", "hackability"), ("guides/llm-users", "shift"),
    ("benchmarks/audit", "audited"),
]  # fmt: skip


@pytest.mark.parametrize(("page", "name"), TABLES)
def test_the_tables_in_the_docs_are_the_measured_ones(page, name):
    table = runpy.run_path(str(ROOT / "docs" / "generate.py"))[name]()
    text = (ROOT / "docs" / f"{page}.md").read_text("utf-8")
    assert f"<!-- {name} -->\n{table}\n<!-- /{name} -->" in text, "stale: run `make docs`"


def test_the_gallery_is_what_is_said():
    written = (ROOT / "docs" / "gallery.md").read_text("utf-8")
    assert written == runpy.run_path(str(ROOT / "docs" / "generate.py"))["gallery"](), "stale: run `make docs`"


def test_the_table_of_the_algorithms_is_that_of_their_pages_and_of_what_was_measured():
    written = (ROOT / "docs" / "algorithms" / "README.md").read_text("utf-8")
    assert written == runpy.run_path(str(ROOT / "docs" / "generate.py"))["algorithms"](), "stale: run `make docs`"
    rows = [line.split(" | ") for line in written.splitlines() if line.startswith("| [")]
    assert len(rows) == 25 and all(len(row) == 7 and len(row[1]) > 20 for row in rows)
