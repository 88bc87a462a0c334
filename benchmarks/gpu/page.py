"""The figures of one GPU as Markdown, with the curves and the conversations beside them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from algos.learner.flops import known_device
from benchmarks.gpu import training as run
from benchmarks.gpu.speed import BYTES, ENGINES, GENERATES, SMOLLM2, WALL, over
from benchmarks.pages import FIGURES, put
from benchmarks.pages import table as plain_table
from benchmarks.throughput import decode, learner, training
from benchmarks.throughput.contest import middle
from benchmarks.throughput.marks import Mark
from benchmarks.throughput.page import mark_table
from convgym.core import printable

Parts = Mapping[str, Any]
table = partial(plain_table, numbers=True)
NOTHING = "Nothing has been measured on a GPU yet. The command is there and has been tried small on a CPU (`--dry`)."


def write(page: Path, found: Parts) -> None:
    """Puts the figures between the page's markers; JSON, curves and conversations go beside it.

    A page that does not exist is made.

    Raises:
        ConfigError: If the page has no markers.
    """
    if not page.exists():
        page.parent.mkdir(parents=True, exist_ok=True)
        page.write_text(f"# One GPU\n\n{FIGURES[0]}\n{FIGURES[1]}\n", "utf-8")
    runs = found["parts"].get(run.PART, {})
    curves = {name: entry for name, entry in runs.items() if "curve" in entry}
    put(page, render(found, page.stem))
    if not found["parts"]:
        return
    page.with_suffix(".json").write_text(json.dumps(found, indent=1, allow_nan=False) + "\n", "utf-8")
    if runs:
        beside = page.with_name(f"{page.stem}-conversations.md")
        beside.write_text(conversations(runs), "utf-8")
    if curves and find_spec("matplotlib"):  # a bare machine leaves the figure to the one that writes the docs
        draw(curves, runs, page.with_suffix(".svg"))


def render(found: Parts, stem: str = "gpu") -> str:
    """All parts that were measured, the aims first; a sentence if nothing was."""
    parts = found["parts"]
    if not parts:
        return NOTHING
    blocks = [_machine(found), "**Aims** for an H100, ratios of wall seconds in one run:", mark_table(marks(parts))]
    for name, (title, of) in PARTS.items():
        if name in parts:
            facts = [entry["measured"] for entry in parts[name].values()]
            commits = sorted({f["commit"].get("id", "none")[:10] for f in facts})
            days = sorted({f["started"][:10] for f in facts})
            when = f"*Measured {', '.join(days)}, commit {', '.join(commits)}.*"
            blocks += [f"### {title}", *of(parts[name], found, stem), when]
    return "\n\n".join(blocks)


def marks(parts: Parts) -> list[Mark]:
    """What is aimed at on one H100."""
    decoding, steps = parts.get("decode", {}).get(SMOLLM2), parts.get("end_to_end", {}).get(SMOLLM2)
    ours, theirs = [ENGINES["fp32"]], list(GENERATES.values())  # training samples in float32
    faster = None if decoding is None or 64 not in decoding["lanes"] else over(decoding, ours, theirs, 64)
    whole = [None if steps is None else training.seconds(steps, name, clock=WALL)
             for name in (training.TRL, training.OURS)]  # fmt: skip
    return [
        Mark("decode, SmolLM2-135M, 64 lanes in fp32, over the faster of HF generate in fp32 and bf16", 10, faster),
        Mark("4-turn training step, SmolLM2-135M, over TRL without vLLM", 4,
             None if whole[0] is None or not whole[1] else whole[0] / whole[1]),
    ]  # fmt: skip


def _machine(found: Parts) -> str:
    gpu, machine, versions = found["gpu"], found["machine"], found["versions"]
    where = f"{gpu['name']} ({gpu['memory_gb']:.0f} GiB, CUDA {gpu['cuda']}), " if gpu else "No GPU: a dry run on "
    return (
        f"{where}{machine['processor']}, {machine['cores']} cores; Python {versions['python']}, torch "
        f"{versions['torch']}, transformers {versions['transformers']}. Least wall seconds of a contestant's rounds, "
        "the GPU synchronised before and after. Every contestant is a process of its own, and takes its turn in every "
        "round."
    )


def _decode(part: Parts, found: Parts, stem: str) -> list[str]:
    rows, said = [], []
    for model, entry in part.items():
        said.append(f"`{model}`: {entry['parameters'] / 1e6:,.0f}M parameters, {entry['note']}")
        for lanes in entry["lanes"]:
            for dtype in BYTES:
                for name in (ENGINES[dtype], GENERATES[dtype]):
                    rate = decode.decoding_rate(entry, name, lanes, WALL)
                    own = middle(entry["contestants"], ENGINES[dtype], str(lanes), "bandwidth")
                    read = None if rate is None else entry["step_bytes"][dtype][str(lanes)] * rate / lanes
                    rows.append((
                        f"{model}, {lanes} {'lane' if lanes == 1 else 'lanes'}", name,
                        _figure(decode.rate(entry, name, lanes, WALL)), _figure(rate),
                        _figure(None if read is None else read / 1e9), _share(read, own),
                        _figure(middle(entry["contestants"], name, str(lanes), "gpu_mb")),
                    ))  # fmt: skip
    first = next(iter(part.values()))
    limits = [middle(first["contestants"], name, str(first["lanes"][0]), "bandwidth") for name in ENGINES.values()]
    copied = _figure(max((x for x in limits if x), default=None), scale=1e9)
    return [
        f"Sampled tokens a second after prompts of {first['prompt']} tokens, none shared, {first['new']} new ones "
        "each: with the feeding of the prompts, and decoding alone. A step must read all weights once, and the keys "
        f"and values of the columns in use; its share is of a large copy in the same process ({copied} GB/s"
        f"{_sheet(found, 'bandwidth', 1e3, 'GB/s')}). {'; '.join(said)}.",
        table(("", "contestant", "tok/s", "decoding alone", "GB/s", "of bandwidth", "GPU MB"), rows),
        *_missing(part),
    ]


def _learner(part: Parts, found: Parts, stem: str) -> list[str]:
    rows = []
    for name, entry in part.items():
        limit = middle(entry["contestants"], learner.OURS, learner.UPDATE, "products")
        sheet = known_device(found["gpu"].get("name", ""))
        for who in entry["contestants"]:
            took = learner.seconds(entry, who, WALL)
            rate = None if not took else entry["flops"] / took
            rows.append((
                f"{name}, {entry['tokens']:,} tokens", who, _figure(took, "s"),
                _figure(None if not took else entry["tokens"] / took), _figure(rate, scale=1e12),
                _share(rate, limit), _share(rate, None if sheet is None else 1e12 * sheet.bf16),
                _figure(middle(entry["contestants"], who, learner.UPDATE, "gpu_mb")),
            ))  # fmt: skip
    first = next(iter(part.values()))
    best = _figure(middle(first["contestants"], learner.OURS, learner.UPDATE, "products"), scale=1e12)
    return [
        "One GRPO update, a third of the tokens sampled; weights in float32, products in bfloat16. TRL is handed the "
        "episodes by its `rollout_func`, and what it spends around that is not counted. Model FLOPs are "
        "`6 (N T + V D A + L H E T (T + 1))` a row of T tokens, A of them sampled (N weights in the layers' matrices, "
        "V D in the head, L layers of H heads of width E; PaLM, arXiv 2204.02311, appendix B, with causal attention "
        "and the head only where the loss needs it). MFU is their share of the best rate of a square product of 8,192 "
        f"in the same process ({best} TFLOP/s), and of the data sheet{_sheet(found, 'bf16', 1, 'TFLOP/s')}.",
        table(("", "contestant", "update", "tok/s", "TFLOP/s", "MFU, product", "MFU, data sheet", "GPU MB"), rows),
        *_missing(part),
    ]


def _end_to_end(part: Parts, found: Parts, stem: str) -> list[str]:
    rows = []
    for model, entry in part.items():
        own = training.seconds(entry, training.OURS, clock=WALL)
        for who in entry["contestants"]:
            halves = [training.seconds(entry, who, half, WALL) for half in ("rollout", "update", "")]
            whole = halves[2]
            rows.append((
                f"{model}, {entry['episodes']} x {entry['turns']} turns x {entry['new']} tokens", who,
                *(_figure(half, "s") for half in halves),
                _figure(None if not whole else entry["episodes"] / whole),
                _figure(middle(entry["contestants"], who, training.STEP, "gpu_mb")),
                "-" if whole is None or not own else f"{whole / own:.1f}x",
            ))  # fmt: skip
    return [
        "Rollout and one GRPO update on the same conversations with scripted users. TRL's `rollout_func` calls "
        "`generate` on the whole history in every turn; ours goes through environments, chat template, engine and "
        "learner.",
        table(("", "contestant", "rollout", "update", "step", "episodes/s", "GPU MB", "of ours"), rows),
        *_missing(part),
    ]


def _run(part: Parts, found: Parts, stem: str) -> list[str]:
    rows = [
        (name, f"{entry['success']:.1%}", f"{entry['return']:.3f}", "-", "-", "-", _figure(entry.get("seconds"), "s"))
        for name, entry in part.items() if "curve" not in entry
    ]  # fmt: skip
    speeds = []
    for name, entry in part.items():
        if "curve" in entry:
            last, curve, speed = entry["evaluations"][-1], entry["curve"], entry["speed"]
            state = "" if entry["status"] == "done" else f" ({entry['status']})"
            rows.append((
                name + state, f"{last['success']:.1%}", f"{last['return']:.3f}", f"{curve['step'][-1]:,}",
                f"{curve['episodes'][-1]:,}", f"{entry['config']['learning_rate']:g}", _figure(entry["seconds"], "s"),
            ))  # fmt: skip
            halves = (speed[f"seconds_{phase}"] for phase in ("rollout", "engine", "env", "chat", "update", "optimise"))
            rates = (speed["tokens_per_second"], speed["model_tflops"])
            speeds.append((name, *(_figure(half, "s") for half in halves), *map(_figure, rates),
                           _share(speed.get("mfu"), 1.0)))  # fmt: skip
    warm, blocks = part.get(run.WARM), []
    if warm is not None:
        blocks.append(
            f"The warm start imitates {warm['dialogues']:,} dialogues of scripted clerks of mixed skill "
            f"({warm['tokens']:,} tokens, {warm['epochs']} passes, learning rate {warm['learning_rate']:g}); the "
            f"algorithms begin from it. Success and return on {warm['held_out']} held-out conversations, sampled at "
            "temperature 1. A run ends after four evaluations without a better return, or when its time is up."
        )
    head = ("", "success", "return", "updates", "episodes", "learning rate", "time")
    blocks.append(table(head, rows))
    if speeds:
        phases = ("rollout", "engine", "environments", "chat", "update", "gradient steps", "tok/s", "TFLOP/s", "MFU")
        blocks += [
            f"![Learning curves]({stem}.svg)",
            "Medians of an iteration:",
            table(("", *phases), speeds),
        ]
    return [*blocks, f"Conversations before and after: [{stem}-conversations.md]({stem}-conversations.md)."]


PARTS = {
    "decode": ("Decoding", _decode),
    "learner": ("Updates", _learner),
    "end_to_end": ("Training steps", _end_to_end),
    "run": ("A training run", _run),
}


def conversations(runs: Parts) -> str:
    """A page of held-out conversations, the same scenarios before and after."""
    blocks = [
        "# Conversations before and after",
        "The same held-out scenarios of CustomerService, sampled at temperature 1 by the policies of the run on the "
        "page beside this one.",
    ]
    for name in sorted(runs, key=lambda name: (name != run.BASE, name != run.WARM)):
        entry = runs[name]
        blocks.append(f"## {name}")
        for number, talk in enumerate(entry["after"], 1):
            ended = "success" if talk["success"] else "no success"
            said = [f"    {m['role']}: {line}" for m in talk["messages"] if m["role"] != "system"
                    for line in printable(m["content"]).splitlines() or [""]]  # fmt: skip
            blocks += [f"**Scenario {number}: {ended}, return {talk['return']:.2f}, {talk['end_reason']}**",
                       "\n".join(said)]  # fmt: skip
    return "\n\n".join(blocks) + "\n"


def draw(curves: Parts, runs: Parts, path: Path) -> None:
    """Success in training as a line, and in evaluations as dots, by conversations."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    style: Any = {"svg.hashsalt": "convgym", "svg.fonttype": "none", "font.size": 9.0, "text.parse_math": False}
    with rc_context({**style, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        axes = figure.subplots()
        for (name, entry), colour in zip(curves.items(), ("#1b7f79", "#c4572e", "#5a4fa2")):
            curve = entry["curve"]
            axes.plot(curve["episodes"], _smooth(curve["success"]), color=colour, linewidth=1.4, label=name)
            at = dict(zip(curve["step"], curve["episodes"])) | {0: 0}
            dots = [(at[e["step"]], e["success"]) for e in entry["evaluations"] if e["step"] in at]
            axes.plot(*zip(*dots), "o", color=colour, markersize=4)
        if run.BASE in runs:
            axes.axhline(runs[run.BASE]["success"], color="#888888", linewidth=0.9, linestyle=":", label=run.BASE)
        axes.set(xlabel="training conversations", ylabel="success", ylim=(0, 1.02))
        axes.set_xlim(left=0)
        axes.grid(axis="y", alpha=0.25)
        axes.legend(frameon=False, loc="lower right")
        figure.savefig(path, format="svg", facecolor="white", metadata={"Date": None})


def _smooth(values: Sequence[float], width: int = 5) -> list[float]:
    """The mean of each value and up to ``width - 1`` before it."""
    windows = [values[max(0, i + 1 - width) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _missing(part: Parts) -> list[str]:
    said = {
        f"{name}: {entry.get('absent') or entry.get('failed')}"
        for each in part.values()
        for name, entry in each["contestants"].items()
        if "asks" not in entry
    }
    return [f"Not measured: {'; '.join(sorted(said))}."] if said else []


def _sheet(found: Parts, figure: str, scale: float, unit: str) -> str:
    sheet = known_device(found["gpu"].get("name", ""))
    return "" if sheet is None else f"; data sheet {_figure(scale * getattr(sheet, figure))} {unit}"


def _share(value: float | None, whole: float | None) -> str:
    return "-" if value is None or not whole else f"{100 * value / whole:.1f} %"


def _figure(value: float | None, unit: str = "", scale: float = 1.0) -> str:
    if value is None:
        return "-"
    value /= scale
    digits = 0 if abs(value) >= 100 else 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:,.{digits}f}" + (f" {unit}" if unit else "")
