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
SNIPPETS = [
    pytest.param(code, id=f"{page.relative_to(ROOT)}-{i}")
    for page in PAGES
    for i, code in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.MULTILINE | re.DOTALL))
]
COMMANDS = sorted(
    {
        found
        for page in PAGES
        for found in re.findall(r"(?:\.venv/bin/)?(?:convgym|python -m (?:benchmarks|algos)\.[\w.]+)(?= )[^\n`#]*", page.read_text("utf-8"))
    }
)


def test_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 120


@pytest.mark.parametrize("code", SNIPPETS)
def test_snippet_runs(code: str, tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = {target for page in PAGES for target in re.findall(r"\bmake ([a-z-]+)", page.read_text("utf-8"))}
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


def test_show_and_list_print_what_the_readme_says() -> None:
    listed = subprocess.run([sys.executable, "-m", "algos.cli", "list"], capture_output=True, text=True, cwd=ROOT)
    assert listed.returncode == 0 and "convgym/CustomerService-v0" in listed.stdout
    shown = subprocess.run(
        [sys.executable, "-m", "algos.cli", "show", "convgym/CustomerService-v0", "--agent", "oracle", "--seed", "3"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert shown.returncode == 0, shown.stderr
    conversation = re.search(r"```text\nsystem(.*?)->", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert conversation is not None
    for line in conversation.group(1).splitlines()[1:]:
        said = line[11:].split("   ")[0].strip()
        assert said in " ".join(shown.stdout.split()) or said in shown.stdout, said
