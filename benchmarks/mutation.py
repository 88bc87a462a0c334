"""Do the tests notice when the mathematics is wrong?

``python -m benchmarks.mutation --write`` changes one thing at a time in ``algos/maths/*.py`` (a sign, a bound, a mask,
a denominator: a *mutant*), runs the property tests against each mutant and writes ``docs/benchmarks/mutation.md``. A
mutant that fails a test is *killed*. One that *survives* shows a hole in the tests, unless it computes the same: such
mutants are explained in ``docs/benchmarks/mutation-survivors.json``.

One process imports torch and pytest and copies the tree; it forks for every mutant, and the child puts the mutant in
the place of the module before anything imports it. The module's own test file runs first, until a test fails; only
who survives it meets all the others.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import hashlib
import importlib
import json
import os
import random
import resource
import shutil
import sys
import tempfile
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from benchmarks import pages, provenance

ROOT = Path(__file__).resolve().parents[1]
MATHS = "algos/maths"
WIDER = (
    "tests/algos/maths",
    "tests/algos/test_credit.py",
    "tests/algos/test_critic_family.py",
    "tests/algos/test_group_family.py",
    "tests/algos/test_returns_family.py",
    "tests/algos/test_zoo.py",
)
PAGE = ROOT / "docs/benchmarks/mutation.md"
RECORD = PAGE.with_suffix(".json")  # what became of every mutant, and where
SURVIVORS = ROOT / "docs/benchmarks/mutation-survivors.json"
PRELOAD = ("torch", "hypothesis", "hypothesis.strategies", "numpy", "gymnasium", "convgym")  # nothing of `algos`
LIMIT = 120  # CPU seconds that the tests of one mutant may take; who needs more hangs, and is stopped

Outcome = Literal["killed", "survived", "hangs"]


# Mutants ---------------------------------------------------------------------------------------------------


class Mutant(NamedTuple):
    """One change of one file.

    Attributes:
        file: Name of the file in ``algos/maths``.
        function: Qualified name of the function (or ``-`` at the top of the module).
        operator: Kind of change.
        before: Source of the smallest changed expression.
        after: What stands there instead.
        line: Where, for a reader; no part of the key.
        source: Whole mutated module.
    """

    file: str
    function: str
    operator: str
    before: str
    after: str
    line: int
    source: str

    @property
    def key(self) -> str:
        """Names the mutant as long as the expression stands, wherever it moves in the file."""
        return f"{self.file}:{self.function}: {self.before}  ->  {self.after}"


Place = ast.expr | ast.Return
Change = tuple[str, ast.AST]  # operator, and what stands there instead
ARITHMETIC: dict[type[ast.operator], tuple[type[ast.operator], ...]] = {
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.FloorDiv: (ast.Mult,),
}
COMPARISON: dict[type[ast.cmpop], tuple[type[ast.cmpop], ...]] = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
}
SWAPS = {
    "minimum": "maximum", "maximum": "minimum", "min": "max", "max": "min", "amin": "amax", "amax": "amin",
    "cummin": "cummax", "zeros_like": "ones_like", "ones_like": "zeros_like", "new_zeros": "new_ones",
    "new_ones": "new_zeros", "expm1": "exp",
}  # fmt: skip
DROPPED = ("clamp", "flip", "detach", "sqrt", "square", "exp", "cumsum", "reversed", "abs")  # f(x), x.f() -> x


def mutants_of(path: Path) -> list[Mutant]:
    """Every mutant of a file, in the order of its lines; the second of two equal changes is called ``(2)``."""
    text = path.read_text("utf-8")
    found: list[Mutant] = []
    seen: Counter[str] = Counter()
    for function, node in _expressions(ast.parse(text)):
        for operator, replacement in _changes(node):
            before, after = ast.unparse(node), ast.unparse(replacement)
            source = _replaced(text, node, after)
            mutant = Mutant(path.name, function, operator, before, after, node.lineno, source)
            seen[mutant.key] += 1
            again = seen[mutant.key]
            found.append(mutant if again == 1 else mutant._replace(after=f"{after} ({again})"))
    return sorted(found, key=lambda mutant: mutant.line)


def bodies_of(path: Path) -> dict[str, str]:
    """Hash of what each function of a file computes, its defaults included and its annotations and docstring not.

    An outcome is of a function as it was: a change elsewhere in it may make another mutant of the same name.
    """
    found: dict[str, list[str]] = {}
    for function, node in _expressions(ast.parse(path.read_text("utf-8"))):
        found.setdefault(f"{path.name}:{function}", []).append(ast.dump(node))
    return {name: hashlib.sha256("".join(dumped).encode()).hexdigest()[:16] for name, dumped in found.items()}


def _replaced(text: str, node: Place, after: str) -> str:
    """The module with one expression replaced, and every line where it was; positions in it count bytes."""
    lines = text.encode().splitlines(keepends=True)
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: (node.end_lineno or 0) - 1])) + (node.end_col_offset or 0)
    new = after if isinstance(node, ast.Return) else f"({after})"
    return (text.encode()[:start] + new.encode() + text.encode()[end:]).decode()


def _expressions(tree: ast.Module) -> Iterator[tuple[str, Place]]:
    """Everything that computes, with the name of its function; docstrings, annotations and messages are left alone."""

    def walk(node: ast.AST, name: str) -> Iterator[tuple[str, Place]]:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            name = node.name if name == "-" else f"{name}.{node.name}"
            children: list[ast.AST] = [*node.body]
            if isinstance(node, ast.FunctionDef):
                children += [default for default in (*node.args.defaults, *node.args.kw_defaults) if default]
        elif isinstance(node, ast.AnnAssign):
            children = [node.value] if node.value else []
        elif isinstance(node, ast.Import | ast.ImportFrom | ast.Raise):
            return
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            return  # a docstring
        elif isinstance(node, ast.Assign) and "Literal" in ast.unparse(node.value):
            return  # a type
        else:
            children = list(ast.iter_child_nodes(node))
        if isinstance(node, ast.expr | ast.Return):
            yield name, node
        for child in children:
            yield from walk(child, name)

    for statement in tree.body:
        yield from walk(statement, "-")


def _changes(node: Place) -> Iterator[Change]:
    if isinstance(node, ast.BinOp):
        for kind in ARITHMETIC.get(type(node.op), ()):
            yield "arithmetic", _with(node, op=kind())
        if isinstance(node.op, ast.BitAnd | ast.BitOr):
            yield "mask", node.left
            yield "mask", node.right
    elif isinstance(node, ast.Compare) and len(node.ops) == 1:
        for comparison in COMPARISON.get(type(node.ops[0]), ()):
            yield "comparison", _with(node, ops=[comparison()])
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Invert | ast.Not):
        yield "sign", node.operand
    elif isinstance(node, ast.IfExp):
        yield "condition", node.body
        yield "condition", node.orelse
    elif isinstance(node, ast.Constant):
        yield from (("constant", ast.Constant(value)) for value in _other_constants(node.value))
    elif isinstance(node, ast.Call):
        yield from _changes_of_call(node)
    elif isinstance(node, ast.Attribute) and node.attr in SWAPS:
        yield "swap", _with(node, attr=SWAPS[node.attr])
    elif isinstance(node, ast.Return) and isinstance(node.value, ast.Call | ast.BinOp) and _tensors(node.value):
        # the function returns early, with nothing: zeros of the right shape
        yield "nothing", ast.Return(ast.BinOp(node.value, ast.Mult(), ast.Constant(0)))


def _other_constants(value: object) -> tuple[str | bool | int | float, ...]:
    if isinstance(value, bool):
        return (not value,)
    if value in (0, 1) and isinstance(value, int | float):
        return (type(value)(1 - value),)
    if isinstance(value, int | float):
        return (value + 1,)
    if isinstance(value, str):  # names of reductions and modes: SWAPS knows those of `scatter_reduce`
        return (SWAPS[value],) if value in SWAPS else ()
    return ()


def _changes_of_call(node: ast.Call) -> Iterator[Change]:
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    if name == "where" and len(node.args) == 3:
        yield "mask", node.args[1]
        yield "mask", node.args[2]
    if name == "masked_fill" and isinstance(node.func, ast.Attribute):
        yield "mask", node.func.value
    if name in DROPPED:
        if isinstance(node.func, ast.Attribute) and not _is_module(node.func.value):
            yield "dropped", node.func.value
        elif node.args:
            yield "dropped", node.args[0]
    if name == "arange":
        yield "off by one", ast.BinOp(node, ast.Add(), ast.Constant(1))
    if name in ("minimum", "maximum", "addcmul"):
        yield from (("dropped", argument) for argument in node.args)


def _is_module(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "torch"


def _tensors(node: ast.expr) -> bool:
    """Whether a returned expression times 0 is something else: neither a dict nor zeros."""
    return not ast.unparse(node).endswith(("new_zeros(())", "zeros_like(x)", "zeros_like(logp)"))


def _with(node: ast.AST, **fields: object) -> ast.AST:
    changed = copy.copy(node)
    for name, value in fields.items():
        setattr(changed, name, value)
    return changed


# Trials ----------------------------------------------------------------------------------------------------


class Trial(NamedTuple):
    """What became of a mutant."""

    mutant: Mutant
    outcome: Outcome
    seconds: float  # of CPU time


@dataclass(frozen=True)
class Nursery:
    """A copy of the tree, and a process that has everything imported but the mathematics."""

    folder: Path
    wider: tuple[str, ...]

    @classmethod
    @contextlib.contextmanager
    def opened(cls, wider: tuple[str, ...] = WIDER) -> Iterator[Nursery]:
        """Copies the tree to a temporary folder, goes there and imports what every mutant needs."""
        before, path = Path.cwd(), list(sys.path)
        with tempfile.TemporaryDirectory(prefix="mutation-") as name:
            folder = Path(name)
            ignore = shutil.ignore_patterns("__pycache__", "*.safetensors", "golden")
            for part in ("algos", "convgym", "tests"):
                shutil.copytree(ROOT / part, folder / part, ignore=ignore)
            shutil.copy(ROOT / "pyproject.toml", folder)
            os.chdir(folder)
            sys.path[:] = [str(folder), *(p for p in sys.path if p not in ("", str(ROOT)))]
            sys.dont_write_bytecode = True
            try:
                for module in PRELOAD:
                    importlib.import_module(module)
                if any(m == "algos" or m.startswith("algos.") for m in sys.modules):
                    raise RuntimeError("Expected nothing of `algos` in memory, or mutants would be ignored.")
                yield cls(folder, wider)
            finally:
                os.chdir(before)
                sys.path[:] = path

    def stages(self, file: str) -> list[list[str]]:
        """The module's own test file, then everything else."""
        own = f"tests/algos/maths/test_{file}"
        wider = [str(p.relative_to(self.folder)) for name in self.wider for p in _test_files(self.folder / name)]
        first = [own] if (self.folder / own).exists() else []
        return [stage for stage in (first, [name for name in wider if name not in first]) if stage]

    def start(self, mutant: Mutant | None) -> int:
        """Forks a child that tests one mutant (``None``: the original); returns its process id."""
        pid = os.fork()
        if pid:
            return pid
        code = 70
        resource.setrlimit(resource.RLIMIT_CPU, (LIMIT, LIMIT))
        try:
            code = self._test(mutant)
        finally:
            os._exit(code)

    def _test(self, mutant: Mutant | None) -> int:
        """In the child: 0 if every test passed, 1 if one failed."""
        import hypothesis
        import pytest

        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        # Seeded, and without shrinking: whether a mutant is killed matters, not by which smallest example.
        phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
        hypothesis.settings.register_profile("mutation", derandomize=True, database=None, phases=phases, deadline=None)
        hypothesis.settings.load_profile("mutation")
        if mutant is not None and not plant(mutant):
            return 1  # it cannot even be imported
        for stage in self.stages(mutant.file if mutant else ""):
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *stage])
            if code:
                return 1
        return 0


