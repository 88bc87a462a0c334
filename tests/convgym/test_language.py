"""What is said and what is heard: templates, noise, the classifier, and how much of free phrasing is understood."""

from __future__ import annotations

import json
import random
from collections import Counter
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import understanding
from benchmarks.understanding import TRAINED, Phrasing, measure, phrasings
from convgym import agents
from convgym.core import SPLITS
from convgym.errors import UnknownNameError
from convgym.language import classify
from convgym.language.noise import add_typos
from convgym.language.speak import load_bank, say, wordings
from convgym.language.understand import READ
from convgym.scenarios import customer_service, slot_filling
from convgym.seeding import Streams
from tests.convgym.play import bare, play

FAMILIES = {"customer_service": customer_service, "slot_filling": slot_filling}
LABELLED = list(phrasings())
SEEN = [line for line in LABELLED if not line.unseen]
UNSEEN = [line for line in LABELLED if line.unseen]
SHARED = [line for line in LABELLED if line.family in FAMILIES]


# -- the labelled set --------------------------------------------------------------------------------


def test_the_labelled_set_is_large_enough():
    assert len(LABELLED) >= 2_900
    assert all(count >= 5 for count in Counter((line.family, line.act) for line in LABELLED).values())
    assert len(UNSEEN) >= len(LABELLED) / 4, "enough is kept for measuring only"


def test_no_phrasing_stands_twice_in_a_file():
    assert not [key for key, count in Counter((line.family, line.text) for line in LABELLED).items() if count > 1]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_slot_reason_and_verb_has_phrasings(family):
    domain = FAMILIES[family].DOMAIN
    kinds = {("request", slot) for slot in domain.slots}
    kinds |= {("confirm", verb) for verb in domain.verbs} | {("refuse", reason) for reason in domain.reasons}
    assert kinds <= {(line.act, line.value) for line in LABELLED if line.family == family}


# -- understanding -----------------------------------------------------------------------------------

RECALL = {  # of the unseen part, measured 2026-11-22: (found, labelled); one phrasing less is the floor
    "affirm": (18, 23),
    "bye": (26, 30),
    "confirm": (51, 68),
    "done": (20, 28),
    "empathy": (19, 26),
    "greet": (17, 19),
    "none": (50, 55),
    "offer": (29, 31),
    "promise": (24, 29),
    "refuse": (54, 73),
    "request": (116, 137),
    "thank": (26, 26),
    "clarification: none": (5, 5),
    "clarification: request": (40, 48),
    "de_escalation: acknowledge": (15, 21),
    "de_escalation: done": (6, 8),
    "de_escalation: none": (4, 6),
    "de_escalation: phrase": (6, 7),
    "de_escalation: propose": (4, 5),
    "de_escalation: request": (6, 6),
    "long_memory: affirm": (8, 10),
    "long_memory: none": (5, 5),
    "long_memory: tell": (35, 35),
    "multi_intent: confirm": (8, 9),
    "multi_intent: done": (19, 20),
    "multi_intent: none": (6, 6),
    "multi_intent: refuse": (6, 7),
    "negotiation: accept": (7, 9),
    "negotiation: ask": (1, 2),
    "negotiation: none": (2, 3),
    "negotiation: price": (22, 22),
    "negotiation: reject": (2, 3),
    "negotiation: walk": (2, 3),
    "policy_refusal: done": (4, 6),
    "policy_refusal: grant": (3, 5),
    "policy_refusal: none": (6, 6),
    "policy_refusal: refuse": (26, 29),
    "social_engineering: digits": (3, 3),
    "social_engineering: done": (2, 3),
    "social_engineering: mismatch": (4, 6),
    "social_engineering: none": (3, 3),
    "social_engineering: refuse": (11, 12),
    "social_engineering: request": (9, 11),
    "tool_database: done": (3, 3),
    "tool_database: none": (3, 5),
    "tool_database: refuse": (7, 8),
    "tool_database: tell": (24, 24),
    "triage: check": (12, 16),
    "triage: none": (5, 5),
    "triage: request": (27, 27),
    "twenty_questions: ask": (47, 50),
    "twenty_questions: none": (3, 3),
}
CLAIMS = {  # of the unseen part, measured 2026-11-22: (right, heard); one wrong claim more is the floor
    "done": (20, 24),
    "refuse": (54, 61),
    "confirm": (51, 52),
    "de_escalation: acknowledge": (15, 15),
    "de_escalation: done": (6, 7),
    "long_memory: tell": (35, 35),
    "multi_intent: confirm": (8, 8),
    "multi_intent: done": (19, 19),
    "multi_intent: refuse": (6, 6),
    "negotiation: accept": (7, 8),
    "negotiation: price": (22, 22),
    "negotiation: walk": (2, 2),
    "policy_refusal: done": (4, 4),
    "policy_refusal: grant": (3, 3),
    "policy_refusal: refuse": (26, 29),
    "social_engineering: done": (2, 2),
    "social_engineering: refuse": (11, 12),
    "tool_database: refuse": (7, 7),
    "tool_database: tell": (24, 24),
    "triage: check": (12, 12),
    "twenty_questions: ask": (47, 47),
}
SEEN_CLAIMS = {  # of the seen part, (right, heard): the few that are heard beside the label, each of them looked at
    "confirm": (105, 106),
    "multi_intent: done": (51, 52),
    "negotiation: accept": (19, 21),
    "negotiation: price": (51, 53),
    "social_engineering: refuse": (19, 21),
}


