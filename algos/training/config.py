"""The configuration of a run: one frozen dataclass whose field docs are the help of the command line."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import tyro
from tyro.conf import arg
from tyro.constructors import PrimitiveConstructorSpec

import algos
from convgym.core import SPLITS
from convgym.errors import ConfigError, UnknownNameError

PROFILES: dict[str, dict[str, Any]] = {
    # For pretrained models. Gradient accumulation counts groups: an update is `accumulation` of
    # them.
    "conservative": {
        "learning_rate": 1e-6,
        "group_size": 32,
        "episodes_per_update": 256,
        "max_grad_norm": 0.5,
        "schedule": "cosine",
        "warmup": 0.2,
        "eval_every": 25,
        "kl_limit": 0.02,
        "patience": 30,
        "precision": "fp32",
    },
    "balanced": {
        "learning_rate": 5e-6,
        "group_size": 16,
        "episodes_per_update": 64,
        "max_grad_norm": 1.0,
        "schedule": "cosine",
        "warmup": 0.1,
        "eval_every": 50,
        "kl_limit": 0.05,
        "precision": "auto",
    },
    "aggressive": {
        "learning_rate": 1e-5,
        "group_size": 8,
        "episodes_per_update": 16,
        "max_grad_norm": 2.0,
        "schedule": "cosine",
        "warmup": 0.05,
        "eval_every": 100,
        "precision": "auto",
    },
}
PROFILE_FIELDS: dict[str, dict[str, Any]] = {
    # What a profile sets in the algorithm, where the algorithm has such a field.
    "conservative": {"kl": {"beta": 0.1}, "low": 0.1, "high": 0.1},
    "balanced": {"kl": {"beta": 0.05}, "low": 0.2, "high": 0.2},
    "aggressive": {"kl": {"beta": 0.0}, "low": 0.3, "high": 0.3},
}
LEARNING_RATES: dict[str, tuple[float, float]] = {
    # model: (policy, critic); any other model is taken for a pretrained one
    "nano": (2.5e-4, 1e-3),  # twice as much wins first and collapses later: docs/lab-log.md
    "micro": (5e-4, 2e-3),
    "mini": (3e-4, 1e-3),
}
PRETRAINED_LEARNING_RATES = (5e-6, 1e-4)


def parse_fields(items: list[str]) -> dict[str, Any]:
    """Reads ``["high=0.28", "kl.beta=0.05"]``: values are JSON where they can be, and text otherwise.

    Raises:
        ValueError: If an item has no ``=`` or no name.
    """
    fields: dict[str, Any] = {}
    for item in items:
        path, equals, text = item.partition("=")
        if not equals or not all(path.split(".")):
            raise ValueError(f"expected NAME=VALUE, got {item!r}")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        *parents, name = path.split(".")
        inner = fields
        for parent in parents:
            inner = inner.setdefault(parent, {})
        inner[name] = value
    return fields


Fields = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="NAME=VALUE",
        instance_from_str=parse_fields,
        is_instance=lambda value: isinstance(value, dict),
        str_from_instance=lambda value: [f"{name}={json.dumps(x)}" for name, x in value.items()],
    ),
]


@dataclass(frozen=True)
class RunConfig:
    """One training run: an environment, an algorithm, a model, a seed, and a budget in episodes."""

    env: str = "convgym/CustomerService-v0"
    """Environment id; `convgym list` shows them."""
    env_kwargs: Annotated[Fields, arg(name="env-field")] = field(default_factory=dict)
    """Settings of the environment, e.g. difficulty=3 max_turns=8."""
    algo: str = "grpo"
    """Algorithm, or a preset of one."""
    algo_fields: Annotated[Fields, arg(name="algo-field")] = field(default_factory=dict)
    """Settings of the algorithm, e.g. high=0.28 kl.beta=0.05; its published setting by default."""
    model: str = "nano"
    """Embedded checkpoint (nano), smollm2-135m, or the folder of a Hugging Face causal language model."""
    init: int = 0
    """Which of an embedded checkpoint's initialisations to start from."""
    seed: int = 0
    """Root of every random stream of the run. Equal seeds meet equal scenarios, whatever the algorithm."""

    updates: int = 20
    """Iterations of collecting and learning."""
    episodes_per_update: int = 64
    """Conversations in an iteration."""
    group_size: int = 8
    """Conversations that share a scenario and a user."""
    lanes: int = 64
    """Conversations held at once."""
    engine: Literal["builtin", "vllm"] = "builtin"
    """What samples: the built-in engine, or vLLM in this process, if it is installed (docs/guides/vllm.md)."""
    temperature: float = 1.0
    """Of sampling; the learner divides its logits by it too."""
    max_turn_tokens: int = 64
    """Most tokens that the agent may say in one turn."""
    max_context: int | None = None
    """Most tokens in a conversation; the model's own limit by default."""
    max_failures: float = 0.1
    """Share of an iteration's conversations that may break (an environment raised) before the run stops."""

    learning_rate: float | None = None
    """Peak learning rate of the policy; by default the model's own (config.json shows it)."""
    critic_learning_rate: float | None = None
    """Peak learning rate of the critic's head; by default the model's own."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up."""
    warmup: float = 0.0
    """Share of the updates that warm up."""
    weight_decay: float = 0.0
    """Of matrices; norms, biases and embeddings are never decayed."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    kl_limit: float | None = None
    """Halve the learning rate when an update moves the policy further than this, in nats a token."""
    critic: Literal["shared", "detached", "own"] = "shared"
    """Where a critic reads: the policy's trunk, the same without training it, or a copy of its own."""
    critic_warmup: int = 0
    """Updates at the start in which only the critic learns (vapo's paper takes 50)."""
    mismatch_limit: float = 0.02
    """Weight tokens by learner over sampler once the two disagree by more than this, in nats a token."""
    importance_cap: float = 2.0
    """Upper bound of that weight."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Of the learner's matrix products; auto is bf16 on an accelerator that has it, fp32 elsewhere."""
    micro_tokens: int = 2048
    """Most tokens computed at once; equal beginnings of rows count once. Changes memory and speed, not the gradient."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, less memory."""
    control: Literal["none", "shuffled_rewards"] = "none"
    """shuffled_rewards deals the episodes' rewards out at random: a run that must learn nothing."""

    eval_every: int = 10
    """Evaluate after every so many updates; before the first and after the last one always."""
    eval_episodes: int = 64
    """Held-out conversations in an evaluation, the same ones each time."""
    eval_split: str = "val"
    """Split that evaluations draw from."""
    eval_modes: tuple[Literal["sample", "greedy"], ...] = ("sample",)
    """Decoding in evaluations: sample at the training temperature, greedy, or both."""
    patience: int | None = None
    """Stop after so many evaluations without a new best return; never by default."""
    save_every: int = 10
    """Save a checkpoint after every so many updates; after the last one always."""
    keep: int = 2
    """Checkpoints that stay on disk."""

    out: str | None = None
    """Folder of the run, which must not exist; runs/ENV/ALGO-SEED by default."""
    tensorboard: bool = True
    """Write curves for TensorBoard."""
    wandb: str | None = None
    """Weights & Biases project to log to."""
    quiet: bool = False
    """Print no progress."""
    threads: int = 1
    """Torch threads; more than one pays from about 100M parameters."""
    device: Literal["auto", "cpu"] = "auto"
    """auto takes an accelerator if there is one."""

    def __post_init__(self) -> None:
        """Refuses illegal values, and values that contradict each other.

        Raises:
            ConfigError: Names the field, what was expected and what came.
            UnknownNameError: For an unknown algorithm.
        """
        object.__setattr__(self, "eval_modes", tuple(self.eval_modes))
        for name, (legal, expected) in _RULES.items():
            value = getattr(self, name)
            if not legal(value):
                raise ConfigError(f"{name}: expected {expected}, got {value!r}.")
        if self.episodes_per_update % self.group_size:
            raise ConfigError(
                f"episodes_per_update: expected a multiple of group_size = {self.group_size}, got "
                f"{self.episodes_per_update}; an iteration is made of whole groups."
            )
        if self.algo not in algos.names():
            raise UnknownNameError.of("algorithm", self.algo, algos.names())
        if self.algo == "bc":
            raise ConfigError(
                "algo: 'bc' imitates demonstrations, and a run has none; give them to a Learner, as "
                "docs/algorithms/bc.md and benchmarks/pretrain.py do, or choose another algorithm."
            )
        if self.algo_fields or self.group_size == 1:  # else nothing can be wrong, and torch stays out
            algorithm = algos.make(self.algo, **self.algo_fields)
            if "group" in algorithm.needs and self.group_size == 1:
                raise ConfigError(
                    f"group_size: expected at least 2 for {self.algo!r}, which compares conversations of a "
                    "group, got 1; raise it, or choose an algorithm without groups, such as 'ppo'."
                )

    @classmethod
    def profile(cls, name: str, **changes: Any) -> Self:
        """A setting for pretrained models: ``conservative``, ``balanced`` or ``aggressive``.

        It sets learning rate and schedule, group size and batch, clipping of gradients and of ratios, the
        pull towards the reference, precision, evaluation and early stopping.

        Args:
            name: The profile.
            changes: Fields that differ from it; ``algo_fields`` are added to the profile's.

        Raises:
            UnknownNameError: For an unknown profile.
        """
        if name not in PROFILES:
            raise UnknownNameError.of("profile", name, PROFILES)
        algo = changes.get("algo", cls.algo)
        known = algos.to_config(algos.make(algo))
        own = {key: value for key, value in PROFILE_FIELDS[name].items() if key in known}
        fields = own | dict(changes.pop("algo_fields", {}))
        return cls(**(PROFILES[name] | changes), algo_fields=fields)

    def resolved(self) -> Self:
        """The same run with every default that depends on the model or the machine written out."""
        policy, critic = LEARNING_RATES.get(self.model, PRETRAINED_LEARNING_RATES)
        return dataclasses.replace(
            self,
            learning_rate=policy if self.learning_rate is None else self.learning_rate,
            critic_learning_rate=critic if self.critic_learning_rate is None else self.critic_learning_rate,
            precision=_precision(self.device) if self.precision == "auto" else self.precision,
            out=f"runs/{self.env.rpartition('/')[2]}/{self.algo}-{self.seed}"
            if self.out is None
            else self.out,
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON-plain dict; :meth:`from_json` inverts it."""
        plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Self:
        """Builds a configuration from what :meth:`to_json` gave.

        Raises:
            UnknownNameError: For a field of another version.
        """
        known = [f.name for f in dataclasses.fields(cls)]
        for name in data:
            if name not in known:
                raise UnknownNameError.of("field of RunConfig", name, known)
        return cls(**data)

    @classmethod
    def load(cls, folder: Path | str) -> Self:
        """Reads the configuration of an earlier run.

        Raises:
            ConfigError: If the folder holds no run.
        """
        path = Path(folder) / "config.json"
        try:
            return cls.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            raise ConfigError(f"Expected the folder of a run, got {str(folder)!r}: {error}.") from error


def _precision(device: str) -> Literal["fp32", "bf16"]:
    import torch

    return (
        "bf16" if device != "cpu" and torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"
    )


def _positive(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _above_zero(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf")


_WHOLE = (_positive, "a whole number of at least 1")
_WHOLE_OR_NONE = (lambda v: v is None or _positive(v), "a whole number of at least 1, or none")
_ABOVE = (_above_zero, "a number above 0")
_ABOVE_OR_NONE = (lambda v: v is None or _above_zero(v), "a number above 0, or none")
_FLAG = (lambda v: isinstance(v, bool), "true or false")


def _one_of(*legal: str) -> tuple[Any, str]:
    return (lambda value: value in legal, "one of " + ", ".join(legal))


_RULES: dict[str, tuple[Any, str]] = {
    **dict.fromkeys(("updates", "episodes_per_update", "group_size", "lanes", "max_turn_tokens"), _WHOLE),
    **dict.fromkeys(("micro_tokens", "eval_every", "eval_episodes", "save_every", "keep", "threads"), _WHOLE),
    **dict.fromkeys(("max_context", "patience"), _WHOLE_OR_NONE),
    **dict.fromkeys(("temperature", "max_grad_norm", "importance_cap"), _ABOVE),
    **dict.fromkeys(("learning_rate", "critic_learning_rate", "kl_limit"), _ABOVE_OR_NONE),
    **dict.fromkeys(("gradient_checkpointing", "tensorboard", "quiet"), _FLAG),
    **dict.fromkeys(
        ("seed", "init", "critic_warmup"), (lambda v: isinstance(v, int) and v >= 0, "a whole number of at least 0")
    ),
    **dict.fromkeys(
        ("env_kwargs", "algo_fields"), (lambda v: isinstance(v, Mapping), "a mapping of names to values")
    ),
    **dict.fromkeys(
        ("weight_decay", "mismatch_limit"), (lambda v: v == 0 or _above_zero(v), "a number of at least 0")
    ),
    "warmup": (lambda v: 0 <= v < 1, "a share in [0, 1)"),
    "max_failures": (lambda v: 0 <= v <= 1, "a share in [0, 1]"),
    "engine": _one_of("builtin", "vllm"),
    "schedule": _one_of("constant", "linear", "cosine"),
    "critic": _one_of("shared", "detached", "own"),
    "eval_split": _one_of(*SPLITS),
    "precision": _one_of("auto", "fp32", "bf16", "fp16"),
    "control": _one_of("none", "shuffled_rewards"),
    "device": _one_of("auto", "cpu"),
    "eval_modes": (lambda v: set(v) <= {"sample", "greedy"} and v, "at least one of sample, greedy"),
}


def from_args(args: Sequence[str], prog: str | None = None) -> tuple[RunConfig, bool]:
    """Reads a run from command-line arguments.

    Args:
        args: E.g. ``["--algo", "ppo", "--profile", "balanced", "--algo-field", "lam=0.9"]``. A profile sets
            defaults, which the other options override.
        prog: Name of the program in the help.

    Returns:
        The configuration, and whether to resume.

    Raises:
        ConfigError: For an illegal value.
        SystemExit: For an unknown option, or after ``--help``.
    """
    front = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    front.add_argument("--profile")
    front.add_argument("--algo", default=RunConfig.algo)
    front.add_argument("--out", default="")
    front.add_argument("--resume", action="store_true")
    known, _ = front.parse_known_args(args)
    default = RunConfig.profile(known.profile, algo=known.algo) if known.profile else RunConfig()
    if known.resume:  # a run goes on as it began; nobody need repeat its options
        if not known.out or not (Path(known.out) / "config.json").exists():
            raise ConfigError(
                f"resume: expected --out with the folder of a run, got {known.out!r}; name it, or leave out --resume "
                "to begin a new one."
            )
        default = RunConfig.load(known.out)

    def train(
        config: Annotated[RunConfig, arg(name="")] = default,
        profile: Literal["conservative", "balanced", "aggressive"] | None = None,
        resume: bool = False,
    ) -> tuple[RunConfig, bool]:
        """Train a policy on conversations.

        Args:
            config: The run.
            profile: Defaults for pretrained models, which the other options override.
            resume: Go on with the run in the output folder.
        """
        return dataclasses.replace(config, algo_fields=default.algo_fields | config.algo_fields), resume

    return tyro.cli(train, args=_joined(args), prog=prog)


def _joined(args: Sequence[str]) -> list[str]:
    """Joins repeated options that take several values: the last one would silently win."""
    out: list[str] = []
    fields: dict[str, list[str]] = {}
    current: list[str] = out
    for item in args:
        if item in ("--env-field", "--algo-field"):
            current = fields.setdefault(item, [])
        else:
            current = out if item.startswith("-") else current
            current.append(item)
    return out + [word for option, values in fields.items() for word in (option, *values)]
