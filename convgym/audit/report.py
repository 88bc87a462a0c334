"""Findings are data: what was checked, what came out, and whether that is a breach."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any

__all__ = ["Finding", "Report", "Share", "share"]

EPS = 1e-9  # of sums in floating point
Z = NormalDist().inv_cdf(0.975)  # of a 95 % interval


@dataclass(frozen=True)
class Finding:
    """What one check found.

    Attributes:
        check: Name of the check, with what it was about after a colon: ``"exploiter:echo"``.
        ok: False for a breach.
        detail: What happened, in words; names the first seeds where something went wrong.
        figure: The number that the verdict rests on, if it rests on one.
        low: Lower end of the figure's 95 % interval, where it is a mean.
        high: Upper end.
        limit: What the figure is held against.
    """

    check: str
    ok: bool
    detail: str
    figure: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Report:
    """The audit of one environment.

    Attributes:
        environment: Its name.
        content: Hash of the scenario's data and rules; scores of different contents cannot be compared.
        seeds: Seeds that the oracle had to solve.
        levels: Difficulties that were played.
        findings: In the order of the checks.
    """

    environment: str
    content: str
    seeds: int
    levels: tuple[int, ...]
    findings: tuple[Finding, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no breach."""
        return not self.breaches

    @property
    def breaches(self) -> tuple[Finding, ...]:
        """The findings that are not as they should be."""
        return tuple(finding for finding in self.findings if not finding.ok)

    def to_dict(self) -> dict[str, Any]:
        """Returns the report as JSON-plain data."""
        data = asdict(self) | {"ok": self.ok}
        return data | {"levels": list(self.levels), "findings": list(data["findings"])}


@dataclass(frozen=True)
class Share:
    """A mean return as a share of the mean best possible one, with its 95 % interval."""

    figure: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.figure:.3f} [{self.low:.3f}, {self.high:.3f}]"


def share(returns: Sequence[float], best: Sequence[float]) -> Share:
    """Estimates ``mean(returns) / mean(best)``.

    The interval is the linearised one of a ratio of means. Where no episode is paid less than nothing or more
    than the best, Wilson's (1927) goes before it if it is wider: it says how little a row of zeros proves, and
    is conservative for shares between 0 and 1.

    Args:
        returns: Return of each episode.
        best: Best possible return of each episode, or its expectation.

    >>> print(share([0.0] * 40, [1.0] * 40))
    0.000 [0.000, 0.088]
    """
    n, most = len(returns), math.fsum(best)
    p = math.fsum(returns) / most
    residues = math.fsum((r - p * b) ** 2 for r, b in zip(returns, best))
    error = Z * math.sqrt(residues / max(1, n - 1) / n) / (most / n)
    if not all(-EPS <= r <= b + EPS for r, b in zip(returns, best)):
        return Share(p, p - error, p + error)
    centre, half = p + Z**2 / (2 * n), Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2))
    low, high = (centre - half) / (1 + Z**2 / n), (centre + half) / (1 + Z**2 / n)
    return Share(p, min(p, max(0.0, min(low, p - error))), max(p, min(1.0, max(high, p + error))))
