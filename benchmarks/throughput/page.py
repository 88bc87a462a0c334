"""The figures as Markdown, and the page that holds them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.env_speed import LANES as ENV_LANES
from benchmarks.pages import put
from benchmarks.pages import table as plain_table
from benchmarks.throughput import decode, envs, learner, service, training, turns
from benchmarks.throughput.contest import least, middle
from benchmarks.throughput.marks import Mark, marks

Parts = Mapping[str, Any]
table = partial(plain_table, numbers=True)


def write(page: Path, found: Mapping[str, Any]) -> None:
    """Puts the figures between the page's markers, and the JSON beside it.

    Raises:
        ConfigError: If the page has no markers.
    """
    put(page, render(found))
    page.with_suffix(".json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")


def render(found: Mapping[str, Any]) -> str:
    """All parts that were measured, the aims first."""
    parts = found["parts"]
    blocks = [_machine(found), "**Aims**, ratios of CPU seconds in one run:", mark_table(marks(parts))]
    return "\n\n".join([*blocks, *(section(name, parts[name]) for name in PARTS if name in parts)])


def section(name: str, part: Mapping[str, Any]) -> str:
    """One part's tables."""
    title, of = PARTS[name]
    return "\n\n".join([f"### {title}", *of(part), _conditions(part)])


def mark_table(found: Sequence[Mark]) -> str:
    """Aims, measured figures, and whether they are met."""
    said = {True: "met", False: "**not met**", None: "not measured"}
    return table(
        ("", "aim", "measured", ""),
        [
            (m.about, f"{'<=' if m.at_most else '>='} " + _figure(m.aim, m.unit), _figure(m.value, m.unit), said[m.met])
            for m in found
        ],
    )


def _machine(found: Mapping[str, Any]) -> str:
    machine, versions = found["machine"], found["versions"]
    return (
        f"{machine['processor']}, {machine['cores']} cores; Python {versions['python']}, torch {versions['torch']}, "
        f"transformers {versions['transformers']}. Least CPU seconds of a contestant's rounds; one thread where "
        "nothing else is said. Every contestant is a process of its own, and takes its turn in every round."
    )


def _conditions(found: Parts) -> str:
    """When, on which commit and under which load each entry was measured."""
    said: dict[str, list[str]] = {}
    for entry, part in found.items():
        facts = part["measured"]
        commit = facts["commit"].get("id", "none")[:10] + (" with changes" if facts["commit"].get("changed") else "")
        said.setdefault(f"{facts['started']}, load {facts['load']} at the start, commit {commit}", []).append(entry)
    every = [f"{', '.join(entries)}: {facts}" if len(said) > 1 else facts for facts, entries in said.items()]
    return f"*Measured {'; '.join(every)}.*"


def _decode(found: Parts) -> list[str]:
    rows = []
    for model, part in found.items():
        for lanes in part["lanes"]:
            where = "1 lane" if lanes == 1 else f"{lanes} lanes"
            for name in part["contestants"]:
                rows.append(
                    (f"{model}, {where}", name, _figure(decode.rate(part, name, lanes)),
                     _figure(decode.decoding_rate(part, name, lanes)),
                     _ratio(decode.rate(part, name, lanes), decode.rate(part, decode.GENERATE, lanes)))
                )  # fmt: skip
    first = next(iter(found.values()))
    alone = {model: part for model, part in found.items() if part.get("group", 1) == 1}
    models = "; ".join(f"`{model}` {_millions(part)}, {part['note']}" for model, part in alone.items())
    return [
        f"Sampled tokens per CPU second after prompts of {first['prompt']} tokens, {first['new']} new ones each: with "
        "the feeding of the prompts, and decoding alone. No two lanes share a prompt, except for `prompts of groups`, "
        f"where eight do, as in a group of GRPO. {models}.",
        table(("", "contestant", "tok/s", "decoding alone", "over HF generate"), rows),
        *_memory(found),
    ]


