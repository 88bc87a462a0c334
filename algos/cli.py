"""The command line: ``convgym list | show | play | audit | train | evaluate | compare``.

Commands are plain functions. What needs a model is imported inside them, so that the others answer at once.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from tyro.conf import Positional, arg

from algos.training.config import Fields
from convgym.core import printable
from convgym.errors import ConfigError, ConvgymError, UnknownNameError

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from convgym.audit import Budget, Report

EnvFields = Annotated[Fields, arg(name="env-field")]
NO_FIELDS: dict[str, Any] = {}
COLOURS = {"assistant": "cyan", "user": "green", "tool": "yellow", "system": "bright_black"}


def list_names() -> int:
    """List environments, scripted agents and algorithms."""
    import algos
    from convgym import agents
    from convgym.registration import ENVIRONMENTS, PACK

    width = max(map(len, ENVIRONMENTS))
    print("environments")
    for env_id, (_, purpose) in ENVIRONMENTS.items():
        print(f"  {env_id:<{width}}  {purpose}")
    print(f"  {PACK[0]:<{width}}  conversations of your own: path=FOLDER, see docs/guides/packs.md")
    print(f"agents\n  {', '.join(agents.names())}")
    print(f"algorithms\n  {', '.join(algos.names())}")
    return 0


def show(
    env: Positional[str],
    agent: str = "oracle",
    model: str | None = None,
    seed: int = 0,
    env_field: EnvFields = NO_FIELDS,
) -> int:
    """Print one conversation of a scripted agent, or of a language model.

    Args:
        env: Environment id.
        agent: Scripted agent; `convgym list` shows them.
        model: A model instead, as `convgym train` takes it: mini knows every environment.
        seed: Which scenario and user.
        env_field: Settings of the environment, e.g. difficulty=3.
    """
    from algos.training.envs import make_env
    from convgym import agents

    world = make_env(env, env_field)
    if model is not None:
        return _show_model(world, model, seed)
    player = agents.make(agent, world, seed=seed)
    obs, info = world.reset(seed=seed)
    player.reset(obs, info)
    _converse(world, obs, info, player.act, echo=True)
    return 0


def _show_model(world: Any, model: str, seed: int) -> int:
    from algos.policies.load import load_policy
    from algos.rollout.collect import Collector, EpisodeRequest
    from convgym.vector import ConversationVectorEnv

    collector = Collector(ConversationVectorEnv([lambda: world]), load_policy(model))
    collected = collector.collect([EpisodeRequest(env_seed=seed, group=0, sample_seed=seed)])
    for failure in collected.failures:
        raise ConvgymError(f"{model} could not have this conversation: {failure.error.strip().splitlines()[-1]}")
    for message in world.unwrapped.transcript():
        _say(message.to_dict())
    (episode,) = collected.episodes
    outcome = "success" if episode.success else "no success"
    print(f"{episode.end_reason}: {outcome}, return {episode.episode_return:.2f}")
    return 0


def play(env: Positional[str], seed: int = 0, env_field: EnvFields = NO_FIELDS) -> int:
    """Be the agent yourself: type a message, or a tool call; Ctrl-D leaves.

    Args:
        env: Environment id.
        seed: Which scenario and user.
        env_field: Settings of the environment, e.g. difficulty=3 instructions=brief.
    """
    from algos.training.envs import make_env

    world = make_env(env, {"instructions": "full", **env_field})
    obs, info = world.reset(seed=seed)
    print(f"You are the agent. Speak{_example_call(world)}; Ctrl-D leaves.")
    try:
        _converse(world, obs, info, lambda obs, info: input("you: "), echo=False)
    except EOFError:
        print("\nYou left the conversation.")
    return 0


def _example_call(world: Any) -> str:
    """How to call the environment's first tool, in words."""
    from convgym.tools import format_call

    for tool in world.unwrapped.task.tools.values():
        call = format_call(tool.name, dict.fromkeys(tool.arguments.model_fields, "..."))
        return f", or call a tool, for example {call}"
    return ""


def audit(
    envs: Positional[tuple[str, ...]],
    seeds: int | None = None,
    difficulty: int | None = None,
    quick: bool = False,
    json: bool = False,
) -> int:
    """Check that environments keep what they promise and cannot be cheated; exits with 1 on a breach.

    Args:
        envs: Environment ids, folders of scenario packs, or `all`.
        seeds: Episodes of each agent, over all difficulties; 1000, or 160 with --quick.
        difficulty: Play this difficulty only; otherwise all five, or two with --quick.
        quick: A few seconds an environment.
        json: Print the findings as JSON.
    """
    from dataclasses import replace

    from convgym.audit import FULL, QUICK
    from convgym.registration import ENVIRONMENTS

    if not envs:
        raise ConfigError("audit: expected environment ids or folders, got none; `all` stands for every id.")
    budget = QUICK if quick else FULL
    budget = replace(
        budget,
        seeds=budget.seeds if seeds is None else seeds,
        levels=budget.levels if difficulty is None else (difficulty,),
    )
    names = [name for env in envs for name in (ENVIRONMENTS if env == "all" else [env])]
    return _audit(names, budget, as_json=json)


def evaluate(
    run: Positional[Path], episodes: int = 256, split: str | None = None, greedy: bool = False
) -> int:
    """Evaluate what a run has learnt, on held-out conversations.

    Args:
        run: Folder of the run.
        episodes: Number of conversations.
        split: Split to draw from; by default the one that the run evaluates on.
        greedy: Take the likeliest token each time.
    """
    found = importlib.import_module("algos.training.evaluate").evaluate(
        run, episodes=episodes, split=split, greedy=greedy
    )
    sample = found.pop("sample")
    for message in sample["messages"]:
        _say(message)
    for name, value in found.items():
        print(f"{name:<20} {value:.4g}")
    return 0


