"""Writes the pages and tables that are made from the code: ``python docs/generate.py`` (or ``make docs``).

A page for each environment from its class docstring, and the measured tables between ``<!-- name -->`` and
``<!-- /name -->`` in the pages under ``concepts/``.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import gymnasium as gym

import algos
import convgym
from benchmarks import understanding
from convgym import agents
from convgym.registration import LIVE
from convgym.wrappers import (
    Clip,
    CostPenalty,
    Delay,
    Empathy,
    Format,
    LengthCost,
    Noise,
    Normalize,
    Politeness,
    ProgressShaping,
    Repetition,
    Scale,
    TerminalOnly,
    TurnCost,
)
from convgym.wrappers.hackability import CHEATS, measure

DOCS = Path(__file__).parent
AGENTS = ("oracle", "clerk", "greedy", "always-refuse", "silent")
EPISODES = 100
SHOWN = 4  # seed of the conversation that a page shows


def page(env_id: str) -> str:
    """Returns the page of an environment: docstring, an episode, and what scripted agents get."""
    entry_point, probes = convgym.ENVIRONMENTS[env_id]
    env = gym.make(env_id, render_mode="ansi")
    text = inspect.getdoc(type(env.unwrapped)) or ""
    summary, _, rest = text.partition("\n\n")
    name = env_id.removeprefix("convgym/").removesuffix("-v0")
    module, _, class_name = entry_point.partition(":")
    return "\n".join(
        (
            f"# {name}",
            "",
            "<!-- Made by docs/generate.py from the class docstring; change it there. -->",
            "",
            summary,
            "",
            f"| | |\n|---|---|\n| id | `{env_id}` |\n| probes | {probes} |\n"
            f"| code | `{module.replace('.', '/')}.py`, class `{class_name}` |",
            "",
            *_sections(rest),
            "## An episode",
            "",
            f"The oracle, seed {SHOWN}, default settings:",
            "",
            "```text",
            _episode(env),
            "```",
            "",
            "## Scripted agents",
            "",
            f"Share of verified successes over {EPISODES} episodes (seeds from 0, split `train`). "
            "`oracle` and `clerk` read the goal, and the clerk errs on purpose; the others read text.",
            "",
            _successes(env_id),
            "",
        )
    )


def _sections(text: str) -> list[str]:
    """Turns ``Heading:`` with an indented body into Markdown."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith(" "):
            lines.append(line.strip().replace("``", "`"))
        elif line:
            lines += ["", f"## {line.removesuffix(':')}", ""]
    return [*lines[1:], ""]


def _episode(env: gym.Env[str, str]) -> str:
    agent = agents.make("oracle", env)
    obs, info = env.reset(seed=SHOWN)
    agent.reset(obs, info)
    total = 0.0
    while "end_reason" not in info:
        obs, reward, _, _, info = env.step(agent.act(obs, info))
        total += float(reward)
    return f"{env.render()}\n\n{info['end_reason']}: success {info['success']}, return {total:g}"


def _successes(env_id: str) -> str:
    rows = []
    for name in AGENTS:
        shares = (_share(env_id, name, difficulty=difficulty) for difficulty in range(1, 6))
        rows.append((f"`{name}`", *shares))
    return table(("agent", *(f"difficulty {level}" for level in range(1, 6))), rows)


def _share(env_id: str, name: str, **settings: object) -> str:
    """The share of verified successes of a scripted agent over the first seeds."""
    env = gym.make(env_id, **settings)
    agent, won = agents.make(name, env), 0
    for seed in range(EPISODES):
        obs, info = env.reset(seed=seed)
        agent.reset(obs, info)
        while "end_reason" not in info:
            obs, _, _, _, info = env.step(agent.act(obs, info))
        won += bool(info["success"])
    return f"{won / EPISODES:.2f}"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


# -- tables in the concept pages ---------------------------------------------------------------------