def _turns(found: Parts) -> list[str]:
    rows, said = [], []
    for model, part in found.items():
        said.append(
            f"`{model}`: {part['episodes']} conversations in {part['lanes']} lanes, {part['heard_tokens']:.0f} tokens "
            f"heard each, {_threads(part)}"
        )
        for ask in (turns.FIXED, turns.SAMPLED):
            for name in part["contestants"]:
                rate = turns.rate(part, name, ask)
                if rate is None and (ask == turns.SAMPLED or name not in _absent(part)):
                    continue
                tokens = middle(part["contestants"], name, ask, "tokens")
                mean = None if tokens is None else tokens / part["episodes"]
                rows.append(
                    (f"{model}, {ask}", name, _figure(rate), _figure(mean),
                     _ratio(rate, turns.rate(part, turns.GENERATE, ask)))
                )  # fmt: skip
    first = next(iter(found.values()))
    return [
        f"Conversations of {first['turns']} turns with a scripted user, openings and replies of ragged lengths, the "
        f"openings shared by groups of eight; {first['new']} sampled tokens a turn, or turns that end with "
        f"probability 1/{first['new']} a token, {first['cap']} at most. {'; '.join(said)}.",
        table(("", "contestant", "episodes/s", "sampled tokens an episode", "over HF generate"), rows),
        *_memory(found),
    ]


def _learner(found: Parts) -> list[str]:
    rows = []
    for model, part in found.items():
        for name in part["contestants"]:
            took = learner.seconds(part, name)
            rows.append(
                (f"{model}, {part['episodes']} episodes, {part['tokens']:,} tokens", name, _figure(took, "s"),
                 _figure(None if took is None else part["tokens"] / took), _figure(learner.peak(part, name), "MB"),
                 _ratio(learner.seconds(part, learner.TRL), took))
            )  # fmt: skip
    blocks = [
        "One GRPO update, a third of the tokens sampled; TRL is handed the episodes by its `rollout_func`, and what it "
        "spends around that is not counted. Peak memory is each process's, imports included.",
        table(("", "contestant", "update", "tok/s", "peak", "TRL / this"), rows),
    ]
    if any(learner.SPARING in part["contestants"] for part in found.values()):
        blocks.append(
            f"Micro-batches of {learner.MICRO} tokens instead of 2,048 make the same step in less memory; the aims for "
            "time and memory are both compared with that one, where it took part."
        )
    for model, part in found.items():
        taken = part["profile"]
        if taken:
            shares = ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in taken["shares"].items())
            blocks.append(
                f"`{model}` taken apart: {shares}. The large products (at least 10 million operations) are "
                f"{100 * taken['large_share']:.0f} % of the time at {taken['gflops']:.0f} GFLOP/s; the same products "
                f"alone, repeated on warm operands, reach {taken['limit_gflops']:.0f} (a square product of 1,024: "
                f"{taken['square_gflops']:.0f}): {100 * taken['of_limit']:.0f} % of their limit."
            )
    return blocks


def _training(found: Parts) -> list[str]:
    rows = []
    for part in found.values():
        for name in part["contestants"]:
            whole = training.seconds(part, name)
            work = f"{part['episodes']} x {part['turns']} turns x {part['new']} tokens, {_millions(part)}"
            rows.append(
                (work, name, _figure(training.seconds(part, name, "rollout"), "s"),
                 _figure(training.seconds(part, name, "update"), "s"), _figure(whole, "s"),
                 _figure(None if whole is None else part["episodes"] / whole), _figure(learner.peak(part, name), "MB"),
                 _ratio(whole, training.seconds(part, training.OURS)))
            )  # fmt: skip
    ours = [middle(part["contestants"], training.OURS, training.STEP, "informative") for part in found.values()]
    known = any(share is not None for share in ours)
    informative = ", ".join(_figure(None if share is None else 100 * share, "%") for share in ours)
    return [
        "Rollout and one GRPO update on the same conversations with scripted users, CPU seconds; the second work is "
        "the benchmark of stateset-agents." + (f" Groups with a gradient, in ours: {informative}." if known else ""),
        table(("", "contestant", "rollout", "update", "step", "episodes/s", "peak", "of ours"), rows),
    ]


