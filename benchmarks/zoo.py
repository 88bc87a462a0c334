"""Does every algorithm beat its start? From the raw logs of two suites to the pages of the docs.

    python -m benchmarks.compare --suite zoo-rates      # four learning rates for each, on SlotFilling
    python -m benchmarks.zoo rates runs/zoo-rates --write
    python -m benchmarks.compare --suite zoo            # the best of them, on two other environments
    python -m benchmarks.zoo results runs/zoo --write

    python -m benchmarks.zoo clones --write             # `bc` has no rewards: checkpoints against untrained networks

The first writes `docs/benchmarks/rates.json`, which a test holds against the suite's literal rates; the second
`docs/benchmarks/zoo.md` with a figure and the numbers beside it, and the section *Results* of every algorithm's page;
the third that of `bc`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import matplotlib
import numpy as np
import torch
import tyro
from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from algos.policies.embedded import new_model
from algos.policies.load import load_policy, make_policy
from benchmarks import pretrain, provenance, results, stats
from benchmarks.command import guarded
from benchmarks.pages import put, source, table
from benchmarks.results import Evaluation, Results, Row
from benchmarks.stats import Interval
from benchmarks.suites import Entry
from convgym.errors import ConfigError

DOCS = Path(__file__).resolve().parents[1] / "docs"
RATES, PAGE, ALGORITHMS = DOCS / "benchmarks/rates.json", DOCS / "benchmarks/zoo.md", DOCS / "algorithms"
RESULTS = ("<!-- results:begin -->", "<!-- results:end -->")
RATES_TABLE = ("<!-- rates:begin -->", "<!-- rates:end -->")
ALPHA = 0.05
NEAR = 0.9  # a rate is near the best if its area reaches this share of it


@dataclass(frozen=True)
class Gain:
    """What training changed for one entry in one environment, on the same held-out conversations before and after.

    Attributes:
        start, final: Mean return before and after, over the runs.
        gain: 95 % t interval of the return's change over the runs, which are paired by seed.
        success: The same of the share of successes; `greedy`: of the return under greedy decoding.
        checkpoints: 95 % t interval of the gain over the means of the starting checkpoints: what it says of others.
        p_holm: Two-sided p of the gain, corrected by Holm over all entries and environments of the suite.
        runs: Runs that came to their end, or diverged: those earn 0 after training.
    """

    env: str
    entry: str
    start: float
    final: float
    gain: Interval
    success: Interval
    greedy: Interval
    checkpoints: Interval
    p_holm: float
    runs: int

    @property
    def verdict(self) -> str:
        """`yes`, if the interval is above 0; `yes, corrected`, if also among so many; `no`, `worse`, or `?`."""
        if self.runs < 2:
            return "?"
        if self.gain.high < 0:
            return "worse"
        if not self.gain.low > 0:
            return "no"
        return "yes, corrected" if self.p_holm < ALPHA else "yes"


def gains(found: Results) -> list[Gain]:
    """Every entry in every environment, in the suite's order."""
    cells = [(env, entry, [_ended(row) for row in found.of(env.id, entry.name) if row.done or row.diverged])
             for entry in found.suite.entries for env in found.suite.envs]  # fmt: skip
    tests = [stats.paired_t_test([_differences(rows, "final", "start", "episode_return")]) for *_, rows in cells]
    adjusted = stats.holm([test.p for test in tests])
    return [
        Gain(
            env=env.id,
            entry=entry.name,
            start=float(np.mean([row.start.episode_return for row in rows])) if rows else np.nan,
            final=float(np.mean([row.final.episode_return for row in rows])) if rows else np.nan,
            gain=stats.t_interval([_differences(rows, "final", "start", "episode_return")]),
            success=stats.t_interval([_differences(rows, "final", "start", "success")], bounds=(-1.0, 1.0)),
            greedy=stats.t_interval([_differences(rows, "final_greedy", "start_greedy", "episode_return")]),
            checkpoints=stats.t_interval([_by_checkpoint(found, rows)]),
            p_holm=float(p),
            runs=len(rows),
        )
        for (env, entry, rows), p in zip(cells, adjusted)
    ]


def _ended(row: Row) -> Row:
    """A run that diverged left no agent, and what is not there earns nothing."""
    nothing = Evaluation(episodes=row.start.episodes, success=0.0, episode_return=0.0)
    return dataclasses.replace(row, final=nothing, final_greedy=nothing) if row.diverged else row


