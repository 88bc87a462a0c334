"""CustomerService: what is graded is what the policy says, and every breach of it costs."""

from __future__ import annotations

import json
import random
import re
from collections import Counter

import pytest
from scipy.stats import binomtest, chisquare

from convgym import agents
from convgym.agents.customer_service import EXPLOITERS
from convgym.core import SPLITS, values_of
from convgym.language.understand import UNCLEAR
from convgym.rules import violations
from convgym.scenarios.customer_service import CITIES, ITEMS, OUTCOMES, listen
from convgym.scenarios.shop import RETURNS, Customer, Item, Order, Parameters, make_rules
from convgym.tools import format_call, parse_call
from convgym.types import Event, Message, ToolCall
from convgym.world import World
from tests.convgym.play import bare, plain, play, replay, say, script

ID = "convgym/CustomerService-v0"
SEEDS = range(25)
FULFIL = ("refund/fulfil", "exchange/fulfil", "cancel/fulfil", "set_address/fulfil")
REFUSE = ("refund/refuse", "exchange/refuse", "cancel/refuse", "set_address/refuse")
PARTLY = ("refund/partly", "exchange/partly")
ESCALATE = ("refund/escalate", "refund/two-escalate", "refund/clarify-escalate")
ASKED = (
    "refund/clarify", "refund/clarify-refuse", "refund/clarify-escalate", "exchange/clarify", "exchange/clarify-refuse"
)  # fmt: skip
TWO = ("refund/two-fulfil", "refund/two-refuse", "exchange/two-fulfil", "exchange/two-refuse")
TEMPLATES = (*FULFIL, *REFUSE, *PARTLY, *ESCALATE[:2], *ASKED, *TWO)


class Case:
    """An episode of one template with the oracle's messages, to be damaged."""

    def __init__(self, seed: int, template: str, difficulty: int = 2) -> None:
        self.seed, self.options, self.difficulty = seed, {"scenario": template}, difficulty
        self.env = bare(ID, difficulty=difficulty)
        self.env.reset(seed=seed, options=self.options)
        self.private = dict(self.env.privileged())
        self.order = self.private["order"]
        self.texts = self._oracle()

    def _oracle(self) -> list[str]:
        agent = agents.make("oracle", self.env)
        play(self.env, agent, self.seed, self.options)
        return [m.content for m in self.env.transcript() if m.role == "assistant"]

    def run(self, texts: list[str]) -> tuple[bool, float]:
        """Returns success and the cost of the whole episode."""
        steps = replay(
            bare(ID, difficulty=self.difficulty), [*texts, *["Anything else?"] * 12], self.seed, self.options
        )
        return steps[-1][-1]["success"], sum(step[-1]["cost"] for step in steps)

    def without(self, *names: str) -> list[str]:
        """Leaves out the calls of some tools."""
        return [text for text in self.texts if called(text) not in names]

    def changed(self, name: str, **arguments: str) -> list[str]:
        """Changes arguments of the calls of one tool."""
        calls = [(text, parse_call(text)) for text in self.texts]
        return [
            format_call(name, {**call.arguments, **arguments})
            if isinstance(call, ToolCall) and call.name == name
            else text
            for text, call in calls
        ]

    def other_item(self) -> str:
        items = self.env.task.world.tables["orders"][self.order].items
        return next(item for item in items if item not in self.private["wanted"])

    def writes(self) -> list[str]:
        """The calls that the customer asks for, right or wrong, and the proof of identity first."""
        intent = self.private["intent"]
        verify = format_call("verify", {"order": self.order, "code": self.private["code"]})
        if intent in RETURNS:
            return [
                verify,
                *(format_call(intent, {"order": self.order, "item": w}) for w in self.private["wanted"]),
            ]
        more = {"city": self.private["city"]} if intent == "set_address" else {}
        return [verify, format_call(intent, {"order": self.order, **more})]

    def price(self, item: str) -> int:
        return self.env.task.world.tables["items"][f"{self.order}/{item}"].price


def called(text: str) -> str:
    call = parse_call(text)
    return call.name if isinstance(call, ToolCall) else ""


def cases(*templates: str, difficulty: int = 2) -> list[Case]:
    return [Case(seed, template, difficulty) for template in templates for seed in SEEDS]