def _service(found: Parts) -> list[str]:
    part = found["quick"]
    answers = part["contestants"][service.OURS].get("asks", {})
    rows = []
    for ask in answers:
        cpu = least(part["contestants"], service.OURS, ask)
        tokens, sampled = (middle(part["contestants"], service.OURS, ask, f) for f in ("tokens", "sampled"))
        halves = (least(part["contestants"], service.OURS, ask, f"{half}_cpu") for half in ("rollout", "update"))
        shares = service.shares(part, ask)
        rows.append(
            (ask, _figure(None if not cpu else part["episodes"] / cpu), _figure(tokens), _figure(sampled),
             *(_figure(half, "s") for half in halves), *(f"{100 * share:.0f} %" for share in shares.values()))
        )  # fmt: skip
    peak = part["contestants"][service.OURS].get("peak_mb")
    return [
        f"One iteration of the quick suite (`{part['model']}`, {part['episodes']} conversations), episodes per CPU "
        f"second and share of wall time by phase; peak memory {_figure(peak, 'MB')}:",
        table(("", "episodes/s", "tokens", "sampled", "rollout", "update", *service.PHASES, "rest"), rows),
    ]


def _envs(found: Parts) -> list[str]:
    part = found["all"]
    rows = [
        (r["env"], f"{r['steps_per_second']:,.0f}", f"{r['reset_us']:.0f}", f"{r['step_us']:.1f}",
         f"{r['single_us']:.1f}", f"{r['vector_us']:.1f}", f"{r['lanes_us']:.1f}")
        for r in part["envs"]
    ]  # fmt: skip
    games = [(f"{name} {game}", f"{rate:,.0f}", f"{steps:.1f}") for name, game, rate, steps in envs.game_rates(part)]
    absent = ", ".join(name for name, entry in part["games"].items() if "asks" not in entry)
    head = ("text games of others, random legal moves", "steps/s", "steps an episode")
    of_others = [table(head, games)] if games else []
    return [
        "Recorded messages of the oracle through `gym.make`, resets included; the last columns are microseconds a step "
        f"of one conversation, of {ENV_LANES} through `gym.make_vec(...).step`, of {ENV_LANES} through `step_lanes`:",
        table(("environment", "steps/s", "reset, us", "step, us", "single", "vector", "lanes"), rows),
        *of_others,
        *([f"Text games of others: {absent} not measured."] if absent else []),
    ]


PARTS = {
    "decode": ("Decoding", _decode),
    "turns": ("Conversations of several turns", _turns),
    "learner": ("Updates", _learner),
    "training": ("Training steps", _training),
    "service": ("Episodes end to end", _service),
    "envs": ("Environments", _envs),
}


def _absent(part: Parts) -> dict[str, str]:
    entries = part["contestants"].items()
    return {name: e.get("absent") or e["failed"] for name, e in entries if "asks" not in e}


def _memory(found: Parts) -> list[str]:
    peaks, missing = [], []
    for model, part in found.items():
        here = [f"{n} {e['peak_mb']:,.0f}" for n, e in part["contestants"].items() if "asks" in e]
        peaks.append(f"{model}: {', '.join(here)}")
        missing += [f"{model}, {name}: {why}" for name, why in _absent(part).items()]
    return [f"Peak memory, MB: {'; '.join(peaks)}.", *([f"Not measured: {'; '.join(missing)}."] if missing else [])]


def _threads(part: Parts) -> str:
    return "one thread" if part["threads"] == 1 else f"{part['threads']} threads"


def _millions(part: Parts) -> str:
    return f"{part['parameters'] / 1e6:.2f}M parameters"


def _ratio(a: float | None, b: float | None) -> str:
    return "-" if a is None or not b else f"{a / b:.1f}x"


def _figure(value: float | None, unit: str = "") -> str:
    if value is None:
        return "-"
    if unit == "x":
        return f"{value:.3g}x"
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2
    return f"{value:,.{digits}f}" + (f" {unit}" if unit else "")
