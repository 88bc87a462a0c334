"""The vLLM engine: the same conversations as the built-in engine's, from weights that are handed over in place.

What needs vLLM is skipped where it is not installed; `make test-vllm` makes an environment for it.
"""

from __future__ import annotations

import copy
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

import algos
from algos.policies.embedded import save_policy
from algos.policies.load import Policy, load_policy
from algos.rollout import vllm as module
from algos.rollout.collect import Collector, group_requests
from algos.rollout.engine import Engine
from algos.rollout.episodes import TokenEpisode, collate
from algos.rollout.vllm import MOST_CACHE, VllmEngine, cache_bytes, check_version, installed_version, save_weights
from algos.training.config import RunConfig
from algos.training.envs import make_envs
from algos.training.train import train
from convgym.errors import CapacityError, ConfigError, DivergedError, ModelError
from tests.algos.learner.made import conversations, learner_of
from tests.algos.rollout.test_engine import Talk, ids_of, opening_of, talk
from tests.algos.training.made import run_config

ENV = "convgym/CustomerService-v0"
LANES, TEMPERATURE = 8, 0.8
# What sampler and learner may differ by in float32, in nats: the bound of the built-in engine's own test. The largest
# difference seen was 5e-5: a logit of size 30 has a unit in the last place of 2e-6, and some dozens of them add up.
CLOSE = 1e-4


# -- without vLLM ------------------------------------------------------------------------------


@pytest.mark.parametrize("found", ["0.32.0", "0.32.1", "0.32.0.post1+cpu"])
def test_the_version_that_was_proved_is_taken(found: str) -> None:
    check_version(found)


@pytest.mark.parametrize("found", ["0.31.0", "0.33.0", "0.3.2", "1.32.0", "0.320.0"])
def test_another_version_is_refused_by_name(found: str) -> None:
    with pytest.raises(ConfigError, match=rf"expects vLLM 0\.32, got {found}: `pip install"):
        check_version(found)


def test_a_run_without_vllm_says_how_to_install_it(
    tiny_policy: Policy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "installed_version", lambda: None)
    with pytest.raises(ConfigError, match=r"expects vLLM 0\.32, and none is installed: `pip install"):
        train(run_config(save_policy(tiny_policy, tmp_path / "model"), tmp_path / "run", engine="vllm"))
    assert not (tmp_path / "run").exists()


def test_a_vllm_that_cannot_be_imported_is_a_named_error(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_version", lambda: "0.32.0")
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"cannot be imported.*uninstall torchvision"):
        VllmEngine(tiny_policy.model, eos_ids=tiny_policy.eos_ids)


