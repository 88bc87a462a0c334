"""How much of what agents say is understood, measured on labelled phrasings; and the classifier made from them.

``python -m benchmarks.understanding`` prints recall and precision of every act on the seen two thirds of the
phrasings in ``tests/convgym/phrasings`` and on the unseen third. ``--misses`` lists what is missed in the seen part
(the unseen part is never shown, so that nobody tunes to it). ``--write`` trains the classifier of
``convgym.language.classify`` on the seen part and writes its weights.
"""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import numpy as np
import yaml
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy.optimize import minimize
from scipy.sparse import csr_matrix

from convgym.language import classify
from convgym.types import Heard

ROOT = Path(__file__).parent.parent
PHRASINGS = ROOT / "tests" / "convgym" / "phrasings"
WEIGHTS = ROOT / "convgym" / "language" / "classifier"
COMMON = "customer_service"  # whose listener hears what is said everywhere
TRAINED = frozenset({"common", "customer_service", "slot_filling"})  # the files that hold the shared acts


ASKED = {  # tool_database: the column that goes with a value
    "phone": {"6132", "1976", "2662"}, "hotline": {"649", "544"}, "club": {"choir", "judo", "origami"},
    "depot": {"malmo", "porto", "riga"}, "house": {"cedar", "elm", "holly"},
}  # fmt: skip
MENTIONED = frozenset({"5921", "772", "hockey", "split"})  # new values that its user asked for


class Phrasing(NamedTuple):
    """One labelled message.

    Attributes:
        family: File that it stands in.
        act: Name of the act, ``"none"`` for a message that is none.
        value: Slot, reason or intent that the act must carry, or "".
        text: The message.
    """

    family: str
    act: str
    value: str
    text: str

    @property
    def unseen(self) -> bool:
        """Whether it belongs to the third that is only measured."""
        return crc32(self.text.encode()) % 3 == 0


def phrasings(folder: Path = PHRASINGS) -> Iterator[Phrasing]:
    """Reads all labelled phrasings."""
    for path in sorted(folder.glob("*.yaml")):
        for key, lines in yaml.safe_load(path.read_text("utf-8")).items():
            act, _, value = key.partition("/")
            for line in lines:
                yield Phrasing(path.stem, act, value, str(line))


@dataclass
class Tally:
    """Counts of one act."""

    labelled: int = 0
    found: int = 0  # of the labelled ones, with the right value
    heard: int = 0  # times that the listener reported the act
    right: int = 0  # of these, times that it was the labelled act, with its value


def listen(line: Phrasing) -> Heard:
    """What the user of the phrasing's family understands."""
    module = import_module(f"convgym.scenarios.{COMMON if line.family == 'common' else line.family}")
    if line.family == "tool_database":  # whose user listens for the column that it asked for
        known = [column for column, values in ASKED.items() if line.value in values or column in line.text.lower()]
        heard: Heard = module.listen(known[0] if known else "phone", MENTIONED, line.text)
    else:
        heard = module.listen(line.text)
    return heard


CLAIMED = frozenset(
    {"request", "confirm", "refuse", "done", "tell", "price", "accept", "walk", "ask", "check", "propose", "grant"}
    | {"digits"}
)
"""Acts that change what happens. In a message that is none of them, hearing one is an error."""


def measure(lines: Sequence[Phrasing]) -> dict[str, Tally]:
    """Counts what was found and what was wrongly heard, per act; the acts of a family of its own bear its name."""
    tallies: dict[str, Tally] = {}
    for line in lines:
        prefix = "" if line.family in TRAINED else f"{line.family}: "
        own = tallies.setdefault(prefix + line.act, Tally())
        own.labelled += 1
        acts = listen(line).acts
        if line.act == "none":
            own.found += not any(act.name in CLAIMED for act in acts)
        else:
            own.found += any(_is(act.name, act.slots, line) for act in acts)
        for name in {act.name for act in acts}:
            tally = tallies.setdefault(prefix + name, Tally())
            tally.heard += 1
            tally.right += any(_is(act.name, act.slots, line) for act in acts if act.name == name)
    return {act: tally for act, tally in tallies.items() if tally.labelled}


def _is(name: str, slots: Any, line: Phrasing) -> bool:
    return name == line.act and (not line.value or line.value in slots.values())


def rows(seen: dict[str, Tally], unseen: dict[str, Tally]) -> Iterator[list[str]]:
    """Yields ``act, number, recall, precision`` of the seen part and the same of the unseen one."""
    for act in sorted(seen | unseen, key=_place):
        row = [act]
        for part in (seen, unseen):
            tally = part.get(act, Tally())
            row += [str(tally.labelled), _share(tally.found, tally.labelled), _share(tally.right, tally.heard)]
        yield row


def _place(act: str) -> tuple[str, bool, str]:
    """Sorts the shared acts first, then family by family, ``none`` last of each."""
    family, own, name = act.rpartition(": ")
    return (family if own else "", name == "none", name)