@cache
def measured(unseen: bool) -> dict[str, understanding.Tally]:
    return measure(UNSEEN if unseen else SEEN)


@pytest.mark.parametrize("act", RECALL)
def test_recall_of_unseen_phrasings(act):
    found, labelled = RECALL[act]
    tally = measured(True)[act]
    assert tally.found / tally.labelled >= (found - 1) / labelled


def test_every_act_has_a_floor():
    assert set(RECALL) == set(measured(True))


@pytest.mark.parametrize("act", CLAIMS)
def test_precision_of_claims_in_unseen_phrasings(act):
    right, heard = CLAIMS[act]
    tally = measured(True)[act]
    assert tally.right / tally.heard >= right / (heard + 1)


@pytest.mark.parametrize("act", CLAIMS)
def test_precision_of_claims_in_seen_phrasings(act):
    tally = measured(False)[act]
    right, heard = SEEN_CLAIMS.get(act, (1, 1))
    assert tally.right / tally.heard >= right / heard


def wrong_claims(line: Phrasing) -> list[str]:
    """What is heard in a phrasing as a claim that it is not: a reason, a report, an amount."""
    wrong = []
    for act in understanding.listen(line).acts:
        reason, amount = act.slots.get("reason"), act.slots.get("amount", "")
        false_reason = act.name == "refuse" and bool(reason) and (line.act, line.value) != ("refuse", reason)
        false_report = act.name == "done" and line.act != "done"
        if false_reason or false_report or amount not in line.text.replace(",", ""):
            wrong.append(f"{line.act}/{line.value}: {line.text} -> {act}")
    return wrong


def test_nothing_is_heard_as_a_claim_that_it_is_not():
    """A missed act costs a turn; a claim that was never made would cost the episode."""
    assert [wrong for line in SEEN if line.family in TRAINED for wrong in wrong_claims(line)] == []


def test_little_of_the_unseen_part_is_heard_as_a_claim_that_it_is_not():
    wrong = sum(len(wrong_claims(line)) for line in UNSEEN if line.family in TRAINED)
    assert wrong <= 5  # measured 2026-11-22, in 545 phrasings