def _test_files(path: Path) -> list[Path]:
    """A file, or the tests of a folder.

    Without those that compare with other packages, which would be skipped, and those that ask whether annotations are
    checked: a planted module is not, and every mutant would be killed by that.
    """
    found = sorted(path.glob("test_*.py")) if path.is_dir() else [path]
    return [p for p in found if p.exists() and p.name not in ("test_peers.py", "test_shapes.py")]


def plant(mutant: Mutant) -> bool:
    """Puts the mutant in the place of its module; false if it fails already while it is imported."""
    stem = mutant.file.removesuffix(".py")
    name = f"{MATHS.replace('/', '.')}.{stem}"
    module = types.ModuleType(name)
    module.__file__ = str(Path(MATHS) / mutant.file)
    sys.modules[name] = module
    try:
        exec(compile(mutant.source, module.__file__, "exec"), module.__dict__)
        setattr(importlib.import_module(MATHS.replace("/", ".")), stem, module)
    except Exception:
        return False
    return True


def run(nursery: Nursery, mutants: Sequence[Mutant], jobs: int, report: Callable[[Trial], None]) -> list[Trial]:
    """Tests the mutants, ``jobs`` at a time; in their order."""
    waiting = list(enumerate(mutants))[::-1]
    running: dict[int, int] = {}  # process id -> index
    done: dict[int, Trial] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            index, mutant = waiting.pop()
            running[nursery.start(mutant)] = index
        pid, status, used = os.wait4(-1, 0)
        index = running.pop(pid)
        code = os.waitstatus_to_exitcode(status)
        outcome: Outcome = "survived" if code == 0 else "killed" if code > 0 else "hangs"
        done[index] = Trial(mutants[index], outcome, used.ru_utime + used.ru_stime)
        report(done[index])
    return [done[index] for index in sorted(done)]


