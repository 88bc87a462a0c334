"""Reports: complete, self-contained, safe against what agents and users say, and equal to the raw logs."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks import pool, report
from convgym.errors import ConfigError
from tests.benchmarks.conftest import CHAT, hand_made_suite

Make = Callable[..., Path]
VOID = {"meta", "br", "link", "img", "hr", "input"}
HOSTILE = [
    "<script>document.title='owned'</script>",
    "</svg></style></pre></div><script>document.title='owned'</script>",
    "\"><img src=x onerror=\"document.title='owned'\"> ' `${1}` {{ 7 * 7 }} {% raw %}",
    "see \u202egpj.exe\u202c \x00 \x1b[31m \ud800 &lt;b&gt;",
]


class Structure(HTMLParser):
    """Checks that tags nest, and collects tags, links and text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.wrong: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        if not self.open or self.open[-1] != tag:
            self.wrong.append(f"</{tag}> while open: {self.open[-3:]}")
        if tag in self.open:
            while self.open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parsed(page: str) -> Structure:
    structure = Structure()
    structure.feed(page)
    structure.close()
    assert structure.wrong == []
    assert structure.open == []
    return structure


def page_of(out: Path) -> str:
    made = report.build(out)
    report.write(made)
    return (out / "report.html").read_text("utf-8")


def hostile_chat() -> list[dict[str, str]]:
    roles = ("system", "user", "assistant", "tool")
    return [{"role": role, "content": text} for text in HOSTILE for role in roles] + [
        {"role": "<script>", "content": "x"}
    ]


def test_the_page_nests_and_needs_nothing_from_outside(comparison: Make) -> None:
    page = page_of(comparison())
    structure = parsed(page)
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & set(structure.tags)
    assert not re.findall(r"(?:https?:)?//\w", page)
    assert "url(" not in page.replace("url(#", "")
    for name, value in structure.attributes:
        assert not name.startswith("on")
        assert name not in ("href", "src", "xlink:href") or (value or "").startswith("#")
    ids = [value for name, value in structure.attributes if name == "id"]
    references = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", page))
    assert references <= set(ids)


def test_the_page_says_what_the_analysis_says(comparison: Make) -> None:
    out = comparison()
    text = " ".join(" ".join(parsed(page_of(out)).text).split())
    made = report.build(out)
    assert made.analysis.verdict in text
    for standing in made.analysis.standings:
        assert report.interval(standing.score) in text
    for check in made.analysis.checks:
        assert check.detail in text
    for note in made.analysis.notes:
        assert note in text
    assert "python -m benchmarks.compare --suite hand" in text
    assert "I am sorry. I have sent it again." in text


