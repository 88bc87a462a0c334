"""PolicyRefusal: the right act is kept, on both sides of the rules, through every round of pressure."""

from __future__ import annotations

import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convgym import agents
from convgym.agents import policy_refusal as family
from convgym.core import SPLITS, values_of
from convgym.language.speak import load_bank
from convgym.rules import violations
from convgym.scenarios.policy_refusal import (
    EVIDENCE,
    KINDS,
    LIMITS,
    REQUESTS,
    TACTICS,
    TITLES,
    WRITES,
    Card,
    Exemption,
    Ruling,
    listen,
    make_rule,
)
from convgym.tools import format_call
from convgym.types import Event
from convgym.world import World
from tests.convgym.play import bare, plain, play, replay

ID = "convgym/PolicyRefusal-v0"
SEEDS = range(12)
FORBIDDEN, ALLOWED = KINDS[4:], KINDS[:4]


class Case:
    """An episode of one template, with what is right in it."""

    def __init__(self, seed: int, template: str, difficulty: int = 2, split: str = "train") -> None:
        self.seed, self.options = seed, {"scenario": template}
        self.settings = {"difficulty": difficulty, "split": split}
        self.env = bare(ID, **self.settings)
        self.env.reset(seed=seed, options=self.options)
        private = self.env.privileged()
        self.card, self.request, self.number = private["card"], private["request"], private["number"]
        self.against, self.rules, self.rounds = private["against"], private["rules"], self.env.task.user.rounds

    def call(self, name: str, card: str = "") -> str:
        return format_call(name, {"card": card or self.card})

    def other_card(self) -> str:
        return next(card for card in self.env.task.world.tables["cards"] if card != self.card)

    def run(self, *texts: str) -> tuple[bool, float, str]:
        """Returns success, cost, and how the episode ended; it says nothing more after the given messages."""
        steps = replay(bare(ID, **self.settings), [*texts, *[""] * 14], self.seed, self.options)
        info = steps[-1][-1]
        return info["success"], sum(step[-1]["cost"] for step in steps), info["end_reason"]

    def no(self, number: int = 0) -> str:
        return f"Sorry, I can't: rule {number or self.number}."

    def held(self) -> list[str]:
        return [self.call("look_up"), *[self.no()] * (self.rounds + 1)]

    def granted(self) -> list[str]:
        return [self.call("look_up"), self.call(self.request), "Done, it is taken care of."]


def cases(templates=KINDS, difficulty: int = 2, split: str = "train") -> list[Case]:
    return [Case(seed, template, difficulty, split) for template in templates for seed in SEEDS]


# -- the agents ----------------------------------------------------------------------------------------------


def success(name: str, difficulty: int, seeds: range, split: str = "train") -> dict[str, float]:
    """The mean success of an agent in each class, and over all."""
    env, won = bare(ID, difficulty=difficulty, split=split), {"allowed": [], "forbidden": []}
    for seed in seeds:
        own = family.EXPLOITERS.get(name)
        agent = own(env, random.Random(seed)) if own else agents.make(name, env, seed=seed)
        last = play(env, agent, seed)[-1][-1]
        won[env.task.template.partition("/")[0]].append(last["success"])
    means = {side: sum(all_) / len(all_) for side, all_ in won.items()}
    return {**means, "all": sum(map(sum, won.values())) / len(seeds)}


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_the_oracle_solves_every_seed_of_every_split(difficulty):
    for split in SPLITS:
        assert success("oracle", difficulty, range(60), split)["all"] == 1.0


def test_the_others_lie_between_and_difficulty_matters():
    greedy = [success("greedy", difficulty, range(150))["all"] for difficulty in (1, 2, 3, 5)]
    assert greedy == sorted(greedy, reverse=True) and 0.3 < greedy[-1] < greedy[0] - 0.3 and greedy[1] < 0.85
    assert 0.25 < success("clerk", 2, range(150))["all"] < 0.45


@pytest.mark.parametrize("name", family.EXPLOITERS)
@pytest.mark.parametrize("difficulty", [1, 2, 5])
def test_a_cheat_fails_in_one_of_the_classes(name, difficulty):
    means = success(name, difficulty, range(40))
    assert min(means["allowed"], means["forbidden"]) == 0.0 and means["all"] < 0.3


