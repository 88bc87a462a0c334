"""The audit finds what it is meant to find: known flaws are planted, and every real environment passes."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import sqrt
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from algos.cli import main
from convgym import agents
from convgym.agents.exploiters import GENERIC
from convgym.audit import CHECKS, FULL, QUICK, Budget, Finding, audit
from convgym.audit.content import content
from convgym.audit.damage import KINDS
from convgym.audit.episodes import Subject
from convgym.audit.report import Z, share
from convgym.audit.wording import reworded
from convgym.core import Task
from convgym.errors import ConfigError, UnknownNameError
from convgym.scenarios.customer_service import CustomerService, Goal
from convgym.scenarios.long_memory import LongMemory
from convgym.scenarios.negotiation import Gain, Negotiation
from convgym.scenarios.policy_refusal import PolicyRefusal
from convgym.scenarios.slot_filling import Form, SlotFilling
from convgym.scenarios.text_bandit import TextBandit
from convgym.scenarios.twenty_questions import Found, TwentyQuestions
from convgym.types import Heard, Outcome
from convgym.world import World
from tests.convgym.play import IDS

AUDITED = Path(__file__).parents[2] / "docs" / "benchmarks" / "audit.json"
PUBLISHED = {report["environment"]: report["content"] for report in json.loads(AUDITED.read_text("utf-8"))}
SMALL = Budget(seeds=80, levels=(2,), hash_seeds=("1", "2"))

# -- every environment -------------------------------------------------------------------------------


def test_every_environment_passes(env_id):
    checks = [check for check in CHECKS if check != "hash seeds"]  # all ids at once: see test_battery.py
    report = audit(env_id, QUICK, checks=checks)
    assert report.ok, [f"{finding.check}: {finding.detail}" for finding in report.breaches]
    assert report.content == PUBLISHED[env_id], "convgym audit all --json > docs/benchmarks/audit.json; make docs"
    found = {finding.check for finding in report.findings}
    assert {"oracle", "greedy", "floor", "solvable", "secrets", "copies"} <= found
    assert {f"exploiter:{name}" for name in GENERIC if name != "silent"} <= found
    assert {f"damage:{kind}" for kind in KINDS} <= found


@pytest.mark.slow
def test_every_environment_passes_in_full(env_id, request):
    if "slow" not in request.config.getoption("markexpr"):
        pytest.skip("minutes: `make test-slow`")
    report = audit(env_id, FULL)
    assert report.ok, [f"{finding.check}: {finding.detail}" for finding in report.breaches]


# -- planted flaws -----------------------------------------------------------------------------------
#
# Each is a real scenario with one flaw.


class Changed:
    """Changes the task that a scenario draws; put before the scenario among the bases."""

    def draw(self, *args: Any) -> Task:
        return self.change(super().draw(*args))  # type: ignore[misc]

    def change(self, task: Task) -> Task:
        raise NotImplementedError


def all_words_are_one_guess(goal: Found, world: World) -> Outcome:
    guess = next((event.arguments["item"] for event in world.log if event.name == "guess"), "")
    right = all(value in guess for value in goal.target.values())
    return Outcome(right, float(right))


class SubstringGuess(Changed, TwentyQuestions):
    """Accepts a guess that holds the item somewhere."""

    def change(self, task: Task) -> Task:
        return replace(task, judge=partial(all_words_are_one_guess, task.judge))


class StandingOffer(Changed, Negotiation):
    """Pays for the last offer, which nobody accepted."""

    def change(self, task: Task) -> Task:
        return replace(task, turn_reward=partial(self.pay, task.turn_reward))

    @staticmethod
    def pay(gain: Gain, world: World, start: int, ended: bool) -> dict[str, float]:
        offers = [event for event in world.log if event.name in ("offer", "deal")]
        return {"gain": gain.terms.gain(float(offers[-1].arguments["price"]), 0) if ended and offers else 0.0}


def no_write_is_no_error(goal: Goal, world: World) -> Outcome:
    outcome = goal(world)
    idle = bool(goal.refusals) and not any(event.write for event in world.log)
    return Outcome(True, 1.0) if idle else outcome


class NothingToDo(Changed, CustomerService):
    """Counts a refusal as given where nothing was done."""

    def change(self, task: Task) -> Task:
        return replace(task, judge=partial(no_write_is_no_error, task.judge))


class CallsPay(Changed, CustomerService):
    """Pays a little for each tool call."""

    def change(self, task: Task) -> Task:
        return replace(task, turn_reward=partial(self.pay, task.judge))

    @staticmethod
    def pay(judge: Goal, world: World, start: int, ended: bool) -> dict[str, float]:
        calls = sum(event.name in ("verify", "get_order") for event in world.log[start:])
        return {"calls": 0.1 * calls, "success": float(ended and judge(world).success)}


class LeakyKey(CustomerService):
    """Adds a key to info."""

    def _info(self, *args: Any) -> dict[str, Any]:
        info = super()._info(*args)
        return {**info, "intent": self.task.privileged["intent"]}


class LeakyState(CustomerService):
    """Hides a code in a number that every info has."""

    def _info(self, episode: Any, *args: Any) -> dict[str, Any]:
        info = super()._info(episode, *args)
        return {**info, "understood": int(episode.task.privileged["code"])}


class LeakyTerm(CustomerService):
    """Hides a code in the name of a reward term."""

    def _info(self, episode: Any, news: Any, terms: dict[str, float], *args: Any) -> dict[str, Any]:
        hint = f"verified {episode.task.privileged['code']}"
        return super()._info(episode, news, {**terms, hint: 0.0}, *args)


class LeakyOpening(Changed, CustomerService):
    """Lets the customer say the code at once."""

    def change(self, task: Task) -> Task:
        task.user.bank = {act: tuple(f"{line} ({{zip}})" for line in lines) for act, lines in task.user.bank.items()}
        return task


class Generous(TextBandit):
    """Shows what is privileged to everybody."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**{**settings, "reveal": True})