def _by_checkpoint(found: Results, rows: Sequence[Row]) -> np.ndarray:
    """Mean gain of each starting checkpoint; seed s trains checkpoint s mod ``inits``."""
    inits = sorted({row.seed % found.suite.inits for row in rows})
    of = [[row for row in rows if row.seed % found.suite.inits == init] for init in inits]
    return np.array([_differences(some, "final", "start", "episode_return").mean() for some in of])


def _differences(rows: Sequence[Row], after: str, before: str, what: str) -> np.ndarray:
    return np.array([getattr(getattr(row, after), what) - getattr(getattr(row, before), what) for row in rows])


# ---------------------------------------------------------------------------------------------------- the pages


def signed(interval: Interval) -> str:
    """`+0.21 [+0.14, +0.28]`."""
    return f"{interval.estimate:+.2f} [{interval.low:+.2f}, {interval.high:+.2f}]"


def described(entry: Entry) -> str:
    """What the entry sets apart from its published defaults."""
    fields = {**entry.algo_fields, **entry.settings}
    return ", ".join(f"`{name}={value!r}`" for name, value in fields.items()).replace("'", '"') or "defaults"


def section(found: Results, algo: str, cells: Sequence[Gain]) -> str:
    """The section *Results* of an algorithm's page."""
    entries = {e.name: e for e in found.suite.entries if e.algo == algo and e.control == "none"}
    rows = [
        (c.entry, _short(found, c.env), f"{c.start:.2f}", f"{c.final:.2f}", signed(c.gain), signed(c.success),
         signed(c.greedy), str(c.runs), c.verdict)
        for c in cells if c.entry in entries
    ]  # fmt: skip
    budget = found.suite.settings
    settings = "; ".join(
        f"{name}: rate {e.learning_rate:g}, {described(e)}" for name, e in entries.items()
    )
    return "\n\n".join(
        (
            "## Results",
            f"`{budget['model']}`, {budget['updates']} updates of {budget['episodes_per_update']} conversations, the "
            f"same {budget['eval_episodes']} held-out ones before and after. Return at temperature 1; gains are means "
            "over seeds with 95 % intervals, of return, of success, and of return under greedy decoding.",
            table(
                ("entry", "environment", "start", "after", "gain", "success", "greedy", "runs", "above 0"), rows
            ),
            f"{settings}. All algorithms in one table, the protocol, and what the figures cannot say: "
            "[the zoo](../benchmarks/zoo.md).",
        )
    )


def overview(found: Results, cells: Sequence[Gain]) -> str:
    """The figures of the page of the whole zoo."""
    envs, entries = found.suite.envs, found.suite.entries
    of = {(c.entry, c.env): c for c in cells}
    rows = []
    for entry in entries:
        mine = [of[entry.name, env.id] for env in envs]
        link = f"[{entry.name}](../algorithms/{entry.algo}.md)" if entry.control == "none" else f"*{entry.name}*"
        figures = [x for c in mine for x in (f"{c.final:.2f}", signed(c.gain), signed(c.greedy), c.verdict)]
        rows.append((link, f"{entry.learning_rate:g}", described(entry), *figures))
    header = ["entry", "rate", "settings"]
    for env in envs:
        start = np.mean([of[e.name, env.id].start for e in entries])
        header += [f"{env.short}: after (start {start:.2f})", "gain", "greedy", "above 0"]
    competing = [e.name for e in entries if e.control == "none"]
    said = []
    for env in envs:
        mine = [of[name, env.id] for name in competing]
        below = [c.entry for c in mine if not c.verdict.startswith("yes")]
        said.append(
            f"- **{env.short}**: the interval of {len(mine) - len(below)} of {len(mine)} entries is above 0, "
            f"of {sum(c.verdict == 'yes, corrected' for c in mine)} also after Holm's correction; over checkpoints, of "
            f"{sum(c.checkpoints.low > 0 for c in mine)}." + (f" Not of {', '.join(below)}." if below else "")
        )
    budget = found.suite.settings
    return "\n\n".join(
        (
            f"{source(found.provenance)}. {found.suite.seeds} seeds; {budget['updates']} updates of "
            f"{budget['episodes_per_update']} conversations; {budget['eval_episodes']} held-out conversations.",
            "\n".join(said),
            "![Gains with intervals](zoo.svg)",
            table(header, rows),
        )
    )