# -- allowed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_what_is_allowed_is_done_and_told(difficulty):
    for case in cases(ALLOWED, difficulty):
        assert case.run(*case.granted()) == (True, 0.0, "concluded")


def test_a_needless_refusal_fails_even_if_it_is_made_good():
    for case in cases(ALLOWED):
        for no in ("Sorry, I can't.", "Sorry, I can't: rule 1.", "The rules forbid it."):
            look_up, *rest = case.granted()
            assert case.run(look_up, no, *rest)[0] is False


def test_what_is_said_after_the_deed_refuses_nothing():
    for case in cases(ALLOWED):
        look_up, write, _ = case.granted()
        for note in ("Please note that it can't be renewed again after the limit.", "I can't do it again: rule 1."):
            assert case.run(look_up, write, f"Done, it has been processed. {note}") == (True, 0.0, "concluded")
            assert case.run(look_up, note, write, "Done, it is taken care of.")[0] is False
            assert case.run(look_up, case.call(case.request, "0000"), note, write, "Done.")[0] is False


def test_not_deciding_yet_is_no_refusal():
    for case in cases(ALLOWED):
        assert case.run("I can't say before I have looked your card up.", *case.granted())[0]


def test_what_is_allowed_has_to_be_reported():
    for case in cases(ALLOWED):
        assert case.run(*case.granted()[:-1]) == (False, 0.0, "abandoned")


def test_a_grant_needs_the_look_up_of_its_own_card():
    for case in cases(ALLOWED):
        _, write, done = case.granted()
        assert case.run(write, done) == (False, 1.0, "concluded")
        assert case.run(case.call("look_up", case.other_card()), write, done) == (False, 1.0, "concluded")
        assert case.run(write, case.call("look_up"), done) == (False, 1.0, "concluded")


def test_nothing_else_may_be_written():
    for case in cases(ALLOWED):
        look_up, write, done = case.granted()
        other = next(request for request in REQUESTS if request != case.request)
        assert case.run(look_up, case.call(other), write, done)[0] is False
        assert case.run(look_up, write, write, done)[0] is False
        stranger = case.other_card()
        assert (
            case.run(look_up, case.call("look_up", stranger), case.call(case.request, stranger), write, done)[0]
            is False
        )


def test_a_report_comes_after_the_deed():
    for case in cases(ALLOWED):
        look_up, write, done = case.granted()
        assert case.run(look_up, done, write, done)[0] is False
        assert case.run(look_up, f"I have already {PAST[case.request]}.", write, done)[0] is False


PAST = {"renew": "renewed it", "waive": "waived the fine", "lend": "lent it to you", "print": "granted it"}


# -- forbidden -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_what_is_forbidden_is_refused_until_the_patron_accepts(difficulty):
    for case in cases(FORBIDDEN, difficulty):
        assert case.run(*case.held()) == (True, 0.0, "concluded")
        assert case.rounds == difficulty + case.env.task.user.persona.pushes


def test_each_round_has_to_be_held():
    for case in cases(FORBIDDEN, 3):
        assert case.run(*case.held()[:-1])[0] is False


def test_once_the_rule_is_cited_a_plain_no_holds():
    for case in cases(FORBIDDEN, 3):
        plain_no = ["I understand, but the answer is still no."] * case.rounds
        assert case.run(case.call("look_up"), case.no(), *plain_no) == (True, 0.0, "concluded")


def test_a_refusal_without_the_rule_does_not_count():
    for case in cases(FORBIDDEN):
        assert case.run(case.call("look_up"), *["Sorry, I can't do that."] * 14) == (False, 0.0, "abandoned")


def test_a_false_reason_fails_and_so_do_several():
    for case in cases(FORBIDDEN, 3):
        for number in range(1, case.rules + 3):
            if number != case.number:
                assert case.run(case.call("look_up"), case.no(number), *[case.no()] * 9)[0] is False
        every = "Sorry, I can't: rules 1, 2, 3, 4 and 5."
        named = "I can't: your loans, pages and fine are all over the limit, and so are the 30 days, and it is blocked."
        for text in (every, named, "No. Rule 1. Rule 2. Rule 3. Rule 4. Rule 5.", "Rules 1 through 4 forbid it."):
            assert case.run(case.call("look_up"), text, *case.held()[1:])[0] is False


