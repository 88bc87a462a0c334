"""The README keeps its promises: its snippets run, its commands exist, its table is the benchmark's."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCED = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
SNIPPETS = [  # the snippets of a page build on one another, as a reader would run them
    pytest.param("\n".join(found), id=str(page.relative_to(ROOT)))
    for page in PAGES
    if (found := FENCED.findall(page.read_text("utf-8")))
]
SPOKEN = re.compile(
    r"(?:convgym (?:list|show|play|train|evaluate|compare)|python -m (?:benchmarks|algos)\.[\w.]+)[^\n`#|]*"
)
COMMANDS = sorted({found.strip() for page in PAGES for found in SPOKEN.findall(page.read_text("utf-8"))})


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippets_run(code: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = {
        target
        for page in PAGES
        for target in re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text("utf-8"), re.MULTILINE)
    }
    assert {"quick", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_links_lead_somewhere() -> None:
    broken = [
        (page.name, target)
        for page in PAGES
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text("utf-8"))
        if not (page.parent / target).exists()
    ]
    assert not broken


@pytest.mark.parametrize("command", COMMANDS)
def test_options_of_documented_commands_exist(command: str) -> None:
    """Each documented command knows its sub-command and its options; the values are not run here."""
    words = shlex.split(command.replace(".venv/bin/", ""))
    module = ["algos.cli", *words[1:2]] if words[0] == "convgym" else [words[2]]
    rest = words[2:] if words[0] == "convgym" else words[3:]
    text = subprocess.run([sys.executable, "-m", *module, "--help"], capture_output=True, text=True, cwd=ROOT)
    assert text.returncode == 0, text.stderr
    for option in (word for word in rest if word.startswith("--")):
        assert option in text.stdout, (command, option)


def test_list_and_show_print_what_the_readme_says() -> None:
    listed = subprocess.run([sys.executable, "-m", "algos.cli", "list"], capture_output=True, text=True, cwd=ROOT)
    assert listed.returncode == 0 and "convgym/CustomerService-v0" in listed.stdout
    readme = (ROOT / "README.md").read_text("utf-8")
    command = re.search(r"`convgym (show [^`]+)`", readme)
    printed = re.search(r"```text\nsystem(.*?)```", readme, re.DOTALL)
    assert command is not None and printed is not None
    shown = subprocess.run(
        [sys.executable, "-m", "algos.cli", *shlex.split(command.group(1))],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert shown.returncode == 0, shown.stderr
    lines = [line.partition("  -> ")[0].strip() for line in printed.group(1).splitlines()[1:] if line.strip()]
    for line in lines:
        role, _, content = line.partition(" ")
        assert role in shown.stdout and content.partition("     ")[0].strip() in shown.stdout, line