WEIGHTED: tuple[tuple[str, Callable[[float, gym.Env], gym.Env], float], ...] = (
    # wrapper at weight w, its default weight
    ("Politeness(paid='always')", lambda w, env: Politeness(env, w, "always"), 0.1),
    ("Politeness()", lambda w, env: Politeness(env, w), 0.1),
    ("Empathy(paid='always')", lambda w, env: Empathy(env, w, "always"), 0.1),
    ("Empathy()", lambda w, env: Empathy(env, w), 0.1),
    ("Format()", lambda w, env: Format(env, w), 0.1),
    ("Repetition()", lambda w, env: Repetition(env, w), 0.1),
    ("TurnCost()", lambda w, env: TurnCost(env, w), 0.01),
    ("LengthCost()", lambda w, env: LengthCost(env, w), 0.001),
    ("CostPenalty()", lambda w, env: CostPenalty(env, w), 1.0),
    ("ProgressShaping()", lambda w, env: ProgressShaping(env, w), 1.0),
)
NEUTRAL: tuple[tuple[str, Callable[[gym.Env], gym.Env]], ...] = (
    # wrappers that move, scale or blur the reward, and pay for nothing of their own
    ("Clip()", Clip),
    ("Scale(0.5)", lambda env: Scale(env, 0.5)),
    ("Normalize()", Normalize),
    ("Noise(0.1)", lambda env: Noise(env, 0.1)),
    ("TerminalOnly()", TerminalOnly),
    ("Delay()", Delay),
)


def hackability(env_id: str = "convgym/CustomerService-v0", episodes: int = EPISODES) -> str:
    """Returns the table of what honest agents and cheats are paid by each wrapper."""
    rows = []
    for name, wrap, weight in WEIGHTED:
        got = {row.agent: row for row in measure(env_id, partial(wrap, weight), episodes=episodes)}
        oracle = got["oracle"]
        top = max(got[cheat].total for cheat in CHEATS)
        best = [cheat for cheat in CHEATS if got[cheat].total == top]
        gains = {c: (oracle.total - oracle.success) - (got[c].total - got[c].success) for c in CHEATS}
        turning = [weight * oracle.success / -gain for gain in gains.values() if gain < -1e-9]
        rows.append(
            (
                f"`{name}`",
                f"{weight:g}",
                *(f"{got[agent].total:.3f}" for agent in ("oracle", "courteous", "clerk")),
                f"{top + 0.0:.3f} ({f'`{best[0]}`' if len(best) == 1 else 'several'})",
                f"{got[best[0]].success:.2f}",
                f"{oracle.total - top:.3f}",
                f"{min(turning):.3g}" if turning else "none",
            )
        )
    for name, put in NEUTRAL:
        got = {row.agent: row for row in measure(env_id, put, episodes=episodes)}
        best = max(CHEATS, key=lambda cheat: got[cheat].total)
        rows.append(
            (
                f"`{name}`",
                "",
                *(f"{got[agent].total:.3f}" for agent in ("oracle", "courteous", "clerk")),
                f"{got[best].total + 0.0:.3f}",
                f"{got[best].success:.2f}",
                f"{got['oracle'].total - got[best].total:.3f}",
                "",
            )
        )
    head = (
        "wrapper",
        "weight",
        "oracle",
        "courteous",
        "clerk",
        "best cheat",
        "its success",
        "margin",
        "turns at",
    )
    return table(head, rows)


def recall() -> str:
    """Returns the table of how much of free phrasing is understood, in the seen and the unseen part."""
    lines = list(understanding.phrasings())
    parts = [understanding.measure([line for line in lines if line.unseen is unseen]) for unseen in (False, True)]
    head = ("act", "seen", "recall", "precision", "unseen", "recall", "precision")
    return table(head, [tuple(row) for row in understanding.rows(*parts)])