def show(seen: dict[str, Tally], unseen: dict[str, Tally], console: Console) -> None:
    """Prints recall and precision of both parts."""
    head = ("act", "seen", "recall", "precision", "unseen", "recall", "precision")
    table = Table(*head, title="what is understood of free phrasings")
    for row in rows(seen, unseen):
        table.add_row(*row)
    console.print(table)


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.2f}" if whole else ""


# -- the classifier ------------------------------------------------------------------------------------------


def train(lines: Sequence[Phrasing], penalty: float = 3e-5) -> tuple[tuple[str, ...], NDArray[np.float16]]:
    """Fits softmax regression with an L2 penalty by L-BFGS; deterministic.

    Args:
        lines: Labelled messages.
        penalty: Weight of the squared weights beside the mean loss.

    Returns:
        The acts, and weights with the bias as last row, (BUCKETS + 1, acts).
    """
    acts = tuple(sorted({line.act for line in lines}))
    target = np.array([acts.index(line.act) for line in lines])
    x = _matrix([line.text for line in lines])
    frequency = Counter(target.tolist())
    weight = np.array([len(lines) / (len(acts) * frequency[t]) for t in target.tolist()])  # every act counts the same

    def loss(flat: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        w = flat.reshape(x.shape[1], len(acts))
        logits = x @ w
        logits -= logits.max(1, keepdims=True)
        log_z = np.log(np.exp(logits).sum(1))
        own = logits[np.arange(len(target)), target]
        p = np.exp(logits - log_z[:, None])
        p[np.arange(len(target)), target] -= 1.0
        gradient = x.T @ (p * weight[:, None]) / len(target) + 2 * penalty * w
        return float((weight * (log_z - own)).mean() + penalty * (w**2).sum()), gradient.ravel()

    found = minimize(loss, np.zeros(x.shape[1] * len(acts)), jac=True, method="L-BFGS-B", options={"maxiter": 300})
    return acts, found.x.reshape(-1, len(acts)).astype(np.float16)


def _matrix(texts: Sequence[str]) -> csr_matrix:
    rows, columns, values = [], [], []
    for i, text in enumerate(texts):
        buckets, value = classify.features(text)
        rows += [i] * (len(buckets) + 1)
        columns += [*buckets.tolist(), classify.BUCKETS]
        values += [*value.tolist(), 1.0]
    return csr_matrix((values, (rows, columns)), shape=(len(texts), classify.BUCKETS + 1))


def cross_validate(lines: Sequence[Phrasing], folds: int = 5, penalty: float = 3e-5) -> list[tuple[float, bool]]:
    """Returns (probability, whether right) of each held-out message of a cross-validation, by falling probability."""
    found = []
    for fold in range(folds):
        inside = [line for line in lines if crc32(line.text[::-1].encode()) % folds != fold]
        outside = [line for line in lines if crc32(line.text[::-1].encode()) % folds == fold]
        acts, weights = train(inside, penalty)
        logits = _matrix([line.text for line in outside]) @ weights.astype(np.float64)
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        found += [(float(row.max()), acts[int(row.argmax())] == line.act) for row, line in zip(p, outside)]
    return sorted(found, reverse=True)


def write(lines: Sequence[Phrasing], console: Console) -> None:
    """Trains on the lines and writes the weights."""
    found = cross_validate(lines)
    for threshold in (0.0, 0.5, 0.6, 0.7, 0.8, 0.9):
        taken = [right for p, right in found if p >= threshold]
        console.print(
            f"cross-validated at {threshold:.1f}: {len(taken) / len(found):.2f} taken, "
            f"{np.mean(taken) if taken else float('nan'):.3f} right"
        )
    acts, weights = train(lines)
    WEIGHTS.mkdir(exist_ok=True)
    (WEIGHTS / "acts.json").write_text(json.dumps({"acts": acts, "phrasings": len(lines)}) + "\n")
    (WEIGHTS / "weights.f16").write_bytes(weights.tobytes())


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs what the command line asks for."""
    parser = argparse.ArgumentParser(prog="benchmarks.understanding", description=__doc__)
    parser.add_argument("--write", action="store_true", help="train the classifier and write its weights")
    parser.add_argument("--misses", action="store_true", help="list what is missed in the seen part")
    options = parser.parse_args(arguments)
    console = Console()
    lines = list(phrasings())
    seen = [line for line in lines if not line.unseen]
    if options.write:
        write([line for line in seen if line.family in TRAINED], console)
    if options.misses:
        for line in seen:
            (tally,) = measure([line]).values()
            if tally.found < tally.labelled:
                console.print(f"{line.family} {line.act}/{line.value}: {line.text}", markup=False, highlight=False)
    show(measure(seen), measure([line for line in lines if line.unseen]), console)


if __name__ == "__main__":
    main()