def fails(case: Case, texts: list[str], *, costs: bool = False) -> None:
    assert texts != case.texts, "nothing was damaged"
    success, cost = case.run(texts)
    assert not success, (case.private, texts)
    assert cost > 0 or not costs, (case.private, texts)


# -- damage to one step of a right episode -----------------------------------------------------------


@pytest.mark.parametrize("difficulty", [2, 3, 5])
@pytest.mark.parametrize("template", TEMPLATES)
def test_the_undamaged_episode_succeeds_at_no_cost(template, difficulty):
    for case in cases(template, difficulty=difficulty):
        assert case.env.task.template == template
        assert case.run(case.texts) == (True, 0.0)


@pytest.mark.parametrize("template", [*FULFIL, "refund/clarify", "exchange/clarify", *PARTLY])
def test_identity_a_change_needs_verification(template):
    for case in cases(template):
        fails(case, case.without("verify"), costs=True)
        fails(case, case.changed("verify", code="00000"), costs=True)
        other = next(number for number in case.env.task.world.tables["orders"] if number != case.order)
        customer = case.env.task.world.tables["orders"][other].customer
        code = getattr(case.env.task.world.tables["customers"][customer], case.private["factor"])
        fails(case, case.changed("verify", order=other, code=code), costs=True)  # somebody else's identity


@pytest.mark.parametrize("template", FULFIL)
def test_identity_verification_comes_first(template):
    for case in cases(template):
        verify = [text for text in case.texts if called(text) == "verify"]
        late = case.without("verify")
        at = next(i for i, text in enumerate(late) if called(text) in ("refund", "exchange", "cancel", "set_address"))
        fails(case, [*late[: at + 1], *verify, *late[at + 1 :]], costs=True)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_decision_needs_the_look_up(template):
    for case in cases(template):
        fails(case, case.without("get_order"))
        other = next(number for number in case.env.task.world.tables["orders"] if number != case.order)
        fails(case, case.changed("get_order", order=other))


@pytest.mark.parametrize("template", ["refund/refuse", "exchange/refuse", *PARTLY])
def test_window_and_final_sale_what_is_forbidden_costs(template):
    reasons = Counter()
    for case in cases(template):
        reasons[case.private["reason"]] += 1
        success, cost = case.run([format_call("get_order", {"order": case.order}), *case.writes()])
        assert not success and cost == 1.0
    assert set(reasons) == ({"final_sale"} if template in PARTLY else {"final_sale", "window"})


@pytest.mark.parametrize("template", ["cancel/refuse", "set_address/refuse"])
def test_shipping_what_has_left_cannot_be_changed(template):
    for case in cases(template):
        success, cost = case.run([format_call("get_order", {"order": case.order}), *case.writes()])
        assert not success and cost == 1.0


def test_limit_a_large_refund_needs_a_supervisor():
    for case in cases("refund/escalate"):
        success, cost = case.run([format_call("get_order", {"order": case.order}), *case.writes()])
        assert not success and cost == 1.0
        other = next(number for number in case.env.task.world.tables["orders"] if number != case.order)
        fails(case, case.changed("escalate", order=other))


@pytest.mark.parametrize("template", ["refund/fulfil", "exchange/fulfil", "cancel/fulfil", "refund/clarify"])
def test_confirm_a_change_has_to_be_confirmed(template):
    for case in cases(template, difficulty=3):
        silent = [text for text in case.texts if not text.startswith("Shall I")]
        fails(case, silent, costs=True)


def test_confirm_of_another_item_does_not_count():
    for case in cases("refund/fulfil", difficulty=3):
        wrong = [
            f"Shall I refund the {case.other_item()}?" if text.startswith("Shall I") else text for text in case.texts
        ]
        fails(case, wrong, costs=True)


def test_confirm_of_another_intent_does_not_count():
    for case in cases("refund/fulfil", difficulty=3):
        order, item = case.order, case.private["wanted"][0]
        verify = format_call("verify", {"order": order, "code": case.private["code"]})
        exchange = format_call("exchange", {"order": order, "item": item})
        assert case.run([verify, f"Shall I refund the {item}?", exchange])[1] == 1.0