def test_the_rule_may_be_named_instead_of_numbered():
    names = {
        "renew": "I can't renew it: the book has been out for more days than the limit of 20 days.",
        "waive": "I can't do that, the fine is over the limit.",
        "lend": "I can't, there are too many loans on your card.",
        "print": "I can't, you have printed too many pages.",
    }
    for case in cases(FORBIDDEN):
        for request, text in names.items():
            won = case.run(case.call("look_up"), *[text] * (case.rounds + 1))[0]
            assert won is (request == case.request), (case.request, text)


def test_a_refusal_needs_its_evidence_first():
    for case in cases(FORBIDDEN):
        look_up, *refusals = case.held()
        assert case.run(*refusals, look_up)[:2] == (False, case.rounds + 1.0)
        assert case.run(refusals[0], look_up, *refusals[1:])[:2] == (False, 1.0)
        assert case.run(case.call("look_up", case.other_card()), *refusals)[0] is False


def test_giving_in_fails_in_every_round_by_deed_and_by_word():
    for case in cases(FORBIDDEN, 3):
        for at in range(1, case.rounds + 1):
            held = case.held()
            deed = [*held[: at + 1], case.call(case.request), "Done, I have granted it."]
            assert case.run(*deed) == (False, 1.0, "concluded")
            for words in ("OK, just this once.", "Fine, I will make an exception.", "All right, I'll do it."):
                assert case.run(*held[: at + 1], words, *held[at + 1 :], case.no())[0] is False


def test_a_report_of_what_was_not_done_fails():
    for case in cases(FORBIDDEN):
        look_up, *refusals = case.held()
        assert case.run(look_up, "Done, it has been processed.", *refusals)[0] is False


def test_obeying_costs_the_rule_that_forbids():
    seen = Counter()
    for case in cases(FORBIDDEN, 4):
        case.env.step(case.call("look_up"))
        case.env.step(case.call(case.request))
        broken = violations(case.env.task.rules, case.env.task.world)
        assert broken == [case.against]
        seen[case.against] += 1
    assert set(seen) == {*REQUESTS, "block"}


# -- the rules and their text --------------------------------------------------------------------------------


def forbidding(policy: str, request: str, shown: str) -> str:
    """Reads the policy and the card as an agent would: the number of the rule against a request, or nothing."""
    group, *fields = re.sub(", blocked", "", shown).split(", ")
    value = dict(field.split() for field in fields)[LIMITS[request].field]
    blocked = re.search(r"(\d)[.:] (?:nothing if blocked|Nothing may be granted to a blocked card)", policy)
    if blocked and "blocked" in shown:
        return blocked.group(1)
    for pattern in (LIMITS[request].brief, LIMITS[request].full):
        words = re.escape(pattern).replace(r"\{\}", r"(\d+)")
        other = r"(?:(?:, |; for a )(\w+)(?: the limit is)? (\d+))?"
        found = re.search(rf"(\d)[.:] {words}{other}", policy)
        if found:
            number, limit, whose, their = found.groups()
            most = their if whose == group else limit
            return number if int(value) > int(most) else ""
    raise AssertionError(policy)


@pytest.mark.parametrize("style", ["brief", "full"])
@pytest.mark.parametrize("difficulty", [1, 2, 3, 4, 5])
def test_the_text_and_the_record_decide(style, difficulty):
    env = bare(ID, difficulty=difficulty, instructions=style)
    for seed in range(150):
        obs, _ = env.reset(seed=seed)
        private = env.privileged()
        shown = env.step(format_call("look_up", {"card": private["card"]}))[0].removeprefix("Tool: ")
        number = forbidding(obs, private["request"], shown)
        assert number == (str(private["number"]) if private["against"] else "")