def shift() -> str:
    """Returns the table of what the stochastic family of users does to agents that read."""
    rows = []
    for env_id in [each.replace("LLM-v0", "-v0") for each in LIVE]:
        shares = [_share(env_id, name, user=user) for name in ("oracle", "greedy") for user in ("agenda", "stochastic")]
        rows.append((f"`{env_id.removeprefix('convgym/').removesuffix('-v0')}`", *shares))
    return table(("scenario", "oracle, agenda", "oracle, stochastic", "greedy, agenda", "greedy, stochastic"), rows)


# -- the suite at one glance -------------------------------------------------------------------------

AUDIT = DOCS / "benchmarks" / "audit.json"  # written by: convgym audit all --json
START = DOCS.parent / "algos" / "policies" / "tiny"
GALLERY_SEED = 11


def audited() -> str:
    """Returns the table of the last full audit: what experts and cheats get, and where the checkpoints start."""
    start = {name: _start(name) for name in ("nano", "mini")}
    rows = []
    for report in json.loads(AUDIT.read_text("utf-8")):
        found = {each["check"]: each for each in report["findings"]}
        cheats = {name: each for name, each in found.items() if name.startswith("exploiter:")}
        best = max(cheats, key=lambda name: cheats[name]["figure"])
        env_id = report["environment"]
        name = env_id.removeprefix("convgym/").removesuffix("-v0")
        breaches = sum(not each["ok"] for each in report["findings"])
        rows.append(
            (
                f"[{name}](../scenarios/{name}.md)",
                f"{found['oracle']['figure']:.2f}",
                " ".join(re.findall(r"\d: ([-\d.]+)", found["greedy"]["detail"])),
                f"{cheats[best]['figure']:.3f} (`{best.removeprefix('exploiter:')}`)",
                f"{cheats[best]['limit']:.2f}",
                f"{found['floor']['figure']:.2f}",
                *(start[model].get(env_id, "") for model in start),
                f"{len(report['findings'])}, {breaches or 'no'} breach{'es' * (breaches > 1)}",
                f"`{report['content']}`",
            )
        )
    head = (
        "environment", "oracle", "greedy, 1 to 5", "best exploiter", "its limit", "floor", "nano", "mini", "findings",
        "content",
    )  # fmt: skip
    return table(head, rows)


def _start(model: str) -> dict[str, str]:
    """Success of an embedded checkpoint before any training: the range over its initialisations."""
    shares: dict[str, list[float]] = {}
    for path in sorted(START.glob(f"{model}-*/pretrain.json")):
        for env_id, row in json.loads(path.read_text("utf-8"))["start"].items():
            shares.setdefault(env_id, []).append(row["success"])
    return {
        env_id: f"{min(found):.2f}" if len(found) == 1 else f"{min(found):.2f}–{max(found):.2f}"
        for env_id, found in shares.items()
    }


def gallery() -> str:
    """Returns one conversation of every environment, as it really went."""
    parts = [
        "# Gallery",
        "",
        "<!-- Made by docs/generate.py. -->",
        "",
        f"One conversation of every environment: the oracle on the training split, difficulty 2, seed {GALLERY_SEED}. "
        "`convgym show ID --agent oracle --seed N` shows others, `convgym play ID` lets you be the agent.",
        "",
    ]
    for env_id, (_, probes) in convgym.ENVIRONMENTS.items():
        name = env_id.removeprefix("convgym/").removesuffix("-v0")
        env = gym.make(env_id)
        agent = agents.make("oracle", env)
        obs, info = env.reset(seed=GALLERY_SEED)
        agent.reset(obs, info)
        total = 0.0
        while "end_reason" not in info:
            obs, reward, _, _, info = env.step(agent.act(obs, info))
            total += float(reward)
        instructions, *said = env.unwrapped.transcript()
        parts += [f"## [{name}](scenarios/{name}.md)", "", f"*{probes}*", "", f"> {instructions.content}", ""]
        parts += ["| | |", "|---|---|"]
        for role, content in said:
            words = content.replace("|", "\\|").replace("\n", " ")
            parts.append(f"| **{role}** | {f'`{words}`' if '<tool_call>' in words or role == 'tool' else words} |")
        parts += ["", f"{info['end_reason']}: success {info['success']}, return {total:.2f}, cost {info['cost']:g}", ""]
    return "\n".join(parts)


