"""One run: what the loop in ``train.py`` works on, and what it counts, writes and reads back."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import resource
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from transformers.utils import logging

import algos
from algos.learner import checkpoint
from algos.learner.learner import Learner, LearnerConfig
from algos.policies.embedded import save_policy
from algos.policies.load import Policy, load_policy
from algos.rollout.collect import CONTEXT_FULL, Collector, EpisodeRequest, Failure, group_requests
from algos.rollout.engine import Engine, SamplingEngine
from algos.rollout.episodes import TokenEpisode
from algos.training.config import RunConfig
from algos.training.envs import make_envs
from algos.training.loggers import Several, open_loggers
from convgym.errors import ConfigError, EnvError
from convgym.seeding import derive_seed

KEPT_SAMPLES = 3  # conversations of an evaluation that are written down
PHASES = ("engine", "env", "chat", "save")  # of a training record, beside rollout and update
MAY_CHANGE = {  # what a resumed run may set anew; any other change would make it another run
    *("updates", "eval_every", "save_every", "keep", "patience", "max_failures"),
    *("out", "tensorboard", "wandb", "quiet"),
}


@dataclass
class Counts:
    """What a run counts; part of its checkpoints."""

    step: int = 0
    episodes: int = 0
    action_tokens: int = 0
    failures: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    best: float | None = None  # best return of an evaluation
    since_best: int = 0  # evaluations since
    start: dict[str, Any] = field(default_factory=dict)  # the untrained policy's evaluation
    final: dict[str, Any] = field(default_factory=dict)  # the latest evaluation


class Run:
    """Everything a run holds. Its folder appears only after all of it could be made.

    Args:
        config: The run; defaults that depend on the model are filled in.
        resume: Goes on from the last checkpoint in the folder, if there is one.

    Attributes:
        config: The configuration, resolved.
        folder: Where everything is written.
        counts: What was done so far.
        learner: Trains the policy.
        collector: Samples conversations.

    Raises:
        ConfigError: If a setting is illegal, or the folder is taken by another run.
        UnknownNameError: If there is no such environment or algorithm.
        ModelError: If the model cannot be used.
        CheckpointError: If all checkpoints are damaged, or were made for another model.
    """

    def __init__(self, config: RunConfig, *, resume: bool = False) -> None:
        self.config = config = config.resolved()
        self.folder = Path(str(config.out))
        _check_folder(config, self.folder, resume)
        torch.set_num_threads(config.threads)
        torch.manual_seed(derive_seed(config.seed, "torch"))  # for models that draw; ours draw from named streams
        no_progress_bars()
        algorithm = algos.make(config.algo, **config.algo_fields)
        self.policy = load_policy(config.model, init=config.init)
        self.envs = make_envs(config.env, config.lanes, config.env_kwargs)
        self.learner = Learner(self.policy, algorithm, _learner_config(config))
        self.processes = self.learner.accelerator
        self.counts = Counts()
        found = checkpoint.newest(self.folder / "checkpoints") if resume else None
        if found is not None:
            self.learner.restore(found)
            self.counts = Counts(**found.state["counts"])
        self.collector = Collector(self.envs, self.policy, engine=_make_engine(config, self.policy))
        if self.processes.is_main_process:
            _open_folder(config, self.folder)
        self.processes.wait_for_everyone()
        self.logs = Several()
        self._phases = dict.fromkeys(PHASES, 0.0)  # seconds of each since the last training record
        self._marks = time.perf_counter(), time.process_time()

    @property
    def step(self) -> int:
        """Updates done."""
        return self.counts.step

    @property
    def done(self) -> bool:
        """Whether the budget is spent, or evaluations have stopped getting better."""
        patience = self.config.patience
        return self.step >= self.config.updates or (
            patience is not None and self.counts.since_best >= patience
        )

    def due(self, every: int) -> bool:
        """Whether something that happens after every so many updates, and at the end, happens now."""
        return self.step % every == 0 or self.done

    # -- what the loop does
    # ----------------------------------------------------------------------------------------

    def collect(self) -> list[TokenEpisode]:
        """Conversations of the next iteration, those of all processes, in the order of their groups.

        Raises:
            EnvError: If more than ``max_failures`` of them broke.
        """
        groups = self.config.episodes_per_update // self.config.group_size
        requests = group_requests(self.config.seed, self.step * groups, groups, self.config.group_size)
        return self._converse(requests, greedy=False)

    def update(self, episodes: Sequence[TokenEpisode]) -> dict[str, float]:
        """Trains on the conversations, or, as a control, on the same ones with their rewards dealt out at
        random."""
        if self.config.control == "shuffled_rewards":
            episodes = shuffled_rewards(episodes, derive_seed(self.config.seed, "shuffle", self.step))
        greedy = None
        if "greedy" in self.learner.algorithm.needs:
            groups = sorted({episode.group for episode in episodes})
            requests = [r for g in groups for r in group_requests(self.config.seed, g, 1, 1)]
            greedy = {e.group: e.episode_return for e in self._converse(requests, greedy=True)}
        return self.learner.update(episodes, greedy)

    def log(
        self, episodes: Sequence[TokenEpisode], metrics: Mapping[str, float], *, rollout: float, update: float
    ) -> None:
        """Counts an iteration and writes its record; times in seconds."""
        tokens = sum(int(episode.action.sum()) for episode in episodes)
        self._tick()
        self.counts.step = self.learner.step
        self.counts.episodes += len(episodes)
        self.counts.action_tokens += tokens
        record = {
            "kind": "train",
            "step": self.step,
            "episodes": self.counts.episodes,
            "action_tokens": self.counts.action_tokens,
            **summary(episodes),
            **metrics,
            "failures": self.counts.failures,
            "seconds_rollout": rollout,
            "seconds_update": update,
            **{f"seconds_{phase}": seconds for phase, seconds in self._phases.items()},
            "tokens_per_second": tokens / (rollout + update),
            "cpu_seconds": self.counts.cpu_seconds,
        }
        self.logs.log(record)
        self._phases = dict.fromkeys(PHASES, 0.0)

    def evaluate(self) -> None:
        """Has the held-out conversations, the same ones each time, and writes records and a few
        transcripts."""
        config = self.config
        requests = eval_requests(config.seed, config.eval_episodes, config.eval_split)
        records: list[dict[str, Any]] = []
        for mode in config.eval_modes:
            started, phases = time.perf_counter(), dict(self._phases)
            episodes = self._converse(requests, greedy=mode == "greedy")
            self._phases, took = phases, time.perf_counter() - started  # training's phases are its own
            head = {"kind": "eval", "step": self.step, "mode": mode, "split": config.eval_split}
            records.append({**head, "episodes": len(episodes), **summary(episodes)})
            self.logs.log({**records[-1], "seconds_eval": took})
            for episode in episodes[:KEPT_SAMPLES]:
                self.logs.conversation({**head, **sample(episode)})
        counts, first = self.counts, records[0]
        counts.start = counts.start or first
        counts.final = first
        better = counts.best is None or first["return"] > counts.best
        counts.best = first["return"] if better else counts.best
        counts.since_best = 0 if better else counts.since_best + 1

    def save(self) -> None:
        """Writes a checkpoint.

        Raises:
            CheckpointError: If it cannot be written; earlier ones are untouched.
        """
        self._tick()
        started = time.perf_counter()
        if self.processes.is_main_process:
            tensors, state = self.learner.snapshot()
            whole = {"learner": state, "counts": dataclasses.asdict(self.counts)}
            checkpoint.save(self.folder / "checkpoints", self.step, tensors, whole, keep=self.config.keep)
        self.processes.wait_for_everyone()
        self._phases["save"] += time.perf_counter() - started

    def finish(self) -> None:
        """Exports the policy and writes ``result.json``."""
        self._tick()
        if self.processes.is_main_process:
            temporary, final = self.folder / ".tmp-policy", self.folder / "policy"
            shutil.rmtree(temporary, ignore_errors=True)
            save_policy(self.policy, temporary)
            shutil.rmtree(final, ignore_errors=True)
            os.rename(temporary, final)
            self._write_result({"status": "done"})
        self.processes.wait_for_everyone()

    def anyone(self, wish: object) -> bool:
        """Whether a wish is held by any of the processes: they must all leave the loop at the same place."""
        held = torch.tensor(float(bool(wish)), device=self.processes.device)
        return bool(self.processes.reduce(held, "sum") > 0)

    @contextlib.contextmanager
    def recorded(self) -> Iterator[None]:
        """Opens and closes the loggers, and writes down why a run failed."""
        if self.processes.is_main_process:
            self.logs = open_loggers(self.config, self.folder, self.step if self.step else -1)
        try:
            with self.logs:
                yield
        except Exception as error:
            if self.processes.is_main_process:
                self._write_result({"status": "failed", "error": f"{type(error).__name__}: {error}"})
            raise
        finally:
            self.envs.close()
            self.collector.engine.close()

    # -- inside
    # ----------------------------------------------------------------------------------------------------

    def _converse(self, requests: Sequence[EpisodeRequest], *, greedy: bool) -> list[TokenEpisode]:
        """Has conversations, each process its share; the episodes of all, in the order of the requests."""
        index, processes = self.processes.process_index, self.processes.num_processes
        mine = np.array_split(np.arange(len(requests)), processes)[index]
        collected = self.collector.collect([requests[i] for i in mine], version=self.step, greedy=greedy)
        episodes, failures = collected.episodes, collected.failures
        for phase, seconds in collected.seconds.items():
            self._phases[phase] += seconds
        if processes > 1:
            episodes, failures = gather_object(episodes), gather_object(failures)
        self._set_aside(failures, len(requests))
        return episodes

    def _set_aside(self, failures: Sequence[Failure], asked: int) -> None:
        self.counts.failures += len(failures)
        if failures and self.processes.is_main_process:
            with (self.folder / "failures.jsonl").open("a", encoding="utf-8") as file:
                for failure in failures:
                    file.write(json.dumps({"step": self.step, **dataclasses.asdict(failure)}) + "\n")
        if len(failures) > self.config.max_failures * asked or len(failures) == asked:
            raise EnvError(
                f"Expected at most {self.config.max_failures:.0%} of the conversations to break; "
                f"{len(failures)} of {asked} did. All tracebacks are in {self.folder / 'failures.jsonl'}; "
                f"the first: {failures[0].error.strip().splitlines()[-1]}"
            )

    def _tick(self) -> None:
        now = time.perf_counter(), time.process_time()
        self.counts.seconds += now[0] - self._marks[0]
        self.counts.cpu_seconds += now[1] - self._marks[1]
        self._marks = now

    def _write_result(self, head: Mapping[str, Any]) -> None:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        names = ("step", "episodes", "action_tokens", "failures", "seconds", "cpu_seconds", "start", "final")
        result = {**head, **{n: getattr(self.counts, n) for n in names}, "peak_memory_mb": peak}
        _write(self.folder / "result.json", result)


def no_progress_bars() -> None:
    """Stops transformers from drawing over our own output while it reads and writes models."""
    of_transformers: Any = logging
    of_transformers.disable_progress_bar()


def eval_requests(seed: int, episodes: int, split: str) -> list[EpisodeRequest]:
    """Held-out conversations: the same ones in every evaluation of a run, and for every algorithm with its
    seed."""
    requests = group_requests(derive_seed(seed, "eval"), 0, episodes, 1)
    return [dataclasses.replace(request, options={"split": split}) for request in requests]


def shuffled_rewards(episodes: Sequence[TokenEpisode], seed: int) -> list[TokenEpisode]:
    """The same conversations with their returns dealt out at random, each paid at the end: nothing can be
    learnt."""
    donors = np.random.default_rng(seed).permutation(len(episodes))
    out = []
    for episode, donor in zip(episodes, donors):
        rewards = np.zeros_like(episode.rewards)
        rewards[-1] = episodes[donor].episode_return
        out.append(dataclasses.replace(episode, rewards=rewards))
    return out


def summary(episodes: Sequence[TokenEpisode]) -> dict[str, float]:
    """Means over conversations, under the names of the log."""
    columns: dict[str, list[float]] = {
        "return": [e.episode_return for e in episodes],
        "success": [e.success for e in episodes],
        "score": [e.score for e in episodes],
        "cost": [e.cost for e in episodes],
        "understood": [e.understood for e in episodes],
        "turns": [len(e.rewards) for e in episodes],
        "tokens_per_episode": [float(e.action.sum()) for e in episodes],
        "cut_turns": [e.cut_turns for e in episodes],
        "truncated": [e.truncated for e in episodes],
        "context_full": [e.end_reason == CONTEXT_FULL for e in episodes],
    }
    for name in sorted({name for e in episodes for name in e.reward_terms}):
        columns[f"reward/{name}"] = [e.reward_terms.get(name, 0.0) for e in episodes]
    return {name: float(np.mean(values)) for name, values in columns.items()}


def sample(episode: TokenEpisode) -> dict[str, Any]:
    """A conversation to look at: JSON-plain."""
    return {
        "success": episode.success,
        "return": episode.episode_return,
        "score": episode.score,
        "end_reason": episode.end_reason,
        "reward_terms": dict(episode.reward_terms),
        "env_seed": episode.env_seed,
        "messages": [dict(message) for message in episode.messages],
    }


def _make_engine(config: RunConfig, policy: Policy) -> SamplingEngine:
    """What samples, as the configuration names it.

    Raises:
        ConfigError: If it is vLLM, and that is absent or of another version.
    """
    settings: dict[str, Any] = {
        "eos_ids": policy.eos_ids,
        "lanes": config.lanes,
        "capacity": config.max_context,
        "temperature": config.temperature,
        "max_turn_tokens": config.max_turn_tokens,
    }
    if config.engine == "builtin":
        return Engine(policy.model, **settings)
    from algos.rollout.vllm import VllmEngine

    dtypes: dict[str, Any] = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
    return VllmEngine(policy.model, dtype=dtypes[config.precision], **settings)


def _learner_config(config: RunConfig) -> LearnerConfig:
    own = {f.name for f in dataclasses.fields(LearnerConfig)}
    return LearnerConfig(**{name: x for name, x in vars(config).items() if name in own})


def _check_folder(config: RunConfig, folder: Path, resume: bool) -> None:
    """Refuses a folder that is taken, and to go on with another run than the one begun."""
    if config.wandb is not None and find_spec("wandb") is None:
        raise ConfigError(
            "wandb: expected the package to be installed; `pip install wandb`, or leave it out."
        )
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not resume:
        raise ConfigError(
            f"out: expected a folder that does not exist, got {str(folder)!r}; choose another, or resume."
        )
    before, now = RunConfig.load(folder).to_json(), config.to_json()
    # Where the learning rate depends on the number of updates, another number is another run.
    free = MAY_CHANGE if config.schedule == "constant" and not config.warmup else MAY_CHANGE - {"updates"}
    changed = [name for name in now if name not in free and before.get(name) != now[name]]
    if changed:
        names = ", ".join(f"{name} ({before.get(name)!r} -> {now[name]!r})" for name in changed)
        raise ConfigError(f"Expected the run of {folder} to go on as it began, but these differ: {names}.")


def _open_folder(config: RunConfig, folder: Path) -> None:
    """Makes the folder with its ``config.json`` in one step, or writes the configuration of the resumed
    run."""
    if not (folder / "config.json").exists():
        temporary = folder.with_name(f".tmp-{folder.name}-{os.getpid()}")
        try:
            temporary.mkdir(parents=True)
            _write(temporary / "config.json", config.to_json())
            os.rename(temporary, folder)
        except OSError as error:
            raise ConfigError(f"out: expected a folder that can be made, got {str(folder)!r} ({error}).") from error
    _write(folder / "config.json", config.to_json())
    (folder / "result.json").unlink(missing_ok=True)


def _write(path: Path, data: Mapping[str, Any]) -> None:
    temporary = path.with_name(f".tmp-{path.name}")
    temporary.write_text(json.dumps(data, indent=1), encoding="utf-8")
    os.replace(temporary, path)