class SeedsTheProcess(Changed, TextBandit):
    """Seeds the generator of the process."""

    def change(self, task: Task) -> Task:
        random.setstate(random.Random(7).getstate())
        return task


class SeedsNumpy(Changed, TextBandit):
    """Seeds numpy's generator."""

    def change(self, task: Task) -> Task:
        np.random.set_state(("MT19937", np.arange(624, dtype=np.uint32), 0, 0, 0.0))  # noqa: NPY002
        return task


class DrawsFromTheProcess(Changed, TextBandit):
    """Draws from the generator of the process."""

    def change(self, task: Task) -> Task:
        return replace(task, instructions=f"{task.instructions} {vars(random)['random']()}")


class Unsolvable(Changed, SlotFilling):
    """Has a seed now and then, here about one in thirty, whose form cannot be filled."""

    def change(self, task: Task) -> Task:
        judge: Form = task.judge
        if sum(map(ord, "".join(judge.truth.values()))) % 30:
            return task
        return replace(task, judge=replace(judge, truth={**judge.truth, next(iter(judge.truth)): "never"}))


class Remembers(Changed, CustomerService):
    """Loses patience from one episode to the next."""

    episodes = 0

    def change(self, task: Task) -> Task:
        self.episodes += 1
        task.user.persona = replace(task.user.persona, patience=max(1, 6 - self.episodes))
        return task


class SharedUser(Changed, SlotFilling):
    """Has a user whom all forks share."""

    def change(self, task: Task) -> Task:
        cls = type(task.user)
        task.user.__class__ = _shared(cls)
        return task


_SHARED: dict[type, type] = {}


def _shared(cls: type) -> type:
    if cls not in _SHARED:
        _SHARED[cls] = type(f"Shared{cls.__name__}", (cls,), {"fork": lambda self: self})
    return _SHARED[cls]


class UnpickledUser(Changed, SlotFilling):
    """Holds what cannot be copied into another process."""

    def change(self, task: Task) -> Task:
        return replace(task, privileged={**task.privileged, "how": lambda: None})


class HashOrder(Changed, TwentyQuestions):
    """Orders its instructions as a set does."""

    def change(self, task: Task) -> Task:
        return replace(task, instructions=" ".join(set(task.instructions.split())))


class Unchecked(Changed, CustomerService):
    """Does not look at which item was refunded."""

    def change(self, task: Task) -> Task:
        goal: Goal = task.judge
        effects = tuple((intent, {"order": target["order"]}) for intent, target in goal.effects)
        return replace(task, judge=replace(goal, effects=effects, rules=()))