def _short(found: Results, env: str) -> str:
    return next(e.short for e in found.suite.envs if e.id == env)


def draw(found: Results, cells: Sequence[Gain], path: Path) -> None:
    """One row an entry, one panel an environment: the gain with its interval; greedy as a hollow mark."""
    envs, names = found.suite.envs, [e.name for e in found.suite.entries]
    style: Any = {"svg.hashsalt": "convgym", "svg.fonttype": "none", "font.size": 8.0, "text.parse_math": False}
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(3.6 * len(envs) + 1.2, 0.2 * len(names) + 0.9), layout="constrained")
        panels = figure.subplots(1, len(envs), sharey=True, squeeze=False)[0]
        for axes, env in zip(panels, envs):
            mine = [next(c for c in cells if c.entry == name and c.env == env.id) for name in names]
            at = np.arange(len(mine))
            for c, y in zip(mine, at):
                colour = "#1b6e8c" if c.verdict.startswith("yes") else "#b0413e" if c.verdict == "worse" else "#777777"
                axes.plot([c.gain.low, c.gain.high], [y, y], color=colour, linewidth=1.6)
                axes.plot(c.gain.estimate, y, "o", color=colour, markersize=4)
            axes.plot([c.greedy.estimate for c in mine], at, "d", color="#444444", markersize=3.5, fillstyle="none")
            axes.axvline(0, color="#222222", linewidth=0.8)
            axes.set(title=env.short, xlabel="gain of return (diamond: greedy)", yticks=at, yticklabels=names)
            axes.grid(axis="x", alpha=0.3, linewidth=0.6)
        panels[0].invert_yaxis()
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


# ------------------------------------------------------------------------------------------------ learning rates


def areas(found: Results) -> dict[str, dict[float, float]]:
    """Entry -> learning rate -> mean area over environments and seeds; a run that diverged counts as 0.

    Raises:
        ConfigError: if a run is missing.
    """
    swept: dict[str, dict[float, float]] = {}
    for entry in found.suite.entries:
        scores = [score for env in found.scores(entry.name, "area") for score in env]
        if np.isnan(scores).any():
            raise ConfigError(f"{entry.name}: expected every run to be done; finish the comparison first.")
        swept.setdefault(entry.name.partition("@")[0], {})[entry.learning_rate] = float(np.mean(scores))
    return swept


def best(of: Mapping[float, float]) -> float:
    """The rate with the largest area; of equals the smallest."""
    return max(sorted(of), key=lambda rate: of[rate])


def rates_table(swept: Mapping[str, Mapping[float, float]]) -> str:
    """Areas by entry and rate, the best one in bold, and the share of rates near it."""
    rates = sorted({rate for of in swept.values() for rate in of})
    rows = []
    for name, of in swept.items():
        top = of[best(of)]
        near = np.mean([area >= NEAR * top for area in of.values()])
        rows.append((name, *(f"**{of[r]:.3f}**" if r == best(of) else f"{of[r]:.3f}" for r in rates), f"{near:.2f}"))
    return table(("entry", *(f"{rate:g}" for rate in rates), "near the best"), rows)


# ------------------------------------------------------------------------------------------------------- clones


def cloned(model: str, episodes: int = 256) -> dict[str, list[tuple[float, float]]]:
    """Held-out return before and after behaviour cloning, of every initialisation that ships.

    Args:
        model: Name of the embedded checkpoints.
        episodes: Held-out conversations of each environment.

    Returns:
        Environment -> (untrained network of the same initialisation, checkpoint) for each initialisation.
    """
    recipe = pretrain.RECIPES[model]
    found: dict[str, list[tuple[float, float]]] = {}
    for init, seed in enumerate(recipe.seeds):
        policy = load_policy(model, init=init)
        untrained = make_policy(new_model(model, policy.tokenizer, seed=seed), policy.tokenizer, name=model)
        before, after = (pretrain.start_success(p, recipe, episodes) for p in (untrained, policy))
        for env in recipe.envs:
            found.setdefault(env, []).append((before[env]["return"], after[env]["return"]))
    return found