# The page --------------------------------------------------------------------------------------------------


def page(trials: Sequence[Trial], explained: dict[str, str], command: str, source: str) -> str:
    """The page as Markdown."""
    survivors = [t.mutant for t in trials if t.outcome == "survived"]
    known = [m for m in survivors if m.key in explained]
    rows: list[tuple[str, int, int, int, int]] = []
    for file in sorted({t.mutant.file for t in trials}):
        outcomes = Counter(t.outcome for t in trials if t.mutant.file == file)
        same = sum(m.file == file for m in known)
        holes = outcomes["survived"] - same
        rows.append((f"`{file}`", outcomes.total(), outcomes["killed"] + outcomes["hangs"], same, holes))
    rows.append(("all", *(sum(column) for column in zip(*(row[1:] for row in rows)))))  # type: ignore[arg-type]
    kinds = Counter(t.mutant.operator for t in trials)
    dead = Counter(t.mutant.operator for t in trials if t.outcome != "survived")
    texts = [[str(cell) for cell in row] for row in rows]
    by_kind = [(kind, str(count), str(dead[kind])) for kind, count in sorted(kinds.items())]
    lines = [
        "# Mutation check",
        "",
        "Do the tests notice when the mathematics is wrong? One thing at a time is changed in `algos/maths/*.py` (a "
        "*mutant*), and the property tests run against it. A mutant that fails a test is killed; one that survives "
        "shows a hole in the tests, unless it computes the same as the original: those are listed with the reason.",
        "",
        f"```bash\n{command}\n```",
        "",
        source,
        "",
        f"**{rows[-1][2]} of {rows[-1][1]} are killed ({rows[-1][2] / max(rows[-1][1], 1):.1%}); of those that compute "
        f"something else, {rows[-1][2]} of {rows[-1][2] + rows[-1][4]}.**",
        "",
        pages.table(("file", "mutants", "killed", "survivors that compute the same", "holes"), texts, numbers=True),
        "",
        pages.table(("change", "mutants", "killed"), by_kind, numbers=True),
        "",
    ]
    for title, some in (
        ("Survivors that compute the same", known),
        ("Holes", [m for m in survivors if m.key not in explained]),
    ):
        if some:
            lines += [f"## {title}", "", "| where | mutant | why |", "|---|---|---|"]
            lines += [
                f"| `{m.file}` `{m.function}` | `{_cell(m.before)}` → `{_cell(m.after)}` | {explained.get(m.key, '')} |"
                for m in some
            ]
            lines.append("")
    return "\n".join(lines)