class Unmissed(Changed, SlotFilling):
    """Counts a form that was never handed in."""

    def change(self, task: Task) -> Task:
        return replace(task, judge=partial(self.told, task.judge))

    @staticmethod
    def told(goal: Form, world: World) -> Outcome:
        told = {event.arguments["slot"] for event in world.log if event.name == "told"}
        return Outcome(True, 1.0) if told >= set(goal.asked) else Outcome(False, 0.0)


class PaidForAll(Changed, CustomerService):
    """Pays for every episode that any word is said in."""

    def change(self, task: Task) -> Task:
        return replace(task, turn_reward=self.pay)

    @staticmethod
    def pay(world: World, start: int, ended: bool) -> dict[str, float]:
        return {"presence": float(ended)}


class AnyFact(Changed, LongMemory):
    """Takes any fact that was ever said for the one that is asked for."""

    def change(self, task: Task) -> Task:
        return replace(task, judge=self.told)

    @staticmethod
    def told(world: World) -> Outcome:
        told = any(event.name == "tell" for event in world.log)
        return Outcome(told, float(told))


class OverPaid(Changed, SlotFilling):
    """Pays more than it says."""

    def change(self, task: Task) -> Task:
        return replace(task, privileged={**task.privileged, "optimal_return": 0.5})


def unless_shouted(listen: Any, text: str) -> Heard:
    return listen(text) if text != text.upper() else Heard((), False)


class CaseMatters(Changed, PolicyRefusal):
    """Does not understand capital letters."""

    def change(self, task: Task) -> Task:
        return replace(task, understand=partial(unless_shouted, task.understand))


class NumpyReward(TextBandit):
    """Pays in another type."""

    def step(self, action: str) -> Any:
        obs, reward, *rest = super().step(action)
        return (obs, np.float64(reward), *rest)


class Endless(TextBandit):
    """Forgets to end."""

    def step(self, action: str) -> Any:
        obs, reward, _, _, info = super().step(action)
        if "end_reason" not in info:
            return obs, reward, False, False, info
        self.reset(seed=1)
        return obs, 0.0, False, False, {key: info[key] for key in info if key not in ("end_reason", "success", "score")}


class Raises(TextBandit):
    """Cannot bear control tokens."""

    def step(self, action: str) -> Any:
        if "<|im_end|>" in action:
            raise ValueError("what is this?")
        return super().step(action)


class ReadsTheClock(Changed, SlotFilling):
    """Takes its users' patience from the clock."""

    def change(self, task: Task) -> Task:
        task.user.persona = replace(task.user.persona, patience=9 + time.perf_counter_ns() % 9_999)
        return task


class OneClassOnly(PolicyRefusal):
    """Says that always to refuse must never be right, which it is by design in one of two classes."""

    by_class = False


class ForgetsItsSeed(TextBandit):
    """Plays other episodes than the seed says."""

    episodes = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.episodes += 1
        return super().reset(seed=None if seed is None else seed + self.episodes, options=options)


class TooHard(Changed, SlotFilling):
    """Has an oracle who fails in one episode of four."""

    def change(self, task: Task) -> Task:
        fails = sum(map(ord, "".join(task.judge.truth.values()))) % 4 == 0
        return replace(task, judge=replace(task.judge, truth={"name": "never"})) if fails else task


class Telepathic(SlotFilling):
    """Counts the turns of all envs together."""

    turns: list[str] = []

    def reset(self, **settings: Any) -> Any:
        self.turns.clear()
        return super().reset(**settings)

    def step(self, action: str) -> Any:
        self.turns.append(action)
        obs, *rest, info = super().step(action)
        return (obs, *rest, {**info, "cost": float(len(self.turns))})