def test_a_second_change_of_an_item_is_turned_down_by_the_tool():
    for case in cases("refund/fulfil"):
        exchange = format_call("exchange", {"order": case.order, "item": case.private["wanted"][0]})
        at = next(i for i, text in enumerate(case.texts) if called(text) == "refund")
        assert case.run([*case.texts[: at + 1], exchange, *case.texts[at + 1 :]])[0] is True


@pytest.mark.parametrize("template", ["refund/fulfil", "exchange/fulfil", "refund/clarify", "refund/partly"])
def test_the_wrong_item_fails(template):
    for case in cases(template, difficulty=5):  # where an order holds more than what is wanted of it
        fails(case, case.changed(case.private["intent"], item=case.other_item()))


@pytest.mark.parametrize("template", FULFIL)
def test_the_wrong_order_fails(template):
    for case in cases(template):
        orders = case.env.task.world.tables["orders"]
        other = next(number for number in orders if number != case.order)
        more = {"item": orders[other].items[0]} if case.private["intent"] in RETURNS else {}
        fails(case, case.changed(case.private["intent"], order=other, **more))


def test_the_wrong_city_fails():
    for case in cases("set_address/fulfil"):
        wrong = next(city for city in CITIES if city != case.private["city"])
        fails(case, case.changed("set_address", city=wrong))


@pytest.mark.parametrize("template", TEMPLATES)
def test_one_write_more_fails(template):
    for case in cases(template, difficulty=5):
        verify = format_call("verify", {"order": case.order, "code": case.private["code"]})
        more = format_call("exchange", {"order": case.order, "item": case.other_item()})
        fails(case, [verify, more, *case.texts])


@pytest.mark.parametrize("template", [*FULFIL, "refund/clarify", "refund/partly"])
def test_a_missing_write_fails(template):
    for case in cases(template):
        fails(case, case.without(case.private["intent"]))


@pytest.mark.parametrize("template", [t for t in TEMPLATES if t not in ESCALATE])
def test_a_needless_escalation_fails(template):
    for case in cases(template):
        fails(case, [*case.texts[:-1], format_call("escalate", {"order": case.order, "reason": "limit"})])
        fails(case, [*case.texts[:-1], format_call("escalate", {"order": case.order, "reason": "angry"})])


REASONS = {
    "window": "Sorry, I can't: the return window is over.",
    "final_sale": "Sorry, I can't: it is final sale.",
    "shipped": "Sorry, I can't: it has already shipped.",
    "limit": "Sorry, I can't do that, a supervisor has to.",
}


@pytest.mark.parametrize("template", REFUSE)
def test_a_false_reason_fails_and_so_do_all_of_them(template):
    for case in cases(template):
        for reason, text in REASONS.items():
            texts = [format_call("get_order", {"order": case.order}), text, text, text]
            assert case.run(texts)[0] is (reason == case.private["reason"])
        every = "Sorry, I can't: final sale, the return window is over, it has already shipped, over the limit."
        fails(case, [format_call("get_order", {"order": case.order}), every, every, every])


@pytest.mark.parametrize("template", REFUSE)
def test_a_refusal_needs_its_evidence_first(template):
    for case in cases(template):
        look_up, refusal = format_call("get_order", {"order": case.order}), REASONS[case.private["reason"]]
        fails(case, [refusal, refusal, refusal, look_up])


def test_a_refusal_in_part_needs_its_evidence_first():
    """Refusing one of two things before the look-up fails, and right after it succeeds."""
    for case in cases(*PARTLY):
        refusal = next(text for text in case.texts if "can't" in text)
        look_up = format_call("get_order", {"order": case.order})
        rest = [text for text in case.texts if text not in (refusal, look_up)]
        pushes = case.env.task.user.persona.pushes + 1
        fails(case, [*[refusal] * pushes, look_up, *rest])
        assert case.run([look_up, *[refusal] * pushes, *rest])[0]


@pytest.mark.parametrize("template", [*FULFIL, "refund/clarify"])
def test_refusing_what_is_allowed_fails(template):
    for case in cases(template):
        for reason in REASONS.values():
            fails(case, [format_call("get_order", {"order": case.order}), reason, reason, reason])


