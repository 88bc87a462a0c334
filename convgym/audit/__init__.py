"""The audit: does an environment keep what it promises, and can it be cheated?

:func:`audit` puts an environment through every check of :data:`CHECKS` and returns a :class:`Report` of
findings. ``docs/concepts/audit.md`` says what each check proves, and what it does not.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

import gymnasium as gym

from convgym import agents
from convgym.audit import contract, damage, repeats, returns, wording
from convgym.audit.content import content
from convgym.audit.episodes import LEVELS, Budget, Make, Subject
from convgym.audit.report import Finding, Report
from convgym.errors import ConfigError, UnknownNameError
from convgym.registration import ENVIRONMENTS

__all__ = ["CHECKS", "FULL", "QUICK", "Budget", "Finding", "Make", "Report", "audit", "resolve"]

PACK = "convgym/Pack-v0"
FULL = Budget(seeds=1_000, levels=LEVELS, hash_seeds=("0", "1", "20260"))
QUICK = Budget(seeds=160, levels=(2, 5), hash_seeds=("1",))


def linted(subject: Subject) -> Iterator[Finding]:
    """Lints a scenario pack; other environments have nothing to lint."""
    from convgym.packs import lint  # which plays with the audit's own means

    return lint.linted(subject)


CHECKS: Mapping[str, Callable[[Subject], Iterator[Finding]]] = {
    "lint": linted,
    "gymnasium": contract.gymnasium_api,
    "promises": contract.promises,
    "reveal": contract.private,
    "solvable": returns.solvable,
    "played well": returns.played_well,
    "untouched": returns.idle,
    "exploiters": returns.cheats,
    "bounded": returns.paid,
    "damage": damage.damaged,
    "paraphrase": wording.paraphrased,
    "replay": repeats.replays,
    "interleaving": repeats.interleaving,
    "copies": repeats.copies,
    "reset": repeats.resets,
    "generators": repeats.generators,
    "hash seeds": repeats.hash_seeds,
}
"""The checks by name; each yields its findings."""


def audit(
    subject: str | Make,
    budget: Budget = FULL,
    *,
    name: str = "",
    family: agents.Family | None = None,
    checks: Iterable[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Report:
    """Audits an environment.

    Args:
        subject: A registered id, the folder of a scenario pack, or what makes the environment: called with
            settings (``difficulty``, ``instructions``, ``reveal``), it returns one whose inmost env is a
            ``ConversationEnv``. Wrappers are looked through. Other interpreters call it too, so it has to be
            picklable: a class, or ``functools.partial(gym.make, id)``, and no lambda.
        budget: How much is played.
        name: Name in the report; by default the id, or the name of the class.
        family: Whose agents play; by default those of the scenario.
        checks: Names of :data:`CHECKS`; by default all of them.
        progress: Called with the name of each check before it runs.

    Raises:
        UnknownNameError: If there is no environment of this id, no agents for it, or no such check.
        ConfigError: If the subject cannot be audited at all.
    """
    if isinstance(subject, str):
        name, subject = name or subject, resolve(subject)
    found = Subject(subject, family, budget)
    try:
        pickle.dumps(found)
    except Exception as error:
        raise ConfigError(
            f"audit: expected what other interpreters can call, got {subject!r} ({error}); pass a class of a "
            "module or functools.partial(gym.make, id)."
        ) from None
    env = found.env()
    found.agent("oracle", env)
    findings: list[Finding] = []
    for check in CHECKS if checks is None else checks:
        if check not in CHECKS:
            raise UnknownNameError.of("check", check, CHECKS)
        if progress is not None:
            progress(check)
        findings.extend(_findings(check, CHECKS[check], found))
    return Report(name or type(env).__name__, _content(found), budget.seeds, budget.levels, tuple(findings))


def resolve(subject: str) -> Make:
    """Finds what makes an environment by its id, or by the folder of a pack.

    Raises:
        UnknownNameError: If it is neither.
    """
    if subject in gym.registry:
        return partial(gym.make, subject)
    if Path(subject).is_dir():
        return partial(gym.make, PACK, path=subject)
    raise UnknownNameError.of("environment or folder of a pack", subject, ENVIRONMENTS)


def _findings(check: str, run: Callable[[Subject], Iterator[Finding]], subject: Subject) -> list[Finding]:
    """Runs a check; an environment that raises is a finding too."""
    findings = []
    try:
        for finding in run(subject):
            findings.append(finding)
    except Exception as error:
        findings.append(Finding(check, False, f"raised {type(error).__name__}: {error}"))
    return findings


def _content(subject: Subject) -> str:
    try:
        return content(subject)
    except Exception:
        return "none"  # the checks have said why