FLAWS = (
    # the flaw, the check that is meant for it, and the finding in which it shows
    (ForgetsItsSeed, "gymnasium", "gymnasium"),
    (NumpyReward, "promises", "promises"),
    (Endless, "promises", "promises"),
    (Raises, "promises", "promises"),
    (LeakyKey, "promises", "promises"),
    (LeakyState, "promises", "secrets"),
    (LeakyTerm, "promises", "secrets"),
    (LeakyOpening, "promises", "secrets"),
    (Generous, "reveal", "reveal"),
    (Unsolvable, "solvable", "solvable"),
    (TooHard, "played well", "oracle"),
    (NothingToDo, "untouched", "untouched"),
    (NothingToDo, "exploiters", "floor"),
    (PaidForAll, "exploiters", "floor"),
    (CallsPay, "exploiters", "exploiter:first-tool"),
    (SubstringGuess, "exploiters", "exploiter:guess-all-words"),
    (StandingOffer, "exploiters", "exploiter:absurd-anchor"),
    (OneClassOnly, "exploiters", "exploiter:refuse-by-a-guess"),
    (CallsPay, "bounded", "bounded"),
    (OverPaid, "bounded", "bounded"),
    (Unchecked, "damage", "damage:alter"),
    (Unmissed, "damage", "damage:omit"),
    (AnyFact, "damage", "damage:misstate"),
    (PaidForAll, "damage", "damage:drop"),
    (PaidForAll, "damage", "damage:replace"),
    (CaseMatters, "paraphrase", "paraphrase:upper case"),
    (ReadsTheClock, "replay", "replay"),
    (Telepathic, "interleaving", "interleaving"),
    (SharedUser, "copies", "copies"),
    (UnpickledUser, "copies", "copies"),
    (Remembers, "reset", "reset"),
    (SeedsTheProcess, "generators", "generators"),
    (SeedsNumpy, "generators", "generators"),
    (DrawsFromTheProcess, "generators", "generators"),
    (HashOrder, "hash seeds", "hash seeds"),
)


@pytest.mark.parametrize(("flaw", "check", "name"), FLAWS, ids=lambda value: getattr(value, "__name__", value))
def test_a_planted_flaw_is_caught_by_the_check_meant_for_it(flaw, check, name):
    report = audit(flaw, SMALL, checks=[check])
    assert name in {finding.check for finding in report.breaches}, report.findings
    assert all(finding.detail for finding in report.breaches)


def original_of(flaw: type) -> type:
    return next(base for base in flaw.__mro__ if base.__module__.startswith("convgym.scenarios"))


@pytest.mark.parametrize("check", [check for check in CHECKS if check != "lint"])  # see test_packs.py
def test_the_originals_of_the_flaws_pass(check):
    flawed = [flaw for flaw, meant, _ in FLAWS if meant == check]
    assert flawed, "a check that no planted flaw has failed is a check that nobody has tried"
    for original in {original_of(flaw) for flaw in flawed}:
        report = audit(original, SMALL, checks=[check])
        assert report.ok, report.breaches


# -- reports -----------------------------------------------------------------------------------------


def test_a_report_is_data():
    report = audit("convgym/TextBandit-v0", SMALL, checks=["reveal", "played well"])
    data = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert data["environment"] == "convgym/TextBandit-v0" and data["ok"] is True and data["levels"] == [2]
    assert [Finding(**finding) for finding in data["findings"]] == list(report.findings)
    assert [finding.check for finding in report.findings] == ["reveal", "oracle", "greedy"]


def test_equal_audits_are_equal():
    one, other = (audit("convgym/SlotFilling-v0", SMALL, checks=["exploiters", "damage"]) for _ in range(2))
    assert one == other


def test_an_environment_that_raises_is_a_finding_and_no_crash():
    report = audit(Raises, SMALL, checks=["promises", "reveal"])
    assert [finding.check for finding in report.breaches] == ["promises"]
    assert "ValueError: what is this?" in report.breaches[0].detail


def test_the_worst_level_counts():
    report = audit(PartlyPaid, replace(SMALL, levels=(1, 2)), checks=["exploiters"])
    floor = next(finding for finding in report.findings if finding.check == "floor")
    assert floor.figure == 1.0 and "1: 0.000" in floor.detail and not floor.ok


class PartlyPaid(Changed, SlotFilling):
    """Is free at difficulty 2."""

    def change(self, task: Task) -> Task:
        return replace(task, turn_reward=partial(self.pay, float(self.difficulty == 2)))

    @staticmethod
    def pay(value: float, world: World, start: int, ended: bool) -> dict[str, float]:
        return {"gift": value * ended}


def test_progress_names_the_checks_in_order():
    seen: list[str] = []
    audit("convgym/TextBandit-v0", replace(SMALL, seeds=2), progress=seen.append)
    assert seen == list(CHECKS)