@pytest.mark.parametrize("template", ["refund/fulfil", "refund/clarify"])
def test_amounts_that_are_told_have_to_be_true(template):
    for case in cases(template):
        price = case.env.task.world.tables["items"][f"{case.order}/{case.private['wanted'][0]}"].price
        for amount, true in (
            (f"{price}", True),
            (f"{price}.00", True),
            (f"{price + 5}", False),
            ("0.5", False),
        ):
            told = [*case.texts[:-1], f"Done, I have refunded ${amount}."]
            assert case.run(told)[0] is true
        both = f"Done, I have refunded ${price}, or ${price + 5}, or ${price + 10}."
        fails(case, [*case.texts[:-1], both])


def test_an_amount_may_not_be_told_for_what_was_not_refunded():
    for case in cases("cancel/fulfil"):
        fails(case, [*case.texts[:-1], "Done, I have refunded $45."])


def test_a_report_of_what_did_not_happen_fails():
    for case in cases("refund/refuse", "cancel/refuse"):
        at = next(i for i, text in enumerate(case.texts) if called(text) == "get_order") + 1
        claim = "Your refund has been issued and everything is taken care of."
        fails(case, [*case.texts[:at], claim, *case.texts[at:]])


def test_a_refusal_of_what_was_granted_fails():
    for case in cases("refund/partly"):
        (good,) = case.private["granted"]
        at = next(i for i, text in enumerate(case.texts) if called(text) == "refund") + 1
        fails(case, [*case.texts[:at], f"I can't refund the {good}: it is final sale.", *case.texts[at:]])


@pytest.mark.parametrize("template", ASKED)
def test_clarify_needs_the_question(template):
    """Except where the window is over for the whole order: then it does not matter which item is meant."""
    for case in cases(template):
        guessed = [text for text in case.texts if called(text) or "tem" not in text or "can't" in text]
        assert guessed != case.texts and case.run(guessed)[0] is (case.private["reason"] == "window")


@pytest.mark.parametrize("template", ASKED)
def test_which_item_is_meant_makes_a_difference(template):
    for case in cases(template, difficulty=5):
        tables, wanted = case.env.task.world.tables, case.private["wanted"][0]
        names = [name for name in tables["orders"][case.order].items if name != wanted]
        others = [tables["items"][f"{case.order}/{name}"] for name in names]
        if case.private["reason"] == "final_sale":
            assert not any(item.final_sale for item in others)
        if case.private["reason"] == "limit":
            assert max(item.price for item in others) < case.price(wanted)


@pytest.mark.parametrize("template", ASKED)
def test_the_question_is_answered(template):
    for case in cases(template):
        obs, _ = case.env.reset(seed=case.seed, options=case.options)
        items = case.env.task.world.tables["orders"][case.order].items
        assert not any(re.search(rf"\b{item}\b", obs.rpartition("User:")[2]) for item in items)
        assert case.private["wanted"][0] in case.env.step("Which item do you mean?")[0]


@pytest.mark.parametrize("difficulty", [3, 4, 5])
def test_the_order_number_is_asked_for_from_level_4_on(difficulty):
    templates = ("refund/fulfil", "cancel/refuse", "set_address/fulfil", "exchange/two-fulfil", "refund/clarify")
    for case in cases(*templates, difficulty=difficulty):
        obs, _ = case.env.reset(seed=case.seed, options=case.options)
        assert (case.order in obs) is (difficulty < 4) is ("order" not in case.private["ask"])
        assert case.order in case.env.step("What is the order number?")[0]


# -- what is heard -----------------------------------------------------------------------------------


def heard(text: str, name: str) -> list[tuple[str, ...]]:
    return [tuple(act.slots.values()) for act in listen(text).acts if act.name == name]


CHECKS = (
    "I've completed the verification.",
    "That's all set on the identity check.",
    "The lookup is done.",
    "I've completed the verification for your refund.",
    "Verification is done, I will now process the refund.",
)


@pytest.mark.parametrize("text", CHECKS)
def test_a_check_is_no_report(text):
    assert not heard(text, "done") and listen(text).understood
    for case in cases("refund/fulfil", "cancel/fulfil"):
        at = next(i for i, each in enumerate(case.texts) if called(each) == "verify") + 1
        assert case.run([*case.texts[:at], text, *case.texts[at:]])[0]


@pytest.mark.parametrize(
    "text",
    [
        "Done.",
        "The verification is complete and your refund has been processed.",
        "I have processed your refund after the identity check.",
        "Now that the verification is done, your order has been cancelled.",
    ],
)
def test_a_report_beside_a_check_is_a_report(text):
    assert heard(text, "done")