def train(args: Sequence[str]) -> int:
    """Train a policy."""
    from algos.training.config import from_args

    config, resume = from_args(args, "convgym train")
    return int(importlib.import_module("algos.training.train").launch(config, resume=resume))


def compare(args: Sequence[str]) -> int:
    """Compare algorithms on a suite of environments, and write a report."""
    return int(importlib.import_module("benchmarks.compare").main(list(args)) or 0)


def _typed(command: Callable[..., int], name: str) -> Callable[[Sequence[str]], int]:
    """A command whose signature and docstring are its options and their help."""
    return lambda args: tyro.cli(command, args=list(args), prog=f"convgym {name}")


COMMANDS: dict[str, tuple[Callable[[Sequence[str]], int], str]] = {
    "list": (_typed(list_names, "list"), "environments, scripted agents and algorithms"),
    "show": (_typed(show, "show"), "one conversation of a scripted agent"),
    "play": (_typed(play, "play"), "be the agent yourself"),
    "audit": (_typed(audit, "audit"), "check what environments promise, and try to cheat them"),
    "train": (train, "train a policy"),
    "evaluate": (_typed(evaluate, "evaluate"), "evaluate what a run has learnt"),
    "compare": (compare, "compare algorithms on a suite, with a report"),
}


def main(args: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code: 0 if all went well, 2 for an error that the user can mend."""
    name, *rest = (sys.argv[1:] if args is None else list(args)) or ["--help"]
    if name in ("-h", "--help"):
        print("usage: convgym COMMAND [OPTIONS]\n")
        print("\n".join(f"  {command:<10} {purpose}" for command, (_, purpose) in COMMANDS.items()))
        print("\n`convgym COMMAND --help` shows the options of a command.")
        return 0
    try:
        if name not in COMMANDS:
            raise UnknownNameError.of("command", name, COMMANDS)
        return COMMANDS[name][0](rest)
    except ConvgymError as error:
        print(f"convgym: {printable(str(error))}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader has left, as in `convgym list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _audit(names: Sequence[str], budget: Budget, *, as_json: bool) -> int:
    """Audits environments one after the other, and prints a table each and a verdict."""
    from json import dumps

    from rich.console import Console
    from rich.progress import Progress

    from convgym.audit import CHECKS, audit, resolve

    subjects = {name: resolve(name) for name in names}  # a mistake is named before anything is played
    reports = []
    with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=len(names) * len(CHECKS))
        for name, subject in subjects.items():
            # A check is counted when it begins, so that the bar says what is being done.
            step = partial(_advance, bar, task, name)
            reports.append(audit(subject, budget, name=name, progress=step))
    if as_json:
        print(dumps([report.to_dict() for report in reports], indent=2))
    else:
        for report in reports:
            _findings(report, only_breaches=len(reports) > 1)
    return 0 if all(report.ok for report in reports) else 1


def _advance(bar: Progress, task: TaskID, name: str, check: str) -> None:
    bar.update(task, advance=1, description=printable(f"{name}: {check}"))


def _findings(report: Report, *, only_breaches: bool) -> None:
    """Prints the table of a report and its verdict."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Column, Table
    from rich.text import Text

    console = Console(highlight=False)
    shown = report.breaches if only_breaches else report.findings
    if shown:
        numbers = [Column(head, no_wrap=True, justify="right") for head in ("figure", "95 %", "limit")]
        first = [Column(head, no_wrap=True) for head in ("", "check")]
        table = Table(*first, *numbers, Column("found"), box=SIMPLE, padding=(0, 1, 0, 0), pad_edge=False)
        for finding in shown:
            low, high = finding.low, finding.high
            interval = "" if low is None or high is None else f"{low:.3f}-{high:.3f}"
            figure, limit = ("" if value is None else f"{value:.3f}" for value in (finding.figure, finding.limit))
            verdict = Text("ok", "green") if finding.ok else Text("BREACH", "bold red")
            cells = (finding.check, figure, interval, limit, finding.detail)
            table.add_row(verdict, *(Text(printable(cell)) for cell in cells))
        console.print(table)
    levels = ", ".join(map(str, report.levels))
    count = f"{len(report.findings)} findings, {len(report.breaches) or 'no'} breach{'es' * (len(report.breaches) > 1)}"
    played = f"{report.seeds} seeds, difficulty {levels}, content {report.content}"
    console.print(Text(printable(f"{report.environment}: {count} ({played})")))


def _converse(
    env: Any, obs: str, info: Mapping[str, Any], act: Callable[[str, Mapping[str, Any]], str], *, echo: bool
) -> None:
    """Has a conversation and prints it."""
    for message in info["messages"]:
        _say(message)
    total, ended = 0.0, False
    while not ended:
        action = act(obs, info)
        if echo:
            _say({"role": "assistant", "content": action})
        obs, reward, terminated, truncated, info = env.step(action)
        total, ended = total + reward, terminated or truncated
        for message in info["messages"]:
            _say(message)
    outcome = "success" if info["success"] else "no success"
    print(f"{info['end_reason']}: {outcome}, score {info['score']:.2f}, return {total:.2f}")


def _say(message: Mapping[str, str]) -> None:
    """Prints a message; no text in it can steer the terminal."""
    from rich.console import Console
    from rich.panel import Panel
    from rich.text import Text

    role = message["role"]
    text = Text(printable(message["content"]).rstrip())
    Console().print(Panel(text, title=role, title_align="left", border_style=COLOURS.get(role, "white")))


if __name__ == "__main__":
    sys.exit(main())