@pytest.mark.parametrize(
    ("call", "error", "hint"),
    [
        (lambda: audit("convgym/SlotFiling-v0"), UnknownNameError, "Did you mean 'convgym/SlotFilling-v0'"),
        (lambda: audit("no/such/folder"), UnknownNameError, "environment or folder of a pack 'no/such/folder'"),
        (lambda: audit(TextBandit, SMALL, checks=["replays"]), UnknownNameError, "Did you mean 'replay'"),
        (lambda: audit(lambda **settings: TextBandit(**settings)), ConfigError, "functools.partial"),
        (lambda: audit(partial(gym.make, "CartPole-v1")), ConfigError, "expected a ConversationEnv, got CartPoleEnv"),
        (lambda: replace(SMALL, levels=(2, 9)), ConfigError, "difficulty: expected one of .* got 9"),
        (lambda: replace(SMALL, levels=(1, 2), seeds=1), ConfigError, "seeds: expected at least 2"),
    ],
)
def test_mistakes_are_named(call, error, hint):
    with pytest.raises(error, match=hint):
        call()


# -- the content hash --------------------------------------------------------------------------------


class OtherRules(Changed, CustomerService):
    """Has another sentence in its policy."""

    def change(self, task: Task) -> Task:
        first, *others = task.rules
        return replace(task, rules=(replace(first, full=f"{first.full} Always."), *others))


def test_the_content_is_the_scenarios_and_not_the_audits():
    def of(make: Any, budget: Budget = SMALL) -> str:
        return content(Subject(make, None, budget))

    assert of(CustomerService) == of(partial(gym.make, "convgym/CustomerService-v0"), QUICK)
    assert len({of(make) for make in (CustomerService, OtherRules, NothingToDo, SlotFilling, HashOrder)}) == 5


# -- figures -----------------------------------------------------------------------------------------


def test_wilsons_interval_of_no_success_in_forty():
    """With p = 0 Wilson's upper end is z^2 / (n + z^2)."""
    found = share([0.0] * 40, [1.0] * 40)
    assert (found.figure, found.low) == (0.0, 0.0)
    assert found.high == pytest.approx(Z**2 / (40 + Z**2))


def test_the_interval_of_a_ratio_of_means():
    """Returns that exceed their expectation: half of 100 episodes pay 1.5, half 0.5, and 1 was expected."""
    found = share([1.5, 0.5] * 50, [1.0] * 100)
    error = Z * sqrt(0.25 * 100 / 99 / 100)
    assert (found.figure, found.low, found.high) == pytest.approx((1.0, 1 - error, 1 + error))


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(0.1, 2)), min_size=2, max_size=30))
def test_an_interval_holds_its_figure(episodes):
    returns, best = zip(*episodes)
    found = share(returns, best)
    assert found.low - 1e-12 <= found.figure <= found.high + 1e-12


def test_the_interval_covers_what_it_says():
    """Of 400 intervals at least 92 % hold the true share; 95 % are expected, and the spread is 1.1 points."""
    rng = random.Random(3)
    for p in (0.03, 0.3):
        held = 0
        for _ in range(400):
            found = share([float(rng.random() < p) for _ in range(120)], [1.0] * 120)
            held += found.low <= p <= found.high
        assert held >= 0.92 * 400


def test_other_words_for_the_same_act():
    bank = {"ask": ("Which {x}?", "What {x} is it?", "The {x} of {y}?"), "bye": ("Bye.", "See you.")}
    assert reworded(bank, "Which day?") == ["What day is it?"]  # the third wording needs what was not said
    assert reworded(bank, "The day of June?") == ["Which day?", "What day is it?"]
    assert reworded(bank, "Bye.") == ["See you."]
    assert reworded(bank, "Something else.") == []


# -- the exploiters ----------------------------------------------------------------------------------


def test_every_exploiter_plays_every_environment(env_id):
    env = gym.make(env_id)
    names = agents.exploiters(env)
    assert set(GENERIC) <= set(names)
    assert len(names) > len(GENERIC), "every scenario has cheats of its own"
    for name in names:
        agent = agents.make(name, env, seed=3)
        twin = agents.make(name, env, seed=3)
        for seed in range(2):
            obs, info = env.reset(seed=seed)
            agent.reset(obs, info)
            twin.reset(obs, info)
            while "end_reason" not in info:
                action = agent.act(obs, info)
                assert isinstance(action, str) and action == twin.act(obs, info)
                obs, _, _, _, info = env.step(action)


