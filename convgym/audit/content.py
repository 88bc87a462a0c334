"""The hash of a scenario's data and rules.

It covers what agents read and what befalls them: instructions in both styles, rules, tool schemas, openings,
and whole episodes with their rewards, over fixed seeds, all levels and splits: of the oracle, of the greedy
script, and of the clerk, whose mistakes try the grader. It depends neither on the process nor on its hash
seed, and not on how much an audit plays.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from hashlib import blake2b
from typing import Any

from convgym.audit.episodes import LEVELS, Subject, play
from convgym.core import SPLITS
from convgym.errors import EnvError

__all__ = ["content", "content_elsewhere", "main"]

SEEDS = 2  # of each level and split


def content(subject: Subject) -> str:
    """Returns the hash, 16 hexadecimal digits."""
    total = blake2b(digest_size=8)
    for level in LEVELS:
        brief, full = (subject.env(difficulty=level, instructions=style) for style in ("brief", "full"))
        cast = [subject.agent(name, brief, level) for name in ("oracle", "greedy", "clerk")]
        for split in SPLITS:
            for seed in range(SEEDS):
                options = {"split": split}
                total.update(_plain(full.reset(seed=seed, options=options)[0]))
                rules = [(rule.id, rule.brief, rule.full) for rule in full.task.rules]
                total.update(_plain([full.task.template, rules]))
                for agent in cast:
                    total.update(_plain(play(brief, agent, seed, options).steps))
        total.update(_plain([tool.schema() for tool in full.task.tools.values()]))
    return total.hexdigest()


def content_elsewhere(subject: Subject, hash_seed: str) -> str:
    """Returns the hash as another interpreter makes it, started with a hash seed of its own.

    Raises:
        EnvError: If that interpreter cannot make it.
    """
    path = os.pathsep.join(filter(None, sys.path))
    done = subprocess.run(
        [sys.executable, "-c", "from convgym.audit.content import main; main()"],
        input=pickle.dumps(subject),
        env={**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": path},
        capture_output=True,
        check=False,
    )
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        raise EnvError(f"expected the content from another interpreter, got: {last}")
    return done.stdout.decode().strip()


def main() -> None:
    """Reads a subject from standard input and prints its hash; the other end of :func:`content_elsewhere`."""
    subject: Subject = pickle.load(sys.stdin.buffer)
    print(content(subject))


def _plain(value: Any) -> bytes:
    """Writes data down; floats to 12 digits, in which mathematics libraries agree."""
    return json.dumps(_rounded(value), sort_keys=True).encode()


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list | tuple) else value
