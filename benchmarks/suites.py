"""The suites: which environments, which algorithms, how many seeds, what budget. Literal data, nothing else.

A budget counts updates and episodes, never seconds, so that a slow machine changes the time and not the
result. All entries of a suite share scenario seeds, user streams and starting checkpoints (common random
numbers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import algos
from convgym.errors import ConfigError, UnknownNameError

Control = Literal["none", "shuffled_rewards"]
Metric = Literal["last_fifth", "area", "final"]

METRICS: dict[Metric, str] = {
    "last_fifth": "success in the last fifth of training",
    "area": "mean success over all of training (area under the curve)",
    "final": "held-out success after training",
}


@dataclass(frozen=True)
class EnvSpec:
    """One environment of a suite.

    Attributes:
        id: Gymnasium id.
        kwargs: Keywords of `gym.make`, the same for training and evaluation; the split is the trainer's.
        cost: CPU time of a run relative to other environments; only orders the queue.
    """

    id: str
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 1.0

    @property
    def short(self) -> str:
        """The id without namespace: `CustomerService-v0`."""
        return self.id.rsplit("/", 1)[-1]


@dataclass(frozen=True)
class Entry:
    """One competitor: an algorithm with its fields and its tuned learning rate, or a control.

    Attributes:
        name: Name in the report, unique in the suite.
        algo: Name that `algos.make` knows.
        learning_rate: Tuned for the suite's model; see the comment beside each value.
        algo_fields: Fields of the algorithm that differ from its defaults.
        control: "none" for a competitor; anything else makes it a control, which is never ranked.
        settings: `RunConfig` fields that differ from the suite's.
        cost: CPU time relative to other entries; only orders the queue.
    """

    name: str
    algo: str
    learning_rate: float
    algo_fields: Mapping[str, Any] = field(default_factory=dict)
    control: Control = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)
    cost: float = 1.0


@dataclass(frozen=True)
class Suite:
    """Environments x entries x seeds under one budget.

    Attributes:
        name: Name for `--suite`.
        envs: Environments; each weighs the same in every aggregate.
        entries: Competitors and controls.
        seeds: Runs per environment and entry. Seed s starts from checkpoint `s % inits`.
        settings: `RunConfig` fields of every run: the budget and the model.
        inits: Starting checkpoints that the model ships.
        decision: The one metric that decides the ranking, fixed before the runs; the others are shown.
    """

    name: str
    envs: tuple[EnvSpec, ...]
    entries: tuple[Entry, ...]
    seeds: int
    settings: Mapping[str, Any]
    inits: int = 3
    decision: Metric = "last_fifth"

    def select(
        self, *, seeds: int | None = None, envs: Iterable[str] = (), algos: Iterable[str] = ()
    ) -> Suite:
        """The suite cut down to some environments and entries, or with another number of seeds.

        Raises:
            UnknownNameError: for an environment or entry that is not in the suite.
            ConfigError: for fewer than one seed.
        """
        if seeds is not None and seeds < 1:
            raise ConfigError(f"--seeds must be at least 1, got {seeds}.")
        by_env = {e.id: e for e in self.envs} | {e.short: e for e in self.envs}
        by_entry = {e.name: e for e in self.entries}
        wanted_envs = [_look_up(f"environment of suite {self.name!r}", name, by_env) for name in envs]
        wanted = [_look_up(f"entry of suite {self.name!r}", name, by_entry) for name in algos]
        return replace(
            self,
            seeds=seeds or self.seeds,
            envs=tuple(wanted_envs) or self.envs,
            entries=tuple(wanted) or self.entries,
        )

    def with_entries(self, names: Iterable[str], learning_rate: float) -> Suite:
        """The suite with registered algorithms beside its entries, at their defaults.

        Raises:
            UnknownNameError: for an algorithm that nobody has registered.
            ConfigError: for one that is in the suite already.
        """
        taken = {entry.name for entry in self.entries}
        for name in names:
            if name not in algos.names():
                raise UnknownNameError.of("algorithm", name, algos.names())
            if name in taken:
                raise ConfigError(f"--add: {name!r} is an entry of suite {self.name!r} already; leave it out.")
            taken.add(name)
        added = tuple(Entry(name, name, learning_rate) for name in names)
        return replace(self, entries=(*self.entries, *added))

    def runs(self) -> list[Run]:
        """Every run, the costliest first, so that the pool does not end on one long run."""
        runs = [
            Run(self, env, entry, s) for s in range(self.seeds) for env in self.envs for entry in self.entries
        ]
        return sorted(runs, key=lambda run: -run.cost)


@dataclass(frozen=True)
class Run:
    """One training run of a suite."""

    suite: Suite
    env: EnvSpec
    entry: Entry
    seed: int

    @property
    def name(self) -> str:
        """Its folder below `runs/`: environment, entry, seed."""
        return f"{self.env.short}/{self.entry.name}/seed-{self.seed}"

    @property
    def cost(self) -> float:
        """Relative CPU time."""
        return self.env.cost * self.entry.cost

    def config(self) -> dict[str, Any]:
        """Fields of `algos.training.config.RunConfig`, all but `out`; JSON-plain, so they can be compared."""
        return {
            **self.suite.settings,
            **self.entry.settings,
            "env": self.env.id,
            "env_kwargs": dict(self.env.kwargs),
            "algo": self.entry.algo,
            "algo_fields": dict(self.entry.algo_fields),
            "learning_rate": self.entry.learning_rate,
            "control": self.entry.control,
            "seed": self.seed,
            "init": self.seed % self.suite.inits,
            "threads": 1,
        }


def _look_up(kind: str, name: str, known: Mapping[str, Any]) -> Any:
    if name not in known:
        raise UnknownNameError.of(kind, name, known)
    return known[name]


CUSTOMER_SERVICE = EnvSpec("convgym/CustomerService-v0", {"difficulty": 2}, cost=1.5)
SLOT_FILLING = EnvSpec("convgym/SlotFilling-v0", {"difficulty": 2})
TEXT_BANDIT = EnvSpec("convgym/TextBandit-v0", {"difficulty": 2}, cost=0.5)

# Learning rates: the best of two or three a competitor, in single runs on both environments (docs/lab-log.md).
# PPO keeps its clipped objective; with 20 updates there is no time to learn a critic that bootstraps over 60 tokens, so
# lambda and the discount are 1, the critic reads the trunk without moving it, and two passes are whole-batch steps.
GRPO = Entry("grpo", "grpo", learning_rate=2.5e-4)
PPO = Entry(
    "ppo",
    "ppo",
    learning_rate=2e-4,
    algo_fields={"epochs": 2, "minibatches": 1, "lam": 1.0, "gamma_turn": 1.0},
    settings={"critic": "detached"},
    cost=1.8,
)
REINFORCE = Entry("reinforce", "reinforce", learning_rate=3e-4)
SHUFFLED = Entry("reinforce-shuffled", "reinforce", learning_rate=3e-4, control="shuffled_rewards")

# The zoo: every algorithm that learns from its own conversations. Rates are the best of four on SlotFilling, the same
# four for all, chosen by area (docs/benchmarks/rates.json); the zoo itself is measured on other environments.
# Where the idea is in the clipping, four steps an iteration let it act: with one step grpo, gspo, gmpo and sapo are one
# algorithm, and `grpo-4` is what they are to be compared with. Critics: as PPO above.
FOUR_STEPS = {"minibatches": 4}
MONTE_CARLO_CRITIC = {"epochs": 2, "minibatches": 1, "lam": 1.0, "gamma_turn": 1.0}
ZOO = (
    Entry("awr", "awr", learning_rate=2.5e-4),
    Entry("raft", "raft", learning_rate=2.5e-4),
    Entry("topr", "topr", learning_rate=2.5e-4),
    Entry("reinforce", "reinforce", learning_rate=2.5e-4),
    Entry("reinforce_pp", "reinforce_pp", learning_rate=2.5e-4),
    Entry("reinforce_pp_baseline", "reinforce_pp_baseline", learning_rate=2.5e-4),
    Entry("rebn", "rebn", learning_rate=2.5e-4),
    Entry("remax", "remax", learning_rate=2.5e-4, cost=1.3),
    Entry("grpo", "grpo", learning_rate=2.5e-4),
    Entry("grpo-4", "grpo", learning_rate=2.5e-4, algo_fields=FOUR_STEPS),
    Entry("dr_grpo", "dr_grpo", learning_rate=2.5e-4),
    Entry("rloo", "rloo", learning_rate=2.5e-4),
    Entry("dapo", "dapo", learning_rate=2.5e-4, algo_fields=FOUR_STEPS),
    Entry("lite_ppo", "lite_ppo", learning_rate=2.5e-4),
    Entry("gspo", "gspo", learning_rate=2.5e-4, algo_fields=FOUR_STEPS),
    Entry("maxrl", "maxrl", learning_rate=2.5e-4),
    Entry("cispo", "cispo", learning_rate=1.25e-4, algo_fields=FOUR_STEPS),
    Entry("sapo", "sapo", learning_rate=2.5e-4, algo_fields=FOUR_STEPS),
    Entry("gmpo", "gmpo", learning_rate=1.25e-4, algo_fields=FOUR_STEPS),
    Entry("gigpo", "gigpo", learning_rate=5e-4),
    Entry("grpo_advantage_clip", "grpo_advantage_clip", learning_rate=2.5e-4),
    Entry("ppo", "ppo", 2.5e-4, MONTE_CARLO_CRITIC, settings={"critic": "detached"}, cost=1.8),
    Entry("ppo_turn", "ppo_turn", 2.5e-4, MONTE_CARLO_CRITIC, settings={"critic": "detached"}, cost=1.8),
    Entry("ppo_bilevel", "ppo_bilevel", 2.5e-4, MONTE_CARLO_CRITIC, settings={"critic": "detached"}, cost=1.8),
    Entry("vapo", "vapo", 2.5e-4, {"epochs": 2, "minibatches": 1, "alpha": 1.0},
          settings={"critic": "detached", "critic_warmup": 2}, cost=1.8),
)  # fmt: skip
RATES = (6.25e-5, 1.25e-4, 2.5e-4, 5e-4)

# Held-out evaluation and checkpoint at the start and at the end only; the benchmark reads the log files.
UNWATCHED = {
    "eval_every": 10**6,
    "save_every": 10**6,
    "eval_modes": ("sample", "greedy"),
    "tensorboard": False,
    "quiet": True,
}
QUICK_BUDGET = {
    "model": "nano",
    "updates": 20,
    "episodes_per_update": 64,
    "group_size": 8,
    "eval_episodes": 128,
    **UNWATCHED,
}

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            name="smoke",
            envs=(SLOT_FILLING,),
            entries=(GRPO, PPO, REINFORCE),
            seeds=1,
            settings={
                "model": "nano",
                "updates": 3,
                "episodes_per_update": 32,
                "group_size": 8,
                "eval_episodes": 32,
                **UNWATCHED,
            },
        ),
        Suite(
            name="quick",
            envs=(CUSTOMER_SERVICE, SLOT_FILLING),
            entries=(GRPO, PPO, REINFORCE, SHUFFLED),
            seeds=4,
            settings=QUICK_BUDGET,
        ),
        Suite(
            name="zoo",
            envs=(CUSTOMER_SERVICE, TEXT_BANDIT),
            entries=(*ZOO, SHUFFLED),
            seeds=6,
            settings=QUICK_BUDGET,
        ),
        Suite(
            name="zoo-rates",
            envs=(SLOT_FILLING,),
            entries=tuple(
                replace(e, name=f"{e.name}@{rate:g}", learning_rate=rate) for e in ZOO for rate in RATES
            ),
            seeds=1,
            settings=QUICK_BUDGET,
            decision="area",
        ),
    )
}


def get(name: str) -> Suite:
    """The suite called `name`.

    Raises:
        UnknownNameError: with the nearest name.
    """
    return _look_up("suite", name, SUITES)  # type: ignore[no-any-return]