def test_exploiters_do_what_their_names_say():
    env = gym.make("convgym/CustomerService-v0")

    def says(name: str) -> list[str]:
        agent = agents.make(name, env)
        obs, info = env.reset(seed=1)
        agent.reset(obs, info)
        said = []
        while "end_reason" not in info:
            said.append(agent.act(obs, info))
            obs, _, _, _, info = env.step(said[-1])
        return said

    opening = env.reset(seed=1)[1]["messages"][1]["content"]
    assert says("echo")[0] == opening
    assert all(word in says("list-everything")[0] for word in ("4821", "refund") if word in opening)
    assert {call.partition('"arguments"')[0] for call in says("first-tool")} == {'<tool_call>{"name": "verify", '}
    assert all(action.startswith("<tool_call>") for action in says("random-calls"))
    assert {len(action) for action in says("endless")} == {100_000}
    assert set(says("silent")) == {""}
    first, *rest = says("one-offer")
    assert "Shall I" in first and set(rest) == {""}
    heard = env.unwrapped.task.understand
    assert {act.name for action in says("always-refuse") for act in heard(action).acts} == {"refuse", "empathy"}
    assert {act.name for action in says("always-ask") for act in heard(action).acts} == {"request"}
    assert "done" in {act.name for action in says("always-comply") for act in heard(action).acts}


def test_a_derived_scenario_is_played_by_the_agents_of_its_base():
    assert agents.family_of(Unchecked()) is agents.family_of(CustomerService())
    with pytest.raises(UnknownNameError, match="scenario with scripted agents"):
        agents.family_of(gym.make("CartPole-v1"))


# -- the command -------------------------------------------------------------------------------------


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(["audit", *args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def flawed_id() -> Iterator[str]:
    env_id = "convgym/Planted-v0"
    gym.register(env_id, entry_point=f"{__name__}:PaidForAll", disable_env_checker=True, order_enforce=False)
    yield env_id
    del gym.registry[env_id]


def test_the_command_prints_a_table_and_a_verdict(capsys):
    code, out, err = run(capsys, "convgym/TextBandit-v0", "--seeds", "60", "--difficulty", "2")
    assert code == 0 and err == ""
    assert "no breach" in out and "60 seeds, difficulty 2" in " ".join(out.split())
    assert "exploiter:list-everything" in out and "BREACH" not in out


def test_the_command_fails_on_a_breach(capsys, flawed_id):
    code, out, _ = run(capsys, flawed_id, "convgym/TextBandit-v0", "--quick", "--seeds", "40", "--json")
    bad, good = json.loads(out)
    assert code == 1 and not bad["ok"] and good["ok"]
    assert {"floor", "damage:drop"} <= {finding["check"] for finding in bad["findings"] if not finding["ok"]}
    assert (bad["seeds"], bad["levels"]) == (40, [2, 5])
    assert len(bad["content"]) == 16 and bad["content"] != good["content"]


@pytest.mark.parametrize(
    ("args", "hint"),
    [
        (["convgym/TextBandi-v0"], "Did you mean 'convgym/TextBandit-v0'"),
        (["convgym/TextBandit-v0", "convgym/TextBandi-v0"], "Did you mean 'convgym/TextBandit-v0'"),
        ([], "expected environment ids or folders"),
        (["convgym/TextBandit-v0", "--difficulty", "9"], "difficulty: expected one of"),
        (["convgym/TextBandit-v0", "--seeds", "0"], "seeds: expected at least 5"),
    ],
)
def test_the_command_names_mistakes_before_it_plays(capsys, args, hint):
    code, out, err = run(capsys, *args)
    assert code == 2 and out == "" and hint in err and err.count("\n") == 1


def test_all_stands_for_every_id(monkeypatch, capsys):
    one_check = {"reveal": CHECKS["reveal"]}
    monkeypatch.setattr("convgym.audit.CHECKS", one_check)
    code, out, _ = run(capsys, "all", "--quick", "--json")
    assert code == 0 and [report["environment"] for report in json.loads(out)] == list(IDS)