@pytest.mark.parametrize("family", FAMILIES)
def test_the_agents_own_templates_are_understood(family):
    module = FAMILIES[family]
    for key, templates in load_bank(family, "agent").items():
        verb, _, rest = key.partition("_")
        if not rest:  # greetings and the like, from the shared bank
            assert all(module.listen(template).understood for template in templates)
            continue
        name = {"ask": "request", "offer": "confirm", "done": "done", "refuse": "refuse"}[verb]
        value = rest.removeprefix("item_").replace("blank", "") if verb == "refuse" else rest
        for template in templates:
            acts = module.listen(template.replace("{item}", "lamp")).acts
            assert name in {act.name for act in acts}, template
            if name != "done":
                assert value in {v for act in acts if act.name == name for v in act.slots.values()}, template
            if "{item}" in template and name in ("refuse", "confirm"):
                assert all(act.slots["item"] == "lamp" for act in acts if act.name == name), template


@given(st.text(st.characters(codec=None), max_size=200))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_listening_never_raises_and_is_a_function(text):
    for module in FAMILIES.values():
        heard = module.listen(text)
        assert heard == module.listen(text)
        assert heard.understood == (bool(heard.acts) or not text[:READ].strip())


def test_only_the_beginning_is_read():
    for module in FAMILIES.values():
        start = "What is the name of the city? ".ljust(READ)
        assert module.listen(start + "Sorry, I can't: it is final sale. $1,000") == module.listen(start)


def test_case_spacing_and_quotes_do_not_matter():
    for line in SHARED:
        listen, text = FAMILIES[line.family].listen, line.text
        assert listen(text) == listen(f"  {text.upper()}\n".replace(" ", "  ")) == listen(text.replace("'", "’"))


# -- the classifier ----------------------------------------------------------------------------------


@given(st.text(st.characters(codec=None), max_size=300))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_any_text_is_classified(text):
    guess = classify.classify(text)
    assert guess == classify.classify(text)
    assert guess.act in {line.act for line in LABELLED} and 0.0 <= guess.probability <= 1.0


@given(st.text(st.characters(codec=None), max_size=300))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_features_are_a_unit_vector_over_the_buckets(text):
    buckets, values = classify.features(text)
    assert len(set(buckets.tolist())) == len(buckets) == len(values)
    assert all(0 <= bucket < classify.BUCKETS for bucket in buckets)
    assert not len(values) or np.isclose(np.linalg.norm(values), 1.0)


def test_a_text_without_words_is_no_act():
    assert classify.classify(" ... ") == classify.Guess("none", 1.0)


def test_only_the_beginning_is_classified():
    start = "What is your PIN? ".ljust(classify.READ, "a")
    assert classify.classify(start + " goodbye and thanks " * 50_000) == classify.classify(start)


def shipped() -> tuple[tuple[str, ...], np.ndarray]:
    acts = tuple(json.loads((understanding.WEIGHTS / "acts.json").read_text("utf-8"))["acts"])
    weights = np.frombuffer((understanding.WEIGHTS / "weights.f16").read_bytes(), np.float16)
    return acts, weights.reshape(-1, len(acts))


def test_the_weights_fit_the_acts():
    acts, weights = shipped()
    assert weights.shape == (classify.BUCKETS + 1, len(acts)) and np.isfinite(weights).all()
    assert set(acts) == {line.act for line in SEEN if line.family in TRAINED}


def test_training_on_the_seen_part_gives_the_shipped_weights():
    """Up to the rounding of float16, relative to the largest weight: other machines sum in another order."""
    acts, weights = understanding.train([line for line in SEEN if line.family in TRAINED])
    names, kept = shipped()
    assert acts == names
    largest = float(np.abs(kept).max())
    assert np.allclose(weights.astype(float), kept.astype(float), rtol=0, atol=largest * 2**-10)


# -- speaking ----------------------------------------------------------------------------------------

KEYS = [(family, key) for family in FAMILIES for key in load_bank(family, "user")]