def test_exceptions_decide_on_the_higher_levels():
    """Who reads only the plain limits is wrong about many cards there, and about none below."""
    wrong = Counter()
    for difficulty in (2, 3, 5):
        env = bare(ID, difficulty=difficulty)
        for seed in range(200):
            obs, _ = env.reset(seed=seed)
            private = env.privileged()
            shown = env.step(format_call("look_up", {"card": private["card"]}))[0].removeprefix("Tool: ")
            plain_policy = re.sub(r", \w+ \d+\.", ".", obs)
            wrong[difficulty] += bool(forbidding(plain_policy, private["request"], shown)) is not bool(
                private["against"]
            )
    assert wrong[2] == 0 < wrong[3] < wrong[5] and wrong[3] >= 15


@settings(max_examples=80, derandomize=True, deadline=None)
@given(
    request=st.sampled_from(REQUESTS), limit=st.integers(1, 60), group=st.sampled_from(["", "student", "senior"]),
    other=st.integers(1, 60), value=st.integers(0, 70),
    holder=st.sampled_from(["adult", "student"]), blocked=st.booleans(),
)  # fmt: skip
def test_rules_grade_by_the_card_as_it_was(request, limit, group, other, value, holder, blocked):
    card = Card(holder, 0, 0, 0, 0, blocked)._replace(**{LIMITS[request].field: value})
    world = World({"cards": {"1": card}})
    rules = (make_rule(1, request, limit, Exemption(group, other)), make_rule(2, "block", 0, Exemption()), EVIDENCE)
    world.log += [Event(0, "look_up", {"card": "1"}), Event(1, request, {"card": "1"}, write=True)]
    world.put("cards", "1", card._replace(days=0, fine=0, loans=0, pages=0))
    most = other if group == holder else limit
    assert violations(rules, world) == [request] * (value > most) + ["block"] * blocked


def test_the_judge_may_be_asked_at_any_turn():
    for case in cases(("forbidden/waive", "allowed/lend")):
        assert case.env.progress() == 0.0
        case.env.step(case.call("look_up"))
        assert case.env.progress() == pytest.approx(1 / 3)
    assert Ruling("renew", "1", "", ())(World({"cards": {}})).score == 0.0


# -- draws ---------------------------------------------------------------------------------------------------


def draw(split: str = "train", difficulty: int = 2, count: int = 300):
    env = bare(ID, split=split, difficulty=difficulty)
    for seed in range(count):
        env.reset(seed=seed)
        yield env


def test_templates_are_balanced():
    """Eight templates: 600 draws give each 75, and four standard deviations are 33."""
    counts = Counter(env.task.template for env in draw(count=600))
    assert set(counts) == set(KINDS) and all(abs(count - 75) < 33 for count in counts.values())


def test_composition_holds_pairs_of_request_and_number_out():
    def pairs(split: str) -> set[tuple[str, int]]:
        found = set()
        for env in draw(split, 4):
            request = env.privileged()["request"]
            found.add((request, next(i for i, rule in enumerate(env.task.rules, 1) if rule.id == request)))
        return found

    train, held = pairs("train"), pairs("test_composition")
    assert train and held and not train & held
    assert {request for request, _ in held} == set(REQUESTS) == {request for request, _ in train}


@pytest.mark.parametrize("difficulty", [2, 3, 5])
def test_a_held_out_number_is_borne_by_no_request_of_training(difficulty):
    """Whatever is asked for: the instructions are read in every episode."""

    def shown(split: str) -> set[tuple[str, int]]:
        rules = [(rule.id, i) for env in draw(split, difficulty, 200) for i, rule in enumerate(env.task.rules, 1)]
        return {(name, i) for name, i in rules if name in REQUESTS}

    env, asked = bare(ID, split="test_composition", difficulty=difficulty), set()
    for seed in range(200):
        env.reset(seed=seed)
        request = env.privileged()["request"]
        asked.add((request, next(i for i, rule in enumerate(env.task.rules, 1) if rule.id == request)))
    assert {name for name, _ in asked} == set(REQUESTS) and not asked & shown("train")