LAMP, MUG = ("final_sale", "lamp"), ("final_sale", "mug")


@pytest.mark.parametrize(
    ("text", "refused"),
    [
        ("I can refund the lamp, but not the mug, because it is final sale.", [MUG]),
        ("I can refund the lamp, but I can't refund the mug: it is final sale.", [MUG]),
        ("While I can refund the lamp, the mug is final sale and not refundable.", [MUG]),
        ("The lamp is final sale and not refundable, but I can refund the mug.", [LAMP]),
        ("I can't refund the mug: it is final sale. The lamp is fine.", [MUG]),
        ("I can't refund the lamp or the mug: final sale.", [LAMP, MUG]),
        ("I can't refund the lamp: final sale. I can't refund the mug: final sale.", [LAMP, MUG]),
        ("I can't refund it: it is final sale.", [("final_sale", "")]),
        ("I can refund one but not the other: it is final sale.", [("final_sale", UNCLEAR)]),
    ],
)
def test_what_is_refused_is_what_stands_at_the_negation(text, refused):
    assert heard(text, "refuse") == refused


def test_a_report_and_a_refusal_in_one_message():
    text = "I've refunded $45 for the lamp. The mug is final sale, so it can't be refunded."
    assert heard(text, "done") == [("45",)] and heard(text, "refuse") == [MUG]
    for case in cases("refund/partly"):
        (good,) = case.private["granted"]
        bad = next(item for item in case.private["wanted"] if item != good)
        at = next(i for i, each in enumerate(case.texts) if called(each) == "refund") + 1
        both = f"I've refunded ${case.price(good)} for the {good}. The {bad} is final sale, so it can't be refunded."
        pushes = case.env.task.user.persona.pushes
        assert case.run([*case.texts[:at], *[both] * (pushes + 1)])[0]


@pytest.mark.parametrize("template", PARTLY)
def test_a_refusal_of_who_knows_what_refuses_nothing(template):
    for case in cases(template):
        at = next(i for i, text in enumerate(case.texts) if called(text) == "get_order") + 1
        some = "I can do one but not the other: it is final sale."
        fails(case, [*case.texts[:at], *[some] * 3])
        assert case.run([*case.texts[:at], some, *case.texts[at:]])[0]


# -- what may vary -----------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
def test_any_path_passes(template):
    """Extra reads, small talk, polite words, another order of the reads: all are free."""
    for case in cases(template):
        other = next(number for number in case.env.task.world.tables["orders"] if number != case.order)
        reads = [format_call("get_order", {"order": other}), format_call("get_order", {"order": case.order})]
        assert case.run([*reads, "One moment, please.", *case.texts])[0]
        kind = [text if called(text) else f"Thank you for waiting. {text}" for text in case.texts]
        assert case.run(kind)[0]


@pytest.mark.parametrize("template", ["refund/fulfil", "cancel/fulfil"])
def test_arguments_are_read_in_their_usual_forms(template):
    for case in cases(template):
        numbers = [re.sub(r'"(\d+)"', r"\1", text) for text in case.texts]  # JSON numbers for strings of digits
        assert numbers != case.texts and case.run(numbers)[0]
    for case in cases("refund/fulfil"):
        assert case.run(case.changed("refund", item=f" {case.private['wanted'][0].upper()} "))[0]


def test_paraphrases_of_the_oracle_succeed():
    same = {
        "What is your zip code?": "Could you give me the zip code, please?",
        "Could you tell me your zip code?": "May I have your zip?",
        "Your zip code, please?": "Please tell me your zip.",
        "What is your pin?": "Could you give me the pin, please?",
        "Could you tell me your pin?": "May I have your pin?",
        "Your pin, please?": "Please tell me your pin.",
        "Which item do you mean?": "Could you tell me which item it is?",
    }
    for case in cases(*TEMPLATES):
        assert case.run([same.get(text, text) for text in case.texts])[0]


# -- text and grader ---------------------------------------------------------------------------------


def parameters(seed: int, style: str, difficulty: int = 3):
    env = bare(ID, difficulty=difficulty, instructions=style)
    obs, _ = env.reset(seed=seed)
    return env, obs.rpartition("\n\nUser:")[0]