def algorithms() -> str:
    """One line an algorithm: what it is, what it needs, how it fared, what it costs."""
    folder = DOCS / "algorithms"
    gains = json.loads((DOCS / "benchmarks" / "zoo.json").read_text("utf-8"))["gains"]
    costs = json.loads((DOCS / "benchmarks" / "update-cost.json").read_text("utf-8"))["rows"]
    cost = {row["algorithm"]: row["published"]["median"] for row in costs}
    gain = {c["entry"]: c["gain"] for c in gains if "CustomerService" in c["env"]}
    parts = [
        "# Algorithms",
        "",
        "A page each, from one template: quick facts, equations, pseudocode, what implementations differ in, metrics, "
        "results. [What each key of the log means](metrics.md); [add your own](../guides/add-an-algorithm.md).",
        "",
        "*Steps* are optimiser steps an iteration (passes x minibatches); *weight* says what weighs the same in the "
        "loss; *gain* is of held-out success on CustomerService, with its 95 % interval, in [the zoo]"
        "(../benchmarks/zoo.md), where some have other settings; *cost* is the CPU time of an update over GRPO's "
        "([how](../benchmarks/update-cost.md)).",
        "",
        "| algorithm | idea | needs | steps | weight | gain | cost |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in algos.ALGORITHMS:
        algorithm = algos.make(name)
        needs = ", ".join(sorted(algorithm.needs)) or "-"
        steps = f"{algorithm.epochs} x {algorithm.minibatches}"
        got = "{:+.2f} [{:+.2f}, {:+.2f}]".format(*gain[name]) if name in gain else "-"
        link, words, price = f"[{name}]({name}.md)", idea(folder / f"{name}.md"), f"{cost[name]:.2f}"
        cells = (link, words, needs, steps, algorithm.reduce, got, price)
        parts.append("| " + " | ".join(cells) + " |")
    return "\n".join(parts) + "\n"


def idea(page: Path) -> str:
    """The sentence below a page's quick facts."""
    facts, _, _ = page.read_text("utf-8").partition("\n## ")
    paragraphs = facts.rpartition("|\n")[2].strip().split("\n\n")
    return " ".join(paragraphs[0].split())


def fill(path: Path, name: str, text: str) -> None:
    """Replaces what stands between the markers of a table."""
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, _, rest = path.read_text("utf-8").partition(opening)
    _, found, after = rest.partition(closing)
    if not found:
        raise SystemExit(f"{path}: expected the markers {opening.strip()} and {closing}")
    path.write_text(f"{before}{opening}{text}\n{closing}{after}", "utf-8")


def main() -> None:
    """Writes everything."""
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()  # refuses what it does not know
    folder = DOCS / "scenarios"
    folder.mkdir(exist_ok=True)
    for env_id in convgym.ENVIRONMENTS:
        name = env_id.removeprefix("convgym/").removesuffix("-v0")
        (folder / f"{name}.md").write_text(page(env_id), "utf-8")
    (DOCS / "gallery.md").write_text(gallery(), "utf-8")
    (DOCS / "algorithms" / "README.md").write_text(algorithms(), "utf-8")
    fill(DOCS / "benchmarks" / "audit.md", "audited", audited())
    fill(DOCS / "concepts" / "rewards.md", "hackability", hackability())
    fill(DOCS / "concepts" / "environments.md", "recall", recall())
    fill(DOCS / "guides" / "llm-users.md", "shift", shift())


if __name__ == "__main__":
    main()