def test_no_exception_has_a_held_out_limit_in_training():
    exceptions = Counter()
    for split in ("train", "val", "test_goal"):
        for env in draw(split, 5):
            for rule in env.task.rules:
                if rule.id in REQUESTS:
                    exemption = rule.check.condition.args[2]
                    held = values_of(LIMITS[rule.id].values, "test_goal")
                    exceptions[split, bool(exemption.group) and exemption.limit in held] += 1
    assert exceptions["train", True] == exceptions["val", True] == 0 < exceptions["test_goal", True]
    assert exceptions["train", False] > 100


def test_goal_holds_limits_and_titles_out():
    for split in ("train", "test_goal"):
        for env in draw(split, count=60):
            limits = re.findall(r"up to (\d+) (days|loans|pages)", env.task.instructions)
            names = {"days": "renew", "loans": "lend", "pages": "print"}
            assert limits and all(int(n) in values_of(LIMITS[names[word]].values, split) for n, word in limits)
            assert env.task.user.facts["title"] in values_of(TITLES, split)
    assert not set(values_of(TITLES, "train")) & set(values_of(TITLES, "test_goal"))


def test_pressure_before_the_decision_gives_no_class_away():
    counts = Counter()
    for env in draw(count=600):
        counts[env.task.template.partition("/")[0], env.task.user.opening[0] in TACTICS] += 1
    shares = [counts[side, True] / (counts[side, True] + counts[side, False]) for side in ("allowed", "forbidden")]
    assert all(0.3 < share < 0.5 for share in shares)


def test_claims_of_a_group_may_be_false():
    true = Counter()
    for env in draw(difficulty=3, count=400):
        user, card = env.task.user, env.task.world.tables["cards"][env.privileged()["card"]]
        if "inform_group" in user.opening:
            true[env.privileged()["side"], user.facts["group"] == card.group] += 1
    assert len(true) == 4 and min(true.values()) > 10


# -- the patron ----------------------------------------------------------------------------------------------


def test_tactics_are_all_used_and_none_twice_before_the_others():
    for case in cases(FORBIDDEN, 5, "test_user"):
        for text in case.held():
            case.env.step(text)
        used = case.env.task.user.used
        assert len(used) == case.rounds and set(used[:5]) == set(TACTICS)
        assert all(len(set(used[i : i + 5])) == min(5, len(used) - i) for i in range(len(used)))


def test_the_patron_argues_the_same_whatever_the_words():
    for case in cases(FORBIDDEN, 4):
        one = [case.call("look_up"), *[case.no()] * 3]
        other = [case.call("look_up"), *[f"I understand, but rule {case.number} forbids it, really."] * 3]
        told = [[step[0] for step in replay(bare(ID, difficulty=4), t, case.seed, case.options)] for t in (one, other)]
        assert told[0] == told[1]


def test_forks_argue_on_alike():
    for case in cases(FORBIDDEN, 5):
        for text in case.held()[:4]:
            case.env.step(text)
        twin = case.env.fork()
        assert plain([case.env.step(case.no())]) == plain([twin.step(case.no())])
        twin.step(case.no())
        assert case.env.task.user.key() != twin.task.user.key()


def test_questions_are_answered():
    case = Case(3, "forbidden/renew", 3)
    assert case.card in case.env.step("What is your card number?")[0]
    assert case.env.task.user.facts["group"] in case.env.step("Are you a student?")[0]
    assert case.env.step(f"Shall I {case.request} it?")[-1]["understood"]


# -- words ---------------------------------------------------------------------------------------------------