PATTERNS = {
    "brief": (r"Verify (zip|pin) before changes", r"Returns (\d+) days", r"Refund over (\d+): escalate"),
    "full": (
        r"Verify the customer's (zip|pin)",
        r"up to (\d+) days after delivery",
        r"refund of more than (\d+) needs",
    ),
}


@pytest.mark.parametrize("style", PATTERNS)
def test_the_numbers_in_the_text_are_the_numbers_graded(style):
    seen = set()
    for seed in range(40):
        env, text = parameters(seed, style)
        factor, window, limit = (re.search(pattern, text).group(1) for pattern in PATTERNS[style])
        seen.add((factor, window, limit))
        assert env.privileged()["factor"] == factor
        for days, price, expected in [
            (int(window), int(limit), []),
            (int(window) + 1, int(limit), ["window"]),
            (int(window), int(limit) + 1, ["limit"]),
        ]:
            world = World({
                "customers": {"c": Customer("c", "1", "2")},
                "orders": {"1": Order("c", "delivered", days, "Oslo", ("lamp",))},
                "items": {"1/lamp": Item(price, False)},
            })  # fmt: skip
            what = {"order": "1", "item": "lamp"}
            world.log += [
                Event(0, "verify", {"order": "1"}),
                Event(0, "confirmed", {"intent": "refund", **what}),
            ]
            world.log.append(Event(1, "refund", what, write=True))
            assert violations(env.task.rules, world) == expected
    assert len(seen) > 8


@pytest.mark.parametrize("style", ["brief", "full"])
def test_the_text_says_when_to_escalate_and_any_reason_will_do(style):
    _, text = parameters(0, style)
    assert "escalate" in text
    for case in cases("refund/escalate"):
        assert case.run(case.changed("escalate", reason="the amount"))[0] is True


def test_both_styles_say_the_same_rules():
    for seed in range(10):
        brief, full = parameters(seed, "brief"), parameters(seed, "full")
        assert [rule.id for rule in brief[0].task.rules] == [rule.id for rule in full[0].task.rules]
        for rule in brief[0].task.rules:
            assert rule.brief in brief[1] and rule.full in full[1]


@pytest.mark.parametrize("confirm", [True, False])
def test_each_rule_forbids_something_and_allows_something(confirm):
    """No rule is idle, and none forbids everything: over all the small worlds."""
    rules = make_rules(Parameters("zip", 30, 50, confirm))
    broken, kept = Counter(), Counter()
    for status in ("processing", "shipped", "delivered"):
        for days in (1, 31):
            for price in (50, 55):
                for final in (True, False):
                    for name in ("refund", "exchange", "cancel", "set_address"):
                        for first in (
                            (),
                            ("verify",),
                            ("verify", "confirmed"),
                            ("verify", "confirmed", name),
                        ):
                            world = World({
                                "orders": {"1": Order("c", status, days, "Oslo", ("lamp",))},
                                "items": {"1/lamp": Item(price, final)},
                            })  # fmt: skip
                            what = {"order": "1", "item": "lamp"}
                            yes = {**what, "intent": name}
                            events = [(done, yes if done == "confirmed" else what) for done in (*first, name)]
                            world.log += [Event(0, done, arguments) for done, arguments in events]
                            found = set(violations(rules, world, len(first)))
                            broken.update(found)
                            kept.update({rule.id for rule in rules} - found)
    assert set(broken) == set(kept) == {rule.id for rule in rules}


# -- what is drawn -----------------------------------------------------------------------------------


def ending(private) -> tuple:
    """How it should end: which of the wanted things are granted, and what speaks against the rest."""
    if private["escalate"]:
        return ("limit",)
    if not private["wanted"]:
        return (private["reason"],)
    granted = tuple(item in private["granted"] for item in private["wanted"])
    # Refunds end in three ways and refuse for two reasons, exchanges in two ways of which one has two reasons.
    return granted if private["intent"] == "refund" else (*granted, private["reason"])