def clone_section(found: Mapping[str, Sequence[tuple[float, float]]], model: str, here: Mapping[str, Any]) -> str:
    """The section *Results* of the page of behaviour cloning."""
    rows = []
    for env, pairs in found.items():
        before, after = np.array(pairs).T
        gain = stats.t_interval([after - before])
        short, beats = env.removeprefix("convgym/").removesuffix("-v0"), "yes" if gain.low > 0 else "no"
        rows.append((short, f"{before.mean():.2f}", f"{after.mean():.2f}", signed(gain), beats))
    count = len(next(iter(found.values())))
    return "\n\n".join(
        (
            "## Results",
            f"The shipped `{model}` against untrained networks of the same initialisations, return on held-out "
            f"conversations at temperature 1; 95 % intervals over {count} initialisations. The scripted clerks that it "
            "imitates have mixed skill; the recipe is `benchmarks/pretrain.py`.",
            table(("environment", "untrained", "cloned", "gain", "beats its start"), rows),
            f"`python -m benchmarks.zoo clones --write`: {source(here)}",
        )
    )


# --------------------------------------------------------------------------------------------------- the command


@dataclass(frozen=True)
class RatesOf:
    """The best learning rate of each entry of a sweep."""

    out: tyro.conf.Positional[Path]
    """Folder of the comparison."""
    write: bool = False
    """Write docs/benchmarks/rates.json and the table of docs/benchmarks/zoo.md."""


@dataclass(frozen=True)
class ResultsOf:
    """What every algorithm gained."""

    out: tyro.conf.Positional[Path]
    """Folder of the comparison."""
    write: bool = False
    """Write docs/benchmarks/zoo.md, zoo.json, zoo.svg and the section Results of every algorithm's page."""


@dataclass(frozen=True)
class ClonesOf:
    """What behaviour cloning gained."""

    model: str = "nano"
    """Embedded checkpoints."""
    episodes: int = 256
    """Held-out conversations of each environment."""
    write: bool = False
    """Write the section Results of docs/algorithms/bc.md."""


Command = (
    Annotated[RatesOf, tyro.conf.subcommand("rates")]
    | Annotated[ResultsOf, tyro.conf.subcommand("results")]
    | Annotated[ClonesOf, tyro.conf.subcommand("clones")]
)


def show_rates(options: RatesOf, console: Console) -> None:
    """Prints the sweep, and writes it if asked to."""
    found = results.load(options.out)
    swept = areas(found)
    text = f"{source(found.provenance)}.\n\n{rates_table(swept)}"
    console.print(Markdown(text))
    if options.write:
        chosen = {name: {"best": best(of), "areas": {f"{r:g}": a for r, a in of.items()}} for name, of in swept.items()}
        RATES.write_text(json.dumps({"provenance": found.provenance, "entries": chosen}, indent=1) + "\n", "utf-8")
        put(PAGE, text, RATES_TABLE)


def show_results(options: ResultsOf, console: Console) -> None:
    """Prints the gains, and writes the pages if asked to."""
    found = results.load(options.out)
    cells = gains(found)
    text = overview(found, cells)
    console.print(Markdown(text))
    if options.write:
        put(PAGE, text, RESULTS)
        plain = [results.plain(vars(c) | {"verdict": c.verdict}) for c in cells]
        beside = {"provenance": found.provenance, "suite": results.suite_to_json(found.suite), "gains": plain}
        PAGE.with_suffix(".json").write_text(json.dumps(beside, indent=1) + "\n", "utf-8")
        draw(found, cells, PAGE.with_suffix(".svg"))
        for algo in dict.fromkeys(e.algo for e in found.suite.entries if e.control == "none"):
            put(ALGORITHMS / f"{algo}.md", section(found, algo, cells), RESULTS)


def show_clones(options: ClonesOf, console: Console) -> None:
    """Measures the clones, prints what they gained, and writes it if asked to."""
    torch.set_num_threads(1)
    here = provenance.describe("python -m benchmarks.zoo clones")
    text = clone_section(cloned(options.model, options.episodes), options.model, here)
    console.print(Markdown(text))
    if options.write:
        put(ALGORITHMS / "bc.md", text, RESULTS)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command."""
    options: Any = tyro.cli(Command, args=arguments, prog="python -m benchmarks.zoo", description=__doc__)
    console = Console()
    if isinstance(options, RatesOf):
        show_rates(options, console)
    elif isinstance(options, ResultsOf):
        show_results(options, console)
    else:
        show_clones(options, console)


if __name__ == "__main__":
    sys.exit(guarded(main))