@pytest.mark.parametrize(("family", "key"), KEYS)
def test_held_out_wordings_are_disjoint_from_all_others(family, key):
    templates = load_bank(family, "user")[key]
    assert len(templates) >= 3 and len(set(templates)) == len(templates)
    shares = {split: set(wordings(templates, split)) for split in SPLITS}
    assert shares["train"] and shares["test_language"]
    assert shares["train"] < shares["val"]  # validation adds new wordings
    for split in set(SPLITS) - {"test_language"}:
        assert not shares[split] & shares["test_language"]
    for split in ("test_goal", "test_composition", "test_user"):
        assert shares[split] == shares["train"]
    assert shares["val"] | shares["test_language"] == set(templates)


@pytest.mark.parametrize("family", FAMILIES)
def test_held_out_wordings_are_never_said_in_training(family):
    """Plays, and looks for every held-out template in what users said; and the other way round."""
    env_id = {"customer_service": "convgym/CustomerService-v0", "slot_filling": "convgym/SlotFilling-v0"}[family]
    said: dict[str, Counter] = {}
    for split in ("train", "val", "test_language"):
        env = bare(env_id, split=split, difficulty=3)
        said[split] = Counter()
        for seed in range(60):
            play(env, agents.make("clerk", env, seed=seed), seed)
            said[split].update(template_of(family, turn) for turn in user_lines(env))
    bank = load_bank(family, "user")
    held = {t for templates in bank.values() for t in wordings(templates, "test_language")}
    trained = {t for templates in bank.values() for t in wordings(templates, "train")}
    for split, heard in said.items():
        used = {template for lines in heard for template in lines}
        assert used
        assert not used & (trained - held if split == "test_language" else held - trained), split


def user_lines(env) -> list[str]:
    return [message.content for message in env.transcript() if message.role == "user"]


def template_of(family: str, line: str) -> tuple[str, ...]:
    """Names the templates with no slots whose words stand in a line as a whole sentence."""
    bank = load_bank(family, "user")
    whole = f" {line} "
    return tuple(t for templates in bank.values() for t in templates if "{" not in t and f" {t} " in whole)


def test_every_brace_is_filled():
    for family, env_id in (
        ("customer_service", "convgym/CustomerService-v0"),
        ("slot_filling", "convgym/SlotFilling-v0"),
    ):
        for split in SPLITS:
            env = bare(env_id, split=split, difficulty=3)
            for seed in range(20):
                play(env, agents.make("clerk", env, seed=seed), seed)
                assert not any("{" in line or "}" in line for line in user_lines(env)), family


def test_values_are_inserted_and_not_formatted():
    bank = {"x": ("{a} and {b}",) * 3}
    surface = Streams(0, 0).stream("surface")
    assert say(bank, "x", {"a": "{b}", "b": "{0.__class__}"}, surface, "train") == "{b} and {0.__class__}"
    assert say(bank, "x", {"a": "%s {}"}, surface, "train") == "%s {} and {b}"


def test_an_unknown_speaker_is_named():
    with pytest.raises(UnknownNameError, match="Did you mean 'agent'"):
        load_bank("slot_filling", "agnt")


# -- noise -------------------------------------------------------------------------------------------


@given(st.text("abcdeXYZ 0123456789.,?", max_size=80), st.floats(0, 1), st.integers(0, 2**32))
@settings(max_examples=100, derandomize=True, deadline=None)
def test_typos_keep_ids_numbers_and_letters(text, rate, seed):
    typed = add_typos(text, rate, random.Random(seed))
    assert typed == add_typos(text, rate, random.Random(seed))
    words, noisy = text.split(" "), typed.split(" ")
    assert len(words) == len(noisy)
    for word, other in zip(words, noisy):
        assert Counter(word) == Counter(other)
        if not (len(word) >= 4 and word.isalpha() and word.islower()):
            assert word == other
        elif word != other:
            assert word[0] == other[0] and sum(a != b for a, b in zip(word, other)) == 2


def test_typo_rates():
    text = " ".join(["abcdef"] * 2_000)
    assert add_typos(text, 0.0, random.Random(0)) == text
    changed = sum(word != "abcdef" for word in add_typos(text, 0.1, random.Random(0)).split(" "))
    assert abs(changed - 200) < 5 * (2_000 * 0.1 * 0.9) ** 0.5