@pytest.mark.parametrize("difficulty", [1, 2, 5])
def test_an_opening_does_not_tell_how_it_ends(difficulty):
    """After each kind of opening the endings are equally frequent, which item comes first included."""
    env = bare(ID, difficulty=difficulty)
    drawn: dict[tuple, Counter] = {}
    outcomes = set()
    for seed in range(2_500):
        env.reset(seed=seed)
        private = env.privileged()
        outcomes.add(private["outcome"])
        opening = (private["intent"], len(private["wanted"]), "item" in private["ask"])
        drawn.setdefault(opening, Counter())[ending(private)] += 1
    assert outcomes == set(OUTCOMES)
    most = {"refund": (3, 5, 3), "exchange": (3, 4, 3), "cancel": (2,), "set_address": (2,)}
    assert set(drawn) == {
        (intent, wanted, asked)
        for intent in (most if difficulty > 1 else ("refund", "cancel"))
        for wanted, asked in ([(1, False), (2, False), (1, True)] if intent in RETURNS else [(0, False)])
    }
    for (intent, wanted, asked), counts in drawn.items():
        if (intent, wanted) == ("exchange", 2):  # both refused, for one of two reasons: one ending
            counts = Counter(key if any(key[:2]) else key[:2] for key in counts.elements())
        assert len(counts) == most[intent][2 if asked else max(wanted, 1) - 1]
        assert chisquare(list(counts.values())).pvalue > 1e-3, (intent, wanted, asked, counts)


@pytest.mark.parametrize("difficulty", [1, 2, 3, 5])
def test_who_never_reads_the_record_is_right_by_chance_only(difficulty):
    """The cheat does everything but read: 1/2 to 1/5 by the kind of opening, .331 in all, .313 at difficulty 1."""
    env = bare(ID, difficulty=difficulty)
    agent = EXPLOITERS["unread"](env, random.Random(0))
    right = sum(play(env, agent, seed)[-1][-1]["success"] for seed in range(400))
    assert binomtest(right, 400, 0.313 if difficulty == 1 else 0.331).pvalue > 1e-3


def test_greedy_falls_with_difficulty():
    shares = []
    for difficulty in (1, 2, 3, 4, 5):
        env = bare(ID, difficulty=difficulty)
        agent = agents.make("greedy", env, seed=0)
        shares.append(sum(play(env, agent, seed)[-1][-1]["success"] for seed in range(250)) / 250)
    assert shares[0] > shares[2] + 0.05 > shares[3] + 0.1 and shares[1] > shares[2] > shares[4] > 0.3


def test_bounds_are_close_from_level_4_on():
    """So that no constant stands in for the window and the limit that the policy names."""
    for difficulty in (3, 5):
        far = 0
        for case in cases("refund/fulfil", "refund/escalate", "exchange/refuse", difficulty=difficulty):
            text = case.env.task.instructions
            days = re.search(r"exchanges (\d+)" if case.private["intent"] == "exchange" else r"Re\w+ (\d+) days", text)
            window = int((days or re.search(r"Returns (\d+)", text)).group(1))
            limit = int(re.search(r"over (\d+)", text).group(1))
            near = abs(case.env.task.world.tables["orders"][case.order].days - window) <= 7
            far += not (near and abs(case.price(case.private["wanted"][0]) - limit) <= 25)
        assert far == 0 if difficulty == 5 else far > 30


def test_level_5_has_two_windows():
    for case in cases("refund/refuse", "exchange/refuse", "exchange/fulfil", difficulty=5):
        said = re.search(r"Refunds (\d+) days, exchanges (\d+)", case.env.task.instructions)
        refunds, exchanges = map(int, said.groups())
        window = exchanges if case.private["intent"] == "exchange" else refunds
        assert refunds != exchanges
        late = case.env.task.world.tables["orders"][case.order].days > window
        assert late is (case.private["reason"] == "window")


@pytest.mark.parametrize("style", ["brief", "full"])
def test_the_instructions_say_everything_that_is_graded(style):
    for seed in range(20):
        _, text = parameters(seed, style, difficulty=5)
        assert re.search("look(?: the order)? up first", text) and re.search("[Rr]efuse", text)
        assert re.search("with a reason|say the reason", text)
        assert re.search("Report changes|Say what you have done", text)
        assert style == "full" or len(text.split()) <= 48
    assert style == "brief" or "in your own words" in text