def test_a_hostile_transcript_is_only_text(comparison: Make) -> None:
    page = page_of(comparison(chat=hostile_chat()))
    structure = parsed(page)
    assert "script" not in structure.tags
    assert "img" not in structure.tags
    assert "<script>" not in page
    text = "".join(structure.text)
    for said in HOSTILE[:3]:
        assert said in text  # every character is there to be read
    for hidden in ("\u202e", "\x00", "\x1b"):
        assert hidden not in page
    assert "⟨U+202E⟩gpj.exe⟨U+202C⟩" in text
    assert "⟨U+D800⟩" in text


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs Debian's chromium")
def test_a_browser_runs_nothing_of_it(comparison: Make, tmp_path: Path) -> None:
    out = comparison(chat=hostile_chat())
    page_of(out)
    command = [
        "chromium",
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    dom = subprocess.run(
        [*command, "--dump-dom", (out / "report.html").as_uri()], capture_output=True, text=True, timeout=60
    ).stdout
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None
    assert title[1] == "hand: algorithms ranked on conversations"
    assert "</html>" in dom


def test_hostile_names_and_errors_are_only_text(comparison: Make) -> None:
    """A traceback can hold anything that a model wrote."""
    out = comparison()
    record = out / "runs" / "SlotFilling-v0" / "ppo" / "seed-0" / pool.RECORD
    error = {"type": "<i>Bad", "message": "</summary><script>x</script> | `\x1b[2J", "traceback": HOSTILE[1]}
    pool.write_json(record, {**pool.read_json(record), "status": "failed", "error": error})
    page = page_of(out)
    assert "script" not in parsed(page).tags
    markdown = (out / "report.md").read_text("utf-8")
    assert "<script>" not in markdown.replace("\\<", "")
    assert "\x1b" not in markdown
    shown = io.StringIO()
    assert report.show(report.build(out), Console(file=shown, width=200)) == 1  # a run is missing
    assert "\x1b" not in shown.getvalue()


def test_a_suite_without_a_finished_run_still_makes_a_page(comparison: Make) -> None:
    out = comparison()
    shutil.rmtree(out / "runs")
    (out / "provenance.json").unlink()
    text = " ".join(parsed(page_of(out)).text)
    assert "nothing to rank" in text
    assert "Runs that did not finish" in text


def test_one_seed_makes_a_page_without_intervals(comparison: Make) -> None:
    text = " ".join(parsed(page_of(comparison(suite=hand_made_suite(seeds=1)))).text)
    assert "No ranking: too few seeds" in text
    assert "nan" not in text.lower().split()


def test_conversations_are_of_one_scenario_and_of_the_best(comparison: Make) -> None:
    made = report.build(comparison())
    shown = report.conversations(made, "convgym/SlotFilling-v0", ["grpo", "ppo"])
    assert [(c["entry"], c["seed"], c["env_seed"], c["step"]) for c in shown] == [
        ("grpo", 0, 100, 20),
        ("grpo", 0, 101, 20),
    ]
    assert [c["before"]["success"] for c in shown] == [False, False]
    assert [c["after"]["success"] for c in shown] == [True, True]
    assert shown[0]["after"]["messages"] == CHAT


def test_json_and_csv_hold_every_run(comparison: Make) -> None:
    out = comparison()
    page_of(out)
    saved = json.loads((out / "results.json").read_text("utf-8"))
    assert len(saved["runs"]) == 32
    assert set(saved) == {"format", "suite", "oracle", "provenance", "runs", "analysis"}
    with (out / "results.csv").open(encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 32
    assert float(lines[0]["final_success"]) == saved["runs"][0]["final"]["success"]


def test_verify_finds_a_number_that_was_changed(comparison: Make) -> None:
    out = comparison()
    page_of(out)
    assert report.verify(out) == []
    saved = json.loads((out / "results.json").read_text("utf-8"))
    saved["runs"][3]["cpu_seconds"] = 1.0
    pool.write_json(out / "results.json", saved)
    assert report.verify(out) == ["runs"]
    assert report.main([str(out), "--verify"]) == 1


def test_the_readme_holds_the_commands_table(comparison: Make, tmp_path: Path) -> None:
    out = comparison()
    readme = tmp_path / "README.md"
    readme.write_text(f"# Title\n{report.BEGIN}\nold table\n{report.END}\nafter\n")
    assert report.main([str(out), "--readme", str(readme)]) == 0
    once = readme.read_text("utf-8")
    table = report.render("ranking.md.j2", report.build(out)).strip()
    assert once == f"# Title\n{report.BEGIN}\n{table}\n{report.END}\nafter\n"
    assert table in (out / "report.md").read_text("utf-8")
    report.main([str(out), "--readme", str(readme)])
    assert readme.read_text("utf-8") == once


@pytest.mark.parametrize("text", ["none", f"{report.BEGIN} only", f"{report.END}\n{report.BEGIN}"])
def test_a_readme_without_markers_is_refused_untouched(comparison: Make, tmp_path: Path, text: str) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(ConfigError, match="results:begin"):
        report.update_readme(readme, report.build(comparison()))
    assert readme.read_text() == text


def test_markdown_tables_have_a_cell_under_every_head(comparison: Make) -> None:
    out = comparison()
    page_of(out)
    rows: list[str] = []
    for line in [*(out / "report.md").read_text("utf-8").splitlines(), ""]:
        if line.startswith("|"):
            rows.append(line)
        elif rows:
            assert len({len(re.findall(r"(?<!\\)\|", row)) for row in rows}) == 1, rows
            assert len(rows) > 2
            rows = []


def test_the_terminal_shows_ranking_checks_and_verdict(comparison: Make) -> None:
    made, shown = report.build(comparison()), io.StringIO()
    assert report.show(made, Console(file=shown, width=200)) == 0
    text = shown.getvalue()
    assert made.analysis.verdict in text
    assert all(check.name in text for check in made.analysis.checks)
    assert text.index("grpo") < text.index("shuffled") < text.index("untrained start")


def test_filters() -> None:
    assert report.number(float("nan")) == "–"
    assert report.number(1234.5, 1) == "1,234.5"
    assert report.percent(1.7) == "100.00%"
    assert report.percent(float("nan")) == "0.00%"
    assert report.shown("a\nb\tc") == "a\nb\tc"
    assert report.shown("x" * 10, 4) == "xxxx … (6 more characters)"
    assert report.markdown_cell("a|b\n<c>") == "a\\|b \\<c\\>"