def test_a_process_of_a_group_is_refused(tiny_policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "installed_version", lambda: "0.32.0")
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        with pytest.raises(ConfigError, match=r"process group of its own.*one process"):
            VllmEngine(tiny_policy.model, eos_ids=tiny_policy.eos_ids)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"lanes": 0}, ConfigError, "lanes = 0"),
        ({"max_turn_tokens": 0}, ConfigError, "max_turn_tokens = 0"),
        ({"temperature": 0.0}, ConfigError, "temperature = 0.0: expected a positive number"),
        ({"temperature": 0.009}, ConfigError, r"temperature = 0\.009: expected at least 0\.01, vLLM's lowest"),
        ({"dtype": "fp8"}, ConfigError, "dtype = 'fp8': expected one of float32, bfloat16, float16"),
        ({"capacity": 513}, CapacityError, "context has 512; set max_context to at most 512"),
    ],
)
def test_illegal_settings_are_refused_before_anything_is_loaded(
    tiny_policy: Policy, settings: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        VllmEngine(tiny_policy.model, eos_ids=tiny_policy.eos_ids, **settings)


def test_a_run_names_the_engines_there_are() -> None:
    with pytest.raises(ConfigError, match=r"engine: expected one of builtin, vllm, got 'sglang'\."):
        RunConfig(engine="sglang")  # type: ignore[arg-type]
    assert RunConfig(engine="vllm").engine == "vllm" and RunConfig().engine == "builtin"


def test_weights_are_known_by_the_names_in_the_file(tiny_policy: Policy, tmp_path: Path) -> None:
    names = save_weights(tiny_policy.model, tmp_path)
    assert (tmp_path / "config.json").is_file()
    state = tiny_policy.model.state_dict()
    assert names == [name for name in state if name != "lm_head.weight"]  # tied to the embedding: saved once
    assert "lm_head.weight" in state


def test_weights_that_are_renamed_in_the_file_cannot_be_handed_over(tmp_path: Path) -> None:
    """Experts are one tensor in memory and many in the file: vLLM reads the names of the file."""
    config: Any = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(ModelError, match=r"MixtralForCausalLM is saved under other names .*experts.* and \d+ more"):
        save_weights(MixtralForCausalLM(config), tmp_path)


def test_the_cache_holds_all_lanes_up_to_a_limit(tiny_policy: Policy) -> None:
    config = tiny_policy.model.config
    # 2 (keys and values) x 2 layers x 1 head x 16 wide x 4 bytes = 256 bytes a token; 100 tokens are 4 blocks of 32,
    # and one is vLLM's own.
    assert cache_bytes(config, lanes=3, capacity=100, size=4) == 3 * 256 * 5 * 32
    assert cache_bytes(config, lanes=3, capacity=96, size=2) == 3 * 128 * 4 * 32
    assert cache_bytes(config, lanes=10**9, capacity=100, size=4) == MOST_CACHE
    huge = 10**9
    assert cache_bytes(config, lanes=2, capacity=huge, size=4) == 256 * 32 * (math.ceil(huge / 32) + 1) > MOST_CACHE


def test_the_version_of_an_installed_vllm_is_found_without_importing_it() -> None:
    assert (installed_version() is None) == (find_spec("vllm") is None)


# -- a learner whose sampler is another engine -------------------------------------------------


@pytest.mark.parametrize("name", ["ppo", "grpo", "reinforce"])
def test_another_engines_tokens_are_weighted_from_the_first_update(tiny_policy: Policy, name: str) -> None:
    episodes = conversations(tiny_policy)
    off = [replace(e, logp=(e.logp + np.float32(0.01) * e.action)) for e in episodes]  # within mismatch_limit
    own, other = (learner_of(tiny_policy, name, learning_rate=0.0, engine=engine) for engine in ("builtin", "vllm"))
    assert "importance_weight" not in own.update(off)
    for _ in range(2):
        metrics = other.update(off)
        assert metrics["importance_weight"] == pytest.approx(math.exp(-0.01), abs=1e-5)
        assert metrics["mismatch"] == pytest.approx(0.01, abs=1e-5) and other.config.mismatch_limit > 0.01


def test_another_engines_log_probabilities_are_never_the_learners_own(tiny_policy: Policy) -> None:
    """With several steps an update the clip's ratio would begin away from 1."""
    off = [replace(e, logp=(e.logp + np.float32(0.01) * e.action)) for e in conversations(tiny_policy)]
    batch = collate(off)
    several = replace(algos.make("grpo"), epochs=2)
    trusting = learner_of(tiny_policy, several, engine="builtin")._observe(batch, None).old_logp
    assert trusting is not None and torch.equal(trusting, batch.behaviour_logp)
    scored = learner_of(tiny_policy, several, engine="vllm")._observe(batch, None).old_logp
    assert scored is not None
    torch.testing.assert_close(scored, batch.behaviour_logp - 0.01 * batch.action, rtol=0, atol=1e-5)


# -- with vLLM ---------------------------------------------------------------------------------


ABSENT = "vLLM is not installed: `make test-vllm` makes an environment for it"


@pytest.fixture(scope="module")
def needs_vllm(request: pytest.FixtureRequest) -> None:
    if find_spec("vllm") is None:
        pytest.skip(ABSENT)
    if "slow" not in request.config.getoption("markexpr"):
        pytest.skip("minutes: `make test-vllm`")


@pytest.fixture(scope="module")
def policy() -> Policy:
    """The smallest embedded policy with heads of a width that vLLM's CPU kernels take."""
    return load_policy("mini")


class Opener:
    """Gives the engine of a dtype, with no conversation in it; a process can have one at a time."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.engines: dict[str, VllmEngine] = {}

    def __call__(self, dtype: Any = "float32") -> VllmEngine:
        if dtype not in self.engines:
            self.close()
            self.engines[dtype] = VllmEngine(
                self.policy.model,
                eos_ids=self.policy.eos_ids,
                lanes=LANES,
                max_turn_tokens=12,
                temperature=TEMPERATURE,
                dtype=dtype,
            )
        return self.engines[dtype]

    def close(self) -> None:
        while self.engines:
            self.engines.popitem()[1].close()


@pytest.fixture(scope="module")
def opened(needs_vllm: None, policy: Policy) -> Iterator[Opener]:
    opener = Opener(policy)
    yield opener
    opener.close()


Say = Callable[[str, np.ndarray], None]


@pytest.fixture
def say(capsys: pytest.CaptureFixture[str]) -> Say:
    """Prints how far sampler and learner are apart: the figures of docs/guides/vllm.md."""

    def out(dtype: str, apart: np.ndarray) -> None:
        apart = np.abs(apart)
        with capsys.disabled():
            print(f"\n{dtype}: mean {apart.mean():.2g}, largest {apart.max():.2g} nats, {len(apart)} tokens")

    return out


@contextmanager
def changed(policy: Policy) -> Iterator[None]:
    """Other weights for a while, far enough from the first that every log-probability differs."""
    saved = copy.deepcopy(policy.model.state_dict())
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in policy.model.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=noise))
    try:
        yield
    finally:
        policy.model.load_state_dict(saved)


def had(engine: VllmEngine, count: int = 16, **settings: Any) -> dict[int, Talk]:
    """Conversations of four turns over made-up tokens; the openings of each four are the same."""
    spoken: Any = engine
    return talk(spoken, count, turns=4, **settings)


def differences(policy: Policy, talks: dict[int, Talk], temperature: float) -> np.ndarray:
    """Log-probability as sampled minus that of a forward over the whole conversation, of every sampled token."""
    found = []
    for ids, turns in talks.values():
        with torch.inference_mode():
            logp = torch.log_softmax(policy.model(torch.tensor([ids])).logits[0].float() / temperature, -1)
        for start, turn in turns:
            assert turn.ids.tolist() == ids[start : start + len(turn.ids)]
            expected = logp[torch.arange(start, start + len(turn.ids)) - 1, torch.from_numpy(turn.ids)]
            found.append(turn.logp - expected.numpy())
    return np.concatenate(found)


@pytest.mark.slow
def test_log_probabilities_are_those_of_the_learner(opened: Opener, policy: Policy, say: Say) -> None:
    talks = had(opened())
    say("float32", differences(policy, talks, TEMPERATURE))
    assert {turn.reason for _, turns in talks.values() for _, turn in turns} == {"eos", "cap"}
    assert np.abs(differences(policy, talks, TEMPERATURE)).max() < CLOSE
    assert np.abs(differences(policy, had(opened(), greedy=True), 1.0)).max() < CLOSE


@pytest.mark.slow
def test_greedy_conversations_are_the_built_in_engines(opened: Opener, policy: Policy) -> None:
    """Whole conversations with an environment; where the best two tokens tie within rounding, either may be taken."""
    envs = make_envs(ENV, LANES, {})
    requests = group_requests(0, 0, 12, 1)
    own = Engine(policy.model, eos_ids=policy.eos_ids, lanes=LANES, max_turn_tokens=12)
    theirs, ours = (
        Collector(envs, policy, engine=engine).collect(requests, greedy=True) for engine in (opened(), own)
    )
    assert not theirs.failures and not ours.failures
    same = [np.array_equal(one.ids, two.ids) for one, two in zip(theirs.episodes, ours.episodes)]
    for one, two, equal in zip(theirs.episodes, ours.episodes, same):
        assert equal or tied(policy, one, two)
    assert sum(same) >= 10 and sum(len(e.rewards) for e in ours.episodes) > 24


def tied(policy: Policy, one: TokenEpisode, two: TokenEpisode) -> bool:
    """Whether the first token that differs was sampled, and no more likely than the other one."""
    shared = min(len(one.ids), len(two.ids))
    at = int(np.flatnonzero(one.ids[:shared] != two.ids[:shared])[0])
    with torch.inference_mode():
        logits = policy.model(torch.from_numpy(one.ids[None, :at])).logits[0, -1]
    return bool(one.action[at]) and abs(float(logits[one.ids[at]] - logits[two.ids[at]])) < CLOSE


@pytest.mark.slow
def test_the_number_of_lanes_changes_nothing(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    together = ids_of(had(engine))
    for lanes in (1, 3):
        monkeypatch.setattr(engine, "lanes", lanes)
        engine.refresh()  # and an empty prefix cache
        assert ids_of(had(engine)) == together
    other = ids_of(had(engine, count=4, first=16))
    assert not any(ids in other.values() for ids in together.values())  # seeds matter


@pytest.mark.slow
def test_weights_are_updated_in_place(opened: Opener, policy: Policy) -> None:
    engine = opened()
    before = ids_of(had(engine))
    with changed(policy):
        stale = had(engine)  # fills the prefix cache with keys of the old weights, too
        assert ids_of(stale) == before
        assert np.abs(differences(policy, stale, TEMPERATURE)).mean() > 0.1
        engine.start(0, opening_of(0), 1)
        with pytest.raises(CapacityError, match="live"):
            engine.refresh()
        engine.release(0)
        for _ in range(2):
            engine.refresh()
            fresh = had(engine)
            assert np.abs(differences(policy, fresh, TEMPERATURE)).max() < CLOSE
        assert not any(ids == before[index] for index, ids in ids_of(fresh).items())
    engine.refresh()
    assert ids_of(had(engine)) == before


@pytest.mark.slow
def test_every_weight_is_handed_over(opened: Opener, policy: Policy) -> None:
    """One at a time: a tensor that stayed behind would be seen in its own test only."""
    engine = opened()
    state = policy.model.state_dict()
    noise = torch.Generator().manual_seed(1)
    kinds = [name for name in state if ".layers." not in name or ".layers.3." in name]
    assert len(kinds) == 12  # embedding, its tied head, last norm, nine of a layer
    for name in kinds:
        saved = state[name].clone()
        state[name].add_(0.05 * torch.randn(saved.shape, generator=noise))
        away = np.abs(differences(policy, had(engine, 4), TEMPERATURE)).max()
        engine.refresh()
        assert np.abs(differences(policy, had(engine, 4), TEMPERATURE)).max() < CLOSE < away, name
        state[name].copy_(saved)
        engine.refresh()


@pytest.mark.slow
def test_weights_that_were_not_numbers_leave_nothing_behind(
    opened: Opener, policy: Policy
) -> None:
    engine = opened()
    before = ids_of(had(engine))
    with changed(policy):
        with torch.no_grad():
            policy.model.get_input_embeddings().weight.fill_(float("nan"))
        engine.refresh()
        engine.start(0, opening_of(0), 1)
        engine.start(1, opening_of(1), 1)
        with pytest.raises(DivergedError, match="not finite"):
            engine.advance()
        engine.release(0)
        engine.release(1)
    engine.refresh()
    assert ids_of(had(engine)) == before


@pytest.mark.slow
def test_every_eos_id_ends_a_turn(
    opened: Opener, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()

    def said() -> Any:
        engine.start(0, opening_of(0), None)
        [turn] = engine.advance()
        engine.release(0)
        return turn

    whole = said()
    at = next(i for i in range(1, len(whole.ids)) if whole.ids[i] not in whole.ids[:i])
    monkeypatch.setattr(engine, "_eos", sorted([*policy.eos_ids, int(whole.ids[at])]))
    short = said()
    assert short.reason == "eos" and short.ids.tolist() == whole.ids[: at + 1].tolist()


@pytest.mark.slow
def test_lanes_are_released_at_any_moment_and_refused_when_full(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = opened()
    alone = had(engine, 2)
    monkeypatch.setattr(engine, "lanes", 3)
    monkeypatch.setattr(engine, "capacity", 60)
    for ids in ([5] * 60, [5] * 61, []):
        with pytest.raises(CapacityError):
            engine.start(0, ids, 1)
    assert engine.live == 0 and engine.advance() == []
    for lane in range(3):
        engine.start(lane, opening_of(lane), 1000 + lane)
    with pytest.raises(CapacityError, match="busy"):
        engine.start(0, [5], 1)
    with pytest.raises(CapacityError, match="all 3 lanes"):
        engine.start(3, [5], 1)
    engine.release(2)  # before it spoke
    said = {}
    while len(said) < 2:
        said |= {turn.lane: turn.ids.tolist() for turn in engine.advance()}
    assert said == {lane: alone[lane].turns[0][1].ids.tolist() for lane in said}
    with pytest.raises(CapacityError, match="context of 60"):
        engine.append(0, [5] * 60)
    known = len(opening_of(0)) + len(said[0])
    engine.append(0, [5] * (58 - known))  # room for two tokens
    [turn] = engine.advance()
    assert turn.lane == 0 and (turn.reason, len(turn.ids)) in {("full", 2), ("eos", 1), ("eos", 2)}
    engine.release(0)
    engine.release(1)
    assert engine.live == 0


@pytest.mark.slow
def test_the_process_stays_as_it_was(opened: Opener, policy: Policy) -> None:
    """One engine a process; what vLLM changes for all of it is put back, and closing leaves no group behind."""
    engine = opened()
    with pytest.raises(ConfigError, match="every other VllmEngine of it to be closed"):
        VllmEngine(policy.model, eos_ids=policy.eos_ids)
    engine.close()
    engine.close()
    assert not torch.distributed.is_initialized()
    if engine._on_cpu:  # a GPU's kernels take heads of any even width
        nano = load_policy("nano")
        with pytest.raises(ModelError, match=r"heads of LlamaForCausalLM are 24 wide.* 32, 64, .*'mini'"):
            VllmEngine(nano.model, eos_ids=nano.eos_ids)
        assert not torch.distributed.is_initialized()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1]  # noqa: NPY002
    threads, setter = torch.get_num_threads(), torch.set_num_threads
    opened("bfloat16")
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])  # noqa: NPY002
    assert torch.set_num_threads is setter and torch.get_num_threads() == threads


@pytest.mark.slow
def test_bfloat16_is_as_far_away_as_its_rounding(opened: Opener, policy: Policy, say: Say) -> None:
    """The correction is for this: the mean difference is of the size of a rounding error of a logit."""
    talks = had(opened("bfloat16"))
    apart = np.abs(differences(policy, talks, TEMPERATURE))
    say("bfloat16", apart)
    with torch.inference_mode():
        logits = policy.model(torch.tensor([talks[0].ids])).logits[0] / TEMPERATURE
    # A bfloat16 has 8 significant bits: a value is off by up to 2**-9 of itself. Each of the 2 x 6 sums into the
    # residual stream adds one such error, independent of the others, to what becomes the logits.
    expected = 2**-9 * math.sqrt(12) * float(logits.std())
    assert expected / 4 < apart.mean() < 4 * expected


# -- runs ----------------------------------------------------------------------------------------------------


def settings(out: Path, **changes: Any) -> RunConfig:
    return RunConfig(
        env=ENV, model="mini", engine="vllm", algo="ppo", updates=2, episodes_per_update=8, group_size=4, lanes=LANES,
        eval_episodes=4, eval_every=2, tensorboard=False, quiet=True, device="cpu", out=str(out), **changes,
    )  # fmt: skip


def children() -> set[str]:
    """Processes that this one has started and that have not ended."""
    return {child for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()}


@pytest.mark.slow
def test_a_run_trains_with_corrected_weights(opened: Opener, tmp_path: Path) -> None:
    opened.close()
    before = children()
    result = train(settings(tmp_path / "run", algo_fields={"entropy": 0.01}))  # it moves without a reward, too
    assert children() <= before and not torch.distributed.is_initialized()
    assert result.status == "done"
    updates = [record for record in result.history if record["kind"] == "train"]
    assert [record["step"] for record in updates] == [1, 2]
    for record in updates:
        assert all(math.isfinite(value) for value in record.values() if isinstance(value, float))
        # The sampler has the learner's weights, after an update too; and the correction is on from the first one.
        assert 0 < record["mismatch"] < CLOSE
        assert record["ratio_first"] == pytest.approx(1, abs=CLOSE)
        assert record["importance_weight"] > 0
        assert record["kl"] > 1e-5  # the first update moved the policy, and the second one's sampler with it
    assert sum(record["kind"] == "eval" for record in result.history) == 2


@pytest.mark.slow
def test_a_killed_run_leaves_no_process_behind(needs_vllm: None, tmp_path: Path) -> None:
    config = settings(tmp_path / "run")
    kept = {"out", "env", "model", "engine", "episodes_per_update", "group_size", "lanes", "eval_episodes", "device"}
    options = [f"--{f.name.replace('_', '-')}={getattr(config, f.name)}" for f in fields(config) if f.name in kept]
    run = subprocess.Popen(
        [sys.executable, "-m", "algos.training.train", *options, "--updates=100", "--quiet"],
        start_new_session=True,  # a group of its own, in which nothing may stay
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        log, end = tmp_path / "run" / "metrics.jsonl", time.monotonic() + 900
        while not (log.exists() and '"train"' in log.read_text()):
            assert run.poll() is None and time.monotonic() < end, "it did not get as far as an update"
            time.sleep(0.5)
        run.send_signal(signal.SIGKILL)
        run.wait()
        assert not left_in_the_group_of(run)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)




def left_in_the_group_of(run: subprocess.Popen[str]) -> bool:
    for _ in range(50):  # the kernel takes its time to bury a killed process
        try:
            os.killpg(run.pid, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.1)
    return True