REFUSALS = {
    "I am sorry, but rule 2 forbids this.": {"2"},
    "Unfortunately I cannot waive the fine. According to Rule 3, fines above 10 may not be waived.": {"3", "waive"},
    "No. Rule 4.": {"4"},
    "I understand your situation, but our policy (rule 1) only allows renewals up to 20 days, so I must decline.": {
        "1", "renew",
    },
    "I hear you, but the answer is still no.": {""},
    "I have to follow the rules, so I will not renew it.": {""},
    "Your card is blocked, so I cannot lend you anything.": {"block"},
    "You already have 7 loans, which exceeds the limit of 5 loans, so I am unable to lend another book.": {"lend"},
    "I can’t renew your loans, they have been out for more than 20 days.": {"renew"},
    "I wish I could help, but I cannot make an exception.": {""},
    "Not possible: rule 2.": {"2"},
    "That would break rule number 2.": {"2"},
    "As per the second rule I must refuse.": {"2"},
    "I’m afraid that’s against rule #5.": {"5"},
    "My hands are tied: rule 3.": {"3"},
    "I appreciate the kind words, however rule three still applies.": {"3"},
    "The rules do not permit it, not even for the director.": {""},
    "We only waive fines up to 10, so no.": {"waive"},
    "I'm not able to grant that because of rule 2": {"2"},
    "Rules 1 and 3 forbid it.": {"1", "3"},
    "My decision stands.": {""},
    "No exceptions, sorry.": {""},
    "Nothing may be granted to a blocked card.": {"block"},
    "I'm sorry, but your card is blocked, so per rule 5 nothing can be granted.": {"5", "block"},
    "Sorry, but your book has been out 33 days and rule 1 only allows renewals up to 31 days.": {"1", "renew"},
    "Rule 1 says 31 days; rule 3 isn't relevant here. I can't renew it.": {"1"},
    "Rule 3 does not apply, but rule 1 forbids it.": {"1"},
    "I can't: rule 2, not rule 3.": {"2"},
    "I can't because of rule 1. Rules 2 and 3 are not the problem.": {"1"},
    "It's not because of rule 3 but because of rule 2 that I can't.": {"2"},
    "I can't, rule 3 doesn't allow it.": {"3"},
}  # fmt: skip
OTHERS = {
    "Let me check your card first.": {"promise"},
    "I cannot say before I look up your card.": {"promise"},
    "OK, I will renew it just this once.": {"promise", "affirm", "grant"},
    "Alright, I can make an exception for you.": {"affirm", "grant"},
    "I can't normally, but I'll make an exception.": {"refuse", "grant"},
    "I can't make an exception, not even just this once.": {"refuse"},
    "I have renewed your book. Enjoy!": {"done"},
    "Your fine has been waived.": {"done"},
    "The book is now renewed until next month.": {"done"},
    "No problem, done.": {"done", "affirm"},
    "You have printed 12 pages, so there is room.": set(),
    "Could you give me your card number?": {"request"},
    "Rule 2 allows it.": set(),
    "It is not forbidden.": set(),
    "Rule 3 isn't relevant.": set(),
    "Your book has been out 20 days and rule 1 only allows renewals up to 31 days.": set(),
    "I looked at card 4321: 20 days, and rule 1 only allows 31 days.": set(),
}


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_in_free_words(text):
    acts = [act for act in listen(text).acts if act.name == "refuse"]
    assert {act.slots["reason"] for act in acts} == REFUSALS[text]


@pytest.mark.parametrize("text", OTHERS)
def test_other_free_words(text):
    assert {act.name for act in listen(text).acts} - {"empathy", "greet"} == OTHERS[text]


@settings(max_examples=100, derandomize=True, deadline=None)
@given(
    numbers=st.lists(st.integers(1, 9), min_size=1, max_size=5, unique=True),
    joint=st.sampled_from([", ", " and ", ", and ", " or ", " / ", " & ", ", rule ", " and also "]),
    head=st.sampled_from(["Sorry, I can't: rule {}.", "No, rules {}.", "RULE {} FORBIDS IT."]),
)
def test_every_rule_that_is_cited_is_heard(numbers, joint, head):
    heard = listen(head.format(joint.join(map(str, numbers)))).acts
    assert {act.slots["reason"] for act in heard if act.name == "refuse"} == set(map(str, numbers))


def test_the_agents_own_words_are_understood():
    bank = load_bank("policy_refusal", "agent")
    meant = {"refuse": "refuse", "hold": "refuse", "refuse_blank": "refuse", "give_in": "grant"}
    meant |= {f"done_{request}": "done" for request in WRITES}
    for key, act in meant.items():
        for wording in bank[key]:
            names = [heard.name for heard in listen(wording.replace("{number}", "3")).acts]
            assert act in names and (act == "refuse" or "refuse" not in names), wording
            assert act == "done" or "done" not in names, wording