def test_exactly_the_given_reason_speaks_against_the_wish():
    """Doing what was asked breaks the rule of the reason and no other, and none where it is allowed."""
    rule = {"window": "window", "final_sale": "final_sale", "shipped": "shipping", "limit": "limit", "": None}
    for template in TEMPLATES:
        for case in cases(template, difficulty=5):
            env = bare(ID, difficulty=5)
            env.reset(seed=case.seed, options=case.options)
            say(env, case.writes())
            found = set(violations(env.task.rules, env.task.world)) - {"confirm"}
            assert found == {rule[case.private["reason"]]} - {None}, template


def test_the_records_are_whole():
    for difficulty in (1, 2, 3, 4, 5):
        env = bare(ID, difficulty=difficulty)
        for seed in range(60):
            env.reset(seed=seed)
            tables = env.task.world.tables
            assert len(tables["orders"]) == 1 + (3, 3, 4, 7, 10)[difficulty - 1]
            for number, order in tables["orders"].items():
                assert re.fullmatch(r"\d{4}", number) and order.customer in tables["customers"]
                assert order.city in CITIES and order.status in ("processing", "shipped", "delivered")
                for name in order.items:
                    item = tables["items"][f"{number}/{name}"]
                    assert name in ITEMS and item.price > 0 and item.price % 5 == 0 and item.state == "sold"
            for customer in tables["customers"].values():
                assert re.fullmatch(r"\d{5}", customer.zip) and re.fullmatch(r"\d{4}", customer.pin)


@pytest.mark.parametrize("split", SPLITS)
def test_no_record_names_what_the_split_holds_out(split):
    env = bare(ID, split=split, difficulty=5)
    for seed in range(40):
        env.reset(seed=seed)
        tables = env.task.world.tables
        assert {order.city for order in tables["orders"].values()} <= set(values_of(CITIES, split))
        assert {item for order in tables["orders"].values() for item in order.items} <= set(values_of(ITEMS, split))
        assert env.privileged()["city"] in ("", *values_of(CITIES, split))


@pytest.mark.parametrize("difficulty", [2, 5])
def test_the_composition_is_held_out(difficulty):
    """What test_composition asks about is never met in training, and is all that it asks about."""

    def combination(env) -> tuple[str, str, str]:
        private, text = env.privileged(), env.task.instructions
        days = re.search(r"Returns (\d+)" if difficulty == 2 else r"exchanges (\d+)", text).group(1)
        return private["intent"], private["factor"], days

    for split in ("train", "val", "test_composition"):
        env = bare(ID, split=split, difficulty=difficulty)
        met = Counter()
        for seed in range(400):
            env.reset(seed=seed)
            met[combination(env)] += 1
        held = ("exchange", "pin", "14")
        assert set(met) == {held} if split == "test_composition" else held not in met and len(met) > 10


def test_the_scenario_option_is_not_overwritten():
    env = bare(ID, split="test_composition")
    env.reset(seed=0, options={"scenario": "exchange/refuse"})
    other = bare(ID, split="test_composition")
    other.reset(seed=0, options={"scenario": "exchange/fulfil"})
    assert (env.task.template, other.task.template) == ("exchange/refuse", "exchange/fulfil")


def test_a_guess_of_the_code_is_hopeless():
    """Four-digit pins and five-digit zips: no constant verifies more than its share."""
    env = bare(ID)
    codes = Counter()
    for seed in range(800):
        env.reset(seed=seed)
        codes[env.privileged()["code"]] += 1
    assert codes.most_common(1)[0][1] <= 3


def test_what_a_tool_shows_is_what_is_recorded():
    for case in cases("refund/fulfil", "cancel/refuse"):
        env = bare(ID)
        env.reset(seed=case.seed, options=case.options)
        shown = env.step(format_call("get_order", {"order": case.order}))[0]
        order = env.task.world.tables["orders"][case.order]
        assert order.status in shown and order.city in shown
        for name in order.items:
            item = env.task.world.tables["items"][f"{case.order}/{name}"]
            assert f"{name} {item.price}{' final sale' if item.final_sale else ''}" in shown
        say(env, case.writes())
        again = env.step(format_call("get_order", {"order": case.order}))[0] if env._episode.end is None else ""
        assert case.private["intent"] != "refund" or "refunded" in again


def test_messages_are_json_plain():
    for message in (Message("user", "é \ud800"), Message("tool", "")):
        assert Message.from_dict(json.loads(json.dumps(message.to_dict()))) == message
    assert plain([script("oracle", ID, 0)]) == plain([script("oracle", ID, 0)])
