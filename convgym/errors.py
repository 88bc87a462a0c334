"""Every error a user can cause has a name, and says what was expected, what came, and what to do next.

All errors are picklable, because they cross process boundaries in vector environments and in the benchmark's
pool.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class ConvgymError(Exception):
    """Base of every error that convgym and algos raise on purpose."""


class UnknownNameError(ConvgymError):
    """A name that is in no table: an environment, an algorithm, a field, a suite."""

    @classmethod
    def of(cls, kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
        """Builds the error with the nearest known name.

        Args:
            kind: What was looked up, e.g. ``"algorithm"``.
            name: What was asked for.
            known: Every legal name.
        """
        names = sorted(known)
        near = difflib.get_close_matches(str(name), names, n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        return cls(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(names)}.")


class ConfigError(ConvgymError):
    """A setting with an illegal value, or settings that contradict each other."""


class ModelError(ConvgymError):
    """A model folder that is missing, incomplete, or of a kind that cannot be used."""


class TemplateError(ConvgymError):
    """A chat template that cannot grow by appending, so that sampled tokens could not be kept."""


class CheckpointError(ConvgymError):
    """A checkpoint that is damaged, absent, or made for another model or configuration."""


class CapacityError(ConvgymError):
    """A conversation or a batch that does not fit into the context, the cache or the memory."""


class CapacityWarning(UserWarning):
    """The memory does not suffice for all that was asked for at once; what fits is done first, and the rest after."""


class GraphWarning(UserWarning):
    """CUDA graphs cannot be used, so that decoding launches its operations one by one: the same tokens, more slowly."""


class EnvError(ConvgymError):
    """A misuse of an environment, e.g. stepping before the first reset."""


class PackError(ConvgymError):
    """A scenario pack that cannot be played; says file, field and line."""


class InfrastructureError(ConvgymError):
    """A remote user or judge that failed for good: the episode says nothing about the agent, and is not counted."""


class CassetteError(ConvgymError):
    """A cassette that is missing or damaged, or lacks the exchange that is asked for."""


class LaneError(ConvgymError):
    """Lanes of a vector environment that raised, after all the others have gone on.

    Attributes:
        errors: What each of these lanes raised.
        results: What came of the other lanes.
    """

    errors: dict[int, BaseException]
    results: dict[int, Any]

    @classmethod
    def of(cls, errors: dict[int, BaseException], results: dict[int, Any]) -> LaneError:
        """Names the lanes and what they raised."""
        said = "; ".join(f"lane {lane}: {type(error).__name__}: {error}" for lane, error in errors.items())
        error = cls(f"{len(errors)} of {len(errors) + len(results)} lanes raised ({said}); reset them and go on.")
        error.errors, error.results = errors, results
        return error


class DivergedError(ConvgymError):
    """Training produced NaN or infinite numbers several times in a row."""