def _cell(source: str) -> str:
    return " ".join(source.split()).replace("|", "\\|")


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; 1 if a mutant survived that nothing explains."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.mutation", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--files", nargs="*", metavar="NAME", help="files of algos/maths, such as kl.py; default all")
    parser.add_argument("--limit", type=int, help="test a random sample of so many mutants")
    parser.add_argument("--match", default="", help="only mutants whose key holds this text")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sample")
    parser.add_argument("--jobs", type=int, default=1, help="mutants at a time")
    parser.add_argument("--again", action="store_true", help="only survivors of the last run, and what changed")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.relative_to(ROOT)} and the JSON beside it")
    arguments = parser.parse_args(argv)
    os.environ.setdefault("OMP_NUM_THREADS", "1")

    files = sorted(p for p in (ROOT / MATHS).glob("*.py") if p.name != "__init__.py")
    if arguments.files:
        unknown = set(arguments.files) - {p.name for p in files}
        if unknown:
            parser.error(f"no such file in {MATHS}: {', '.join(sorted(unknown))}")
        files = [p for p in files if p.name in arguments.files]
    mutants = [m for path in files for m in mutants_of(path) if arguments.match in m.key]
    if arguments.limit is not None and arguments.limit < len(mutants):
        chosen = sorted(random.Random(arguments.seed).sample(range(len(mutants)), arguments.limit))
        mutants = [mutants[i] for i in chosen]
    if arguments.write and (arguments.files or arguments.match or arguments.limit is not None):
        parser.error("--write: expected a run over all mutants; leave out --files, --match and --limit")
    if arguments.again and not RECORD.exists():
        parser.error(f"--again goes on from {RECORD.relative_to(ROOT)}, which is not there; run without it first")
    earlier = json.loads(RECORD.read_text("utf-8")) if arguments.again else {"outcomes": {}, "bodies": {}}
    before: dict[str, Outcome] = earlier["outcomes"]
    bodies = {name: body for path in files for name, body in bodies_of(path).items()}
    dead = [m for m in mutants if before.get(m.key) in ("killed", "hangs") and _unchanged(m, earlier["bodies"], bodies)]
    mutants = [mutant for mutant in mutants if mutant not in dead]
    explained: dict[str, str] = json.loads(SURVIVORS.read_text("utf-8")) if SURVIVORS.exists() else {}

    def report(trial: Trial) -> None:
        if trial.outcome != "killed":
            note = "  (explained)" if trial.mutant.key in explained else ""
            print(f"{trial.outcome}: {trial.mutant.key}{note}", flush=True)

    with Nursery.opened() as nursery:
        status = os.waitstatus_to_exitcode(os.waitpid(nursery.start(None), 0)[1])
        if status:
            print("The tests fail on the unchanged tree: nothing can be learnt from mutants.", file=sys.stderr)
            return 2
        started = time.monotonic()
        trials = run(nursery, mutants, arguments.jobs, report)
    outcomes = Counter(trial.outcome for trial in trials)
    used = sum(trial.seconds for trial in trials) / max(len(trials), 1)
    wall = time.monotonic() - started
    print(f"{len(trials)} mutants: {dict(outcomes)}; {wall:.0f} s, {used:.1f} CPU seconds a mutant")
    if arguments.write:
        options = sys.argv[1:] if argv is None else list(argv)
        here = provenance.describe(" ".join(["python -m benchmarks.mutation", *options]))
        tested = len(trials)
        trials += [Trial(mutant, before[mutant.key], 0.0) for mutant in dead]
        source = f"{pages.source(here)}. {tested} of {len(trials)} mutants were tested in this run" + (
            "; the others were killed in an earlier one, and their functions are the same still."
            if dead
            else "."
        )
        PAGE.write_text(page(trials, explained, here["command"], source), "utf-8")
        record = {**here, "bodies": bodies, "outcomes": {trial.mutant.key: trial.outcome for trial in trials}}
        RECORD.write_text(json.dumps(record, indent=1) + "\n", "utf-8")
    holes = [t for t in trials if t.outcome == "survived" and t.mutant.key not in explained]
    return int(bool(holes))


def _unchanged(mutant: Mutant, before: dict[str, str], now: dict[str, str]) -> bool:
    name = f"{mutant.file}:{mutant.function}"
    return name in before and before[name] == now[name]


if __name__ == "__main__":
    raise SystemExit(main())
