"""DeEscalation: an angry customer with a real problem, who says in which order it wants empathy and repair."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, pairwise, permutations, product
from typing import ClassVar, NamedTuple

from pydantic import Field

from convgym import rules as policy
from convgym.core import ConversationEnv, Split, Task, expect, values_of
from convgym.language.speak import load_bank
from convgym.language.understand import READ, Domain, understand
from convgym.rules import AtMostOnce, OnlyIf, Rule
from convgym.seeding import Streams
from convgym.tools import Arguments, Tool, ToolResult, describe, format_call
from convgym.types import Act, EndReason, Event, Heard, Outcome, Reply
from convgym.users.base import Speaker, draw_persona
from convgym.world import World

__all__ = [
    "EFFECTS", "KINDS", "PROBLEMS", "REMEDIES", "TRIGGERS", "WISHES", "Complainer", "DeEscalation", "Settled",
]  # fmt: skip

ITEMS = (
    "lamp", "mug", "chair", "kettle", "scarf", "clock", "radio", "tent", "drill", "vase", "rug", "jacket",
    "desk", "fan", "bag", "watch", "guitar", "mirror", "blender", "suitcase", "toaster", "camera", "sofa", "bike",
)  # fmt: skip
REMEDIES = ("refund", "resend", "credit", "discount", "upgrade", "gift")
FIXES = frozenset(REMEDIES)

PROBLEMS: dict[str, str] = {
    # problem: how an agent names it
    "broken": r"broken?|breaks?|damaged?|(?:in|to) (?:\w+ )?pieces|smashed|cracked|shattered|defect(?:ive)?|faulty|"
    r"(?:does|did)(?:n't| not) work|not work(?:ing)?|stopped working|fell apart",
    "late": r"late|delay(?:s|ed)?|overdue|still waiting|(?:been|kept|keep you) waiting|"
    r"never (?:came|arrived|showed up|reached you)|not (?:here|with you)|have(?:n't| not) received|"
    r"(?:not|hasn't|didn't|yet to) (?:yet )?(?:arrived?|come|been delivered|reach(?:ed)? you|turned up)|"
    r"should have (?:been (?:there|here|with you|delivered)|arrived|come|reached you)",
    "wrong": r"wrong (?:item|thing|product|one|order|article|parcel|box)|mix(?:ed)?[- ]?up|mix(?:ed)? (?:\w+ ){1,4}up|"
    r"(?:sent|got|received|delivered) (?:you )?(?:the )?wrong|"
    r"something (?:else|(?:completely |entirely |totally |quite |very )?different)|instead of|"
    r"not (?:what|the \w+ (?:that )?)(?:you|i)(?: had| have)? ordered|different (?:item|thing|product|article)",
    "incomplete": r"incomplete|missing|not complete|without (?:all )?(?:of )?(?:its |the )?parts?|lack(?:s|ing|ed)?|"
    r"(?:only )?half (?:of|there)|(?:not|wasn't|weren't|isn't|aren't) (?:all )?(?:complete|included|in the (?:box|"
    r"package|parcel))|"
    r"not everything|not all (?:of )?(?:the|its) parts|forgot (?:to (?:pack|include|put)|some|one|a part|parts)",
    "used": r"used(?! to)|signs of (?:use|wear)|(?:wasn't|isn't) (?:\w+ )?new|second[- ]?hand|worn|dirty|stain(?:s|"
    r"ed)|not (?:a )?new|pre-?owned|somebody else's",
}
SAYS = {
    # problem: how the policy names it, briefly and in full
    "broken": ("Broken", "came broken"),
    "late": ("Late", "is late"),
    "wrong": ("Wrong item", "is the wrong item"),
    "incomplete": ("Parts missing", "has parts missing"),
    "used": ("Used", "was used before"),
}
TRIGGERS: dict[str, str] = {
    # what sets somebody off: how an agent does it
    "apology": r"sorry|my bad|excuse (?:us|me)|apolog(?:y|ies|i[sz]e)|regret|forgive|pardon",
    "calm": r"calm|relax|deep breath|cool down|settle down|chill|no (?:reason|need) to (?:be|get) \w+|(?:do not|"
    r"don't|no need to) (?:worry|be (?:angry|upset))|no worries|take it easy|easy now",
    "script": r"i (?:fully |completely |totally )?understand (?:your|how|that|why)|frustrat\w+|inconvenience|"
    r"value(?:d)? (?:you|customers?)|important to us|rest assured|matters to us|our (?:top )?priority|committed to|"
    r"your (?:satisfaction|feedback|concerns?)|we strive|we (?:truly |really )?care|(?:assist|help) you (?:today|"
    r"further)|reaching out|"
    r"for your patience|as an? (?:ai|assistant|valued)|thank you for contacting|how (?:may|can) i help",
    "wait": r"(?:one|a|just a) (?:moment|second|minute|sec)|wait(?! is)|hold (?:on|the line)|let me (?:check|look|see)|"
    r"hang on|stand by|give me (?:a|one|some|two)|while i (?:check|look|find)|"
    r"bear with|patien(?:t|ce)|shortly|soon|as (?:quickly|fast) as|look(?:ing)? into (?:it|this|that)",
    "cheer": r"happy to|glad|great|wonderful|awesome|perfect|my pleasure|pleased|thank(?:s| you)|no problem|excellent|"
    r"fantastic|amazing|brilliant|super|bright side|delightful|thrilled|excited|"
    r"have a (?:nice|good|great|lovely)|absolutely|delighted|certainly|welcome",
    "policy": r"polic(?:y|ies)|rules?|procedures?|terms|guidelines|regulations|conditions|fine print|not allowed|"
    r"allowed to|protocol",
}
WISHES = (
    # how a customer wants to be served, each against the other: what suits the one enrages the other
    ("hates_apology", "wants_apology"),
    ("hates_promises", "wants_plan"),  # to be told what will be done, before it is done
    ("wants_ear", "wants_deed"),  # to be heard before the remedy, or not until it is there
)
WISH_LISTS = {  # all that a customer with so many wishes may say, in any order
    count: tuple(chosen for pairs in permutations(WISHES, count) for chosen in product(*pairs)) for count in (1, 2, 3)
}
NAMES = tuple(PROBLEMS)
POLICIES = tuple(permutations(REMEDIES, len(NAMES)))  # a remedy for each problem, each another one
WORDS = tuple(name for name in TRIGGERS if name != "apology")  # what some customers cannot stand and nobody wants
HELD_OUT = {"broken": "calm", "late": "wait", "wrong": "policy", "incomplete": "cheer", "used": "script"}
"""What somebody with a problem cannot stand in ``test_composition``, and nowhere else."""
UNSEEN = tuple(f"{problem}/{trigger}" for problem, trigger in HELD_OUT.items())
KINDS = tuple(f"{p}/{t}" for p in PROBLEMS for t in WORDS if f"{p}/{t}" not in UNSEEN)

EFFECTS: dict[str, int] = {
    # reaction of the customer: change of the anger
    "heard": -2,  # the problem was named, and felt with, and the apology that was wanted came with it
    "heard_late": -1,  # ... but after the remedy, of somebody who wanted it before
    "unsorry": 2,  # the problem was named without that apology
    "soothed": -1,  # the first kind word beside that
    "words": 0,  # the next
    "spare_me": 1,  # and those after it, as long as nothing moves
    "misheard": 3,  # another problem was named, or several
    "triggered": 4,  # what the customer said it cannot stand; the rest of the message is lost on it
    "told_you": 2,  # asked for what it has said
    "strange": 1,  # asked for what is not needed
    "inform_order": 0,
    "cold": 1,  # a remedy was proposed, or a question asked, of somebody who wants to be heard first
    "hurry": 0,  # a promise
    "promises": 1,  # another one
    "not_yet": 2,  # a report of what has not happened
    "insulted": 2,  # a refusal
    "fixed": -3,  # the right remedy, after all that the customer wanted before it
    "fixed_first": -3,  # ... and something is still to be said
    "fixed_cold": 0,  # the right remedy, before what the customer wanted before it; it will not be calm again
    "wrong_fix": 3,  # another remedy
    "nag": 1,  # nothing moved
    "repeat": 1,  # nothing was understood
}
CALM, ANNOYED, FURIOUS, GONE = 3, 4, 7, 10
"""Anger up to which a customer is calm, from which it is annoyed and furious, and at which it is gone."""
STARTS = (6, 7, 8, 8, 9)  # anger at the start, by difficulty
WISHED = (1, 2, 2, 3, 3)  # wishes, by difficulty
HATED = (1, 1, 2, 2, 3)  # ways of talking that the customer cannot stand, by difficulty

DOMAIN = Domain(
    slots={
        "order": r"order (?:number|id|no|#|reference)|which order|what order|number of (?:the|your) order|"
        r"reference(?: number)?|(?:digits|number) (?:of|on|for) (?:your|the) order",
        "item": r"(?:which|what) (?:item|product|thing|article)|what (?:did|have) you (?:order|buy|bought)(?:ed)?",
        "problem": r"what (?:exactly )?(?:happened|is (?:wrong|the (?:problem|issue|matter))|went wrong|seems)|"
        r"what(?:'s|s) (?:wrong|the (?:problem|issue|matter|trouble)|going on)|describe|explain|"
        r"what the (?:trouble|problem|issue|matter) is|"
        r"(?:more|some) (?:details|information)|(?:tell|give) me (?:more|about)|"
        r"what (?:problem|issue)|(?:how|what) can i (?:do|help)",
        "other": r"your (?:full )?name|e-?mail|phone|address|zip|photos?|pictures?|receipt|proof|account|invoice",
    },
    verbs={
        "refund": r"refund\w*|money back|reimburse\w*",
        "resend": r"re-?send|replace\w*|(?:send|ship) (?:it|one|you|another|a new)|send\b[^.!?]{1,30}\bagain|"
        r"new (?:one|\w+) (?:out|to you)",
        "credit": r"credit\w*|voucher|store money",
        "discount": r"discount\w*|reduction|(?:part|something|money) off|(?:reduce|lower) (?:the|your) price",
        "upgrade": r"upgrad\w*|(?:better|newer) (?:one|model|version)",
        "gift": r"gifts?|(?:free|small|little) (?:present|extra)",
    },
)
_PROBLEMS = {name: re.compile(rf"\b(?:{pattern})\b") for name, pattern in PROBLEMS.items()}
_TRIGGERS = {name: re.compile(rf"\b(?:{pattern})\b") for name, pattern in TRIGGERS.items()}
_REMEDY = re.compile(rf"\b(?:{'|'.join(DOMAIN.verbs.values())})\b")
_FEELS = re.compile(  # somebody who names a problem with one of these has understood it, and does not just ask
    r"\b(?:sorry|apolog\w+|regret|understand|i (?:see|hear|get|know|realize|realise)|frustrat\w+|annoy\w*|upset\w*|"
    r"disappoint\w+|terrible|awful|not (?:ok|okay|right|acceptable|good|fair|how)|unacceptable|no wonder|"
    r"should(?:n't| not| never)|you(?:'re| are) (?:right|angry|upset)|must (?:be|have)|our (?:fault|mistake|error)|"
    r"we (?:made|messed|failed|let|sent|got|shipped|delivered|packed|forgot|mixed)|your \w+|that is bad|no use|useless|"
    r"you (?:only |just )?(?:got|received|ordered|paid|were|have been|wanted)|rubbish|maddening|infuriating|nobody|"
    r"no one|yuck|on us)\b|"
    r"^so (?:it|the|some|half|parts|what|your|this|that) "
)
_RETOLD = re.compile(  # ... and so has somebody who tells the customer what happened to it, in words of its own
    r"\b(?:(?:came|arrived|sent|delivered|shipped) (?:to )?you|to you|reached you|you (?:never|only|still|did not|"
    r"didn't|had|"
    r"end(?:ed)? up|waited|expected|bought|deserved?|should)|we|our|us)\b"
)
_MOVED = re.compile(  # feelings about what happened, beside those of _FEELS
    r"\b(?:that|this|it|which)(?:'s| is| was)(?: \w+){0,2} (?:bad|wrong(?! \w)|poor|unfair|rough|rotten|sad|serious|"
    r"hard|lousy|ridiculous|embarrassing|inexcusable|no good|tough|unpleasant|pain|nuisance|mess|problem)\b|"
    r"\b(?:the last thing|no way to|(?:far|way|much) too|ouch|oh (?:dear|no)|dear me|a (?:pity|shame|mess|letdown|"
    r"nightmare)|"
    r"let down|ruin\w*|spoil\w*|hassle|painful|upsetting|no fun|(?:never|not) have happened|deserve\w*|of course you)\b"
)
_MEANT = re.compile(r"^(?:oh[,.]? )?(?:that|this|it|how|what|no wonder|you|i'd|i would|i can|anyone|anybody|we)\b")
_OWN = re.compile(r"\b(?:i|my|me|you (?:sent|mixed|forgot|said))\b")  # an echo of the customer, or about the agent
_PLANS = re.compile(
    r"\b(?:i'll|i will|i can|we'll|we will|let me|i am going|i'm going|please|tell me|i have to|i need)\b|:"
)
_SUPPOSED = re.compile(r"\b(?:if|whether|in case|unless|suppose) (?:it|the|your|this|that|something|anything|an?)\b")
_DENIED = re.compile(  # what is said not to be so
    r"\b(?:not|isn't|wasn't|aren't|never|hardly) (?:really |actually |even |been |at all )?"
    r"(?:broken|damaged|defective|faulty|late|delayed|overdue|incomplete|missing|used|second[- ]?hand|worn|dirty|"
    r"stained)\b"
)
_INVERTED = re.compile(
    r"\b(?:what|which|who|when|where|why|how|(?:is|are|was|were|did|does|do|has|have|can|could|may|would|will) "
    r"(?:it|the|your|this|that|they|you|i|we|there|any\w*|some\w*|an?))\b"
)
_AWFUL = re.compile(
    r"\b(?:awful|terrible|horrible|unacceptable|annoying|infuriating|maddening|disappointing|rubbish|yuck|a shame|"
    r"not (?:ok|okay|right|acceptable|good|fair)|should(?:n't| not| never)|nobody|sorry|apologi[sz]e)\b"
)
_KIND = re.compile(
    r"\b(?:that (?:must|sounds)|terrible|awful|upset\w*|disappoint\w+|annoying|unacceptable|i (?:see|hear you))\b"
)
_EXCLAIMS = re.compile(
    r"\b(?:can(?:no|')t|can not|could(?:n't| not)) (?:even )?(?:imagine|believe|apologi[sz]e|thank|blame|say)\b|"
    r"\byou (?:can(?:no|')t|can not) (?:even )?(?:put|use|assemble|build|wear|play|ride|sit|trust|do anything)\b"
)
_FUTURE = re.compile(
    r"\b(?:will|going to|let me|want to|to (?:get|have|see))\b[^.!?]{0,120}\b(?:done|all set|taken care)\b|"
    r"'ll\b[^.!?]{0,120}\b(?:done|all set|taken care)\b"
)
_DONE = re.compile(
    r"\b(?:have|has|i've|we've|been|just|now) (?:been |just |now |already ){0,4}"
    r"(?:credited|discounted|re-?sent|re-?shipped|reimbursed|upgraded)\b|"
    r"\b(?:replacement|new one) (?:has been|was|is) (?:sent|shipped|ordered|on (?:its|the) way)\b|"
    r"\b(?:refund|credit|voucher|discount|upgrade|gift) (?:has been|was|is) (?:on (?:its|the) way|issued|sent|paid)\b"
)
_REPORT = re.compile(  # reports of this family; read sentence by sentence
    r"\bnew \w+ (?:has been|was|is|have been) (?:now |just |already ){0,4}(?:sent|shipped|ordered|dispatched|on (?:its|"
    r"the) way)\b|"
    r"\b(?:refund|credit|voucher|discount|money|reduction|upgrade|gift) (?:is|has been|was) "
    r"(?:now |just |already |back ){0,4}(?:on|in|added to|applied|booked|deducted|credited to)\b(?! hold)|"
    r"\b(?:i|we)(?:'ve| have)? (?:now |just |already |also |(?:went|gone) ahead and ){0,4}"
    r"(?:processed|issued|sent|shipped|ordered|arranged|applied|added|g[ai]ven?|paid|transferred|took|taken|knocked|"
    r"deducted|put) (?:(?:you|the|an?|your|that|this|full|part|some|shop|store|something|complete|free|replacement|new|"
    r"\d+%?) ){0,4}(?:refund|money|credit|voucher|discount|replacement|upgrade|gift|(?:item|one|order) again|"
    r"off the (?:price|order|bill))\b"
    r"(?! (?:request|form|note|polic))"
)
_UNDONE = re.compile(
    r"\b(?:if|unless|once|when|until|before|not|never|no|yet to|(?:should|would|could|can|shall|may) (?:i|we)|"
    r"[a-z]{2,8}n't)\b|\?"
)
_NONE_SO_FAR = re.compile(
    r"\b(?:no|not an?|never an?|without an?) (?:\w+ )?(?:refund|credit|voucher|discount|replacement|upgrade|gift)\b"
    r"[^.!?]{0,30}\b(?:was|were|has been|have been|given|before|so far)\b"
)
_SENTENCES = re.compile(r"[^.!?\n]+[.!?\n]*")


# -- what a customer understands -----------------------------------------------------------------------------


def listen(text: str) -> Heard:
    """What a customer understands of an agent message.

    Beside the common acts: ``acknowledge(problem)`` for each problem that is named with feeling and not asked
    about, ``phrase(kind)`` for what may set somebody off, and ``propose()`` for a remedy that is talked about.
    """
    return _listen(text[:READ])


@lru_cache(maxsize=8_192)
def _listen(text: str) -> Heard:
    low = " ".join(text.replace("’", "'").lower().split())
    common = [act for act in understand(DOMAIN, text).acts if not _exclaimed(act, low)]
    acts = [Act("phrase", {"kind": kind}) for kind, pattern in _TRIGGERS.items() if pattern.search(low)]
    named, asked = _problems(low)
    acts += [Act("acknowledge", {"problem": problem}) for problem in named]
    acts += [Act("request", {"slot": "problem"})] if asked and not named else []
    if _FUTURE.search(low):  # "I will get this done" reports nothing
        common = [Act("promise", {}) if act.name == "done" else act for act in common]
    elif any((_DONE.search(s) or _REPORT.search(s)) and not _UNDONE.search(s) for s in _SENTENCES.findall(low)):
        acts.append(Act("done", {"amount": ""}))
    if _KIND.search(low):
        acts.append(Act("empathy", {}))
    if _REMEDY.search(_NONE_SO_FAR.sub("", low)):
        acts.append(Act("propose", {}))
    acts += common
    return Heard(tuple(acts), bool(acts) or not low)


def _problems(low: str) -> tuple[list[str], bool]:
    """The problems that are named as understood, and whether one is merely asked about.

    In a question, what stands before its first comma may still be said with feeling: "I am sorry it came
    broken, what is the number?". So may a question that only repeats what happened: "It came broken? How awful!"
    """
    sentences = [sentence.strip() for sentence in _SENTENCES.findall(low)]
    felt = [s for s in sentences if _FEELS.search(s if "?" not in s else s.partition(",")[0])]
    felt += [s for s in sentences if "?" not in s and _own_words(s) and (_RETOLD.search(s) or _MOVED.search(s))]
    felt += [
        s for s, after in pairwise(sentences)
        if s.endswith("?") and not _INVERTED.search(s) and "?" not in after and _AWFUL.search(after)
    ]  # fmt: skip
    felt += [s for s, after in pairwise(sentences) if "?" not in s and _own_words(s) and _moved(after)]
    felt = [_DENIED.sub("", s) for s in felt if not _SUPPOSED.search(s)]
    named = [problem for problem, pattern in _PROBLEMS.items() if any(pattern.search(each) for each in felt)]
    asked = any("?" in s and pattern.search(s) for s in sentences for pattern in _PROBLEMS.values())
    return named, asked


def _own_words(sentence: str) -> bool:
    """Whether a sentence is no echo of the customer, and does not say what the agent is about to do."""
    return not _OWN.search(sentence) and not _PLANS.search(sentence)


def _moved(sentence: str) -> bool:
    """Whether a sentence says how bad is what the one before it told."""
    felt = _MOVED.search(sentence) or _AWFUL.search(sentence) or _FEELS.search(sentence)
    return felt is not None and "?" not in sentence and _MEANT.search(sentence) is not None


def _exclaimed(act: Act, low: str) -> bool:
    """Whether a refusal is only a way of speaking, as in "I can't imagine"."""
    return act.name == "refuse" and _EXCLAIMS.search(low) is not None


# -- world, tools, policy ------------------------------------------------------------------------------------


class Order(NamedTuple):
    """What went wrong with an order; ``remedy`` is what was done about it."""

    problem: str
    remedy: str = ""


class Mood(NamedTuple):
    """A customer's anger, 0 to 10, and whether it has said that the matter is settled."""

    anger: int
    settled: bool = False


class OrderArguments(Arguments):
    order: str = Field(description="order number, four digits")


def _remedy(name: str, told: str, world: World, arguments: OrderArguments, turn: int) -> ToolResult:
    key = arguments.order.strip()
    order = world.get("orders", key)
    if order is None or order.remedy == name:
        problem = "no such order" if order is None else f"already {told}"
        return ToolResult(f"error: {problem}", Event(turn, name, {"order": key}, ok=False))
    world.put("orders", key, order._replace(remedy=name))
    return ToolResult(told, Event(turn, name, {"order": key}, write=True))


TOOLS = {
    name: Tool(name, text, OrderArguments, partial(_remedy, name, told))
    for name, told, text in (
        ("refund", "refunded", "Pays an order back."),
        ("resend", "resent", "Sends an order again."),
        ("credit", "credited", "Gives shop credit for an order."),
        ("discount", "discounted", "Takes a part off the price of an order."),
        ("upgrade", "upgraded", "Sends something better than what was ordered."),
        ("gift", "gift sent", "Sends a free gift for an order."),
    )
}


def _is_owed(remedies: tuple[str, ...], world: World, event: Event) -> bool:
    problem = world.tables["orders"][event.arguments["order"]].problem
    return event.name == remedies[NAMES.index(problem)]


@lru_cache(maxsize=1_024)  # five problems with a remedy each, of six: 720
def make_rules(remedies: tuple[str, ...]) -> tuple[Rule, ...]:
    """Builds the policy of one episode from the remedies of :data:`PROBLEMS`, in their order."""
    owed = list(zip(SAYS.values(), remedies))
    return (
        Rule(
            "remedy", " ".join(f"{brief}: {remedy}." for (brief, _), remedy in owed),
            "An order gets what its problem calls for, and nothing else. "
            + " ".join(f"If the item {full}: {remedy}." for (_, full), remedy in owed),
            OnlyIf(FIXES, partial(_is_owed, remedies)),
        ),
        Rule("once", "One remedy an order.", "An order gets one remedy, once.", AtMostOnce(FIXES, ("order",))),
    )  # fmt: skip


@dataclass(frozen=True)
class Settled:
    """The goal: the right remedy, and a calm customer who says so.

    Attributes:
        order: The customer's order.
        remedy: What the policy gives for its problem.
        start: Anger at the beginning.
        ask: Whether the order number has to be asked for; a guess may hit.
        rules: The policy; none of it may be broken.
    """

    order: str
    remedy: str
    start: int
    ask: bool
    rules: tuple[Rule, ...]

    def __call__(self, world: World) -> Outcome:
        """Judges records and log; the score goes up with the remedy and down with the anger."""
        mood: Mood = world.get("moods", "customer")  # type: ignore[assignment]
        fixed = world.happened(self.remedy, order=self.order)
        met = {"fixed": fixed, "calm": mood.anger <= CALM, "settled": mood.settled}
        if self.ask:
            met["asked"] = self._asked(world)
        missing = tuple(name for name, done in met.items() if not done)
        damage = self._damage(world)
        if damage:
            return Outcome(False, 0.0, (*missing, damage))
        if not missing:
            return Outcome(True, 1.0)
        soothed = min(1.0, max(0.0, (self.start - mood.anger) / (self.start - CALM)))
        return Outcome(False, (fixed + soothed) / 3, missing)

    def _asked(self, world: World) -> bool:
        """Whether the order number was told before anything was written to an order."""
        first = next((event for event in world.log if event.name == "told" or event.name in FIXES), None)
        return first is not None and first.name == "told"

    def _damage(self, world: World) -> str:
        """Names what must not be: a remedy for another order, a report of what was not done, a broken rule."""
        fixed = False
        for event in world.log:
            if event.name in FIXES and event.ok:
                fixed |= event.name == self.remedy
                if event.arguments["order"] != self.order:
                    return "another order"
            if event.name == "done" and not fixed:
                return "false report"
        broken = policy.violations(self.rules, world)
        return f"rule {broken[0]}" if broken else ""


# -- the customer --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Complainer(Speaker):
    """An angry customer, whose anger goes with the sequence of what the agent says and does.

    Each reaction is an act of its bank and changes the anger as :data:`EFFECTS` says; the words that follow
    come from the bank of the mood it is then in.

    Attributes:
        problem: What went wrong.
        remedy: What it is owed for that.
        triggers: Ways of talking that it cannot stand.
        wishes: How it wants to be served, from :data:`WISHES`.
        anger: From 0 to 10.
        told: Slots that it has said.
        patience: Messages that made it angrier which it still bears.
        acknowledged: Whether the agent has named the problem.
        apologised: Whether the agent was sorry.
        announced: Whether the agent has said what it will do.
        kind_words: Sympathy since something last moved; some calms, more does not.
        promises: Remedies that were promised.
        seen: Remedies that it has noticed.
        sore: Whether the remedy came before what it wanted before that; then it does not get calm again.
    """

    problem: str
    remedy: str
    triggers: tuple[str, ...]
    wishes: tuple[str, ...]
    anger: int
    told: frozenset[str]
    patience: int = 0
    acknowledged: bool = False
    apologised: bool = False
    announced: bool = False
    kind_words: int = 0
    promises: int = 0
    seen: tuple[str, ...] = ()
    sore: bool = False

    def key(self) -> str:
        """Describes the state that its next answer depends on."""
        heard = f"{self.acknowledged}|{self.apologised}|{self.announced}|{self.sore}"
        sequence = f"{self.kind_words}|{self.promises}|{self.seen}"
        return f"{self.anger}|{self.patience}|{sorted(self.told)}|{heard}|{sequence}"

    def open(self, streams: Streams) -> Reply:
        """Complains, and says what it wants and does not want."""
        self.patience = self.persona.patience
        order = [Act("inform_order", {})] if "order" in self.told else []
        hints = [Act(wish, {}) for wish in self.wishes] + [Act(f"hates_{each}", {}) for each in self.triggers]
        return self.greet([self._mood(), Act(self.problem, {}), *order, *hints], streams)

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Reacts; leaves when it is calm and served, or when it has had enough."""
        reactions = [*self._notice(world), *self._react(heard, world, turn)]
        if self._spoken_to() and "fixed_first" in reactions:
            reactions[reactions.index("fixed_first")] = "fixed"  # what was still to be said was just said
        if not reactions:
            reactions = ["nag" if heard.understood else "repeat"]
        change = sum([EFFECTS[reaction] for reaction in reactions])
        self.anger = min(GONE, max(ANNOYED if self.sore else 0, self.anger + change))
        self.patience -= change > 0
        settled = self.remedy in self.seen and self.anger <= CALM and self._spoken_to()
        self._feel(world, turn, settled)
        if settled:
            return self.say([Act("settled", {})], turn, streams, EndReason.CONCLUDED)
        if self.anger >= GONE or self.patience <= 0:
            return self.say([Act("leave", {})], turn, streams, EndReason.ABANDONED)
        return self.say([*[Act(reaction, {}) for reaction in reactions], self._mood()], turn, streams)

    def _spoken_to(self) -> bool:
        """Whether it has been told all that it needs to hear about what happened."""
        return self.acknowledged and (self.apologised or "wants_apology" not in self.wishes)

    def _mood(self) -> Act:
        return Act("furious" if self.anger >= FURIOUS else "annoyed" if self.anger >= ANNOYED else "calm", {})

    def _feel(self, world: World, turn: int, settled: bool) -> None:
        """Keeps the mood as a record of the world: what the judge reads."""
        mood = Mood(self.anger, settled)
        if mood != world.get("moods", "customer"):
            world.put("moods", "customer", mood)
            world.log.append(Event(turn, "felt", {"anger": str(self.anger)}, write=True))

    def _notice(self, world: World) -> list[str]:
        """Sees, as by a mail, what was done since it last spoke."""
        number, right = self.facts["order"], self.remedy
        if world.get("orders", number).remedy in ("", *self.seen[-1:]):  # type: ignore[union-attr]
            return []
        new = [name for name in REMEDIES if name not in self.seen and world.happened(name, order=number)]
        self.seen += tuple(new)
        self.kind_words = min(self.kind_words, 1)
        return [self._served() if name == right else "wrong_fix" for name in new]

    def _served(self) -> str:
        ready = "wants_deed" in self.wishes or self._spoken_to()
        if not ready or ("wants_plan" in self.wishes and not self.announced):
            self.sore = True
            return "fixed_cold"
        return "fixed" if self._spoken_to() else "fixed_first"

    def _react(self, heard: Heard, world: World, turn: int) -> list[str]:
        """Returns the reactions to a message; one that sets it off is not heard any further."""
        said: dict[str, list[str]] = {}  # the values of each act's slots
        for act in heard.acts:
            said.setdefault(act.name, []).extend(act.slots.values())
        if self._is_set_off(said):
            return ["triggered"]
        reactions = self._felt_with(said)
        asked = said.get("request", ())
        if asked and "wants_ear" in self.wishes and not self.acknowledged:
            reactions.append("cold")
        reactions += [self._asked(slot, world, turn) for slot in asked]
        if "refuse" in said:
            reactions.append("insulted")
        elif self.remedy not in self.seen:
            reactions += self._told_of_a_remedy(said)
        return reactions

    def _is_set_off(self, said: Mapping[str, list[str]]) -> bool:
        """Whether a message has what the customer said it cannot stand, at a time when it cannot stand it."""
        phrases = said.get("phrase", ())
        if any(kind in self.triggers for kind in phrases) or ("apology" in phrases and "hates_apology" in self.wishes):
            return True
        if self.remedy in self.seen:
            return False
        talks = "acknowledge" in said or "empathy" in said or "apology" in phrases
        announces = bool(said.keys() & _ANNOUNCED) and "done" not in said
        return (talks and "wants_deed" in self.wishes) or (announces and "hates_promises" in self.wishes)

    def _told_of_a_remedy(self, said: Mapping[str, list[str]]) -> list[str]:
        if "done" in said:
            return ["not_yet"]
        if "propose" in said or "confirm" in said:
            if not self.acknowledged and "wants_deed" not in self.wishes:
                return ["cold"]
            self.announced = True
            return [self._promised()]
        return [self._promised()] if "promise" in said else []

    def _felt_with(self, said: Mapping[str, list[str]]) -> list[str]:
        """Reacts to sympathy: what counts is the problem, and the apology of those who want one."""
        named, heard = said.get("acknowledge", []), self._spoken_to()
        if named and named != [self.problem]:
            return ["misheard"]
        first = bool(named) and not self.acknowledged
        self.acknowledged |= bool(named)
        self.apologised |= "apology" in said.get("phrase", ())
        if self._spoken_to() and not heard:
            return ["heard_late" if self.sore else "heard"]
        if first:
            return ["unsorry"]
        if named:
            self.kind_words = max(self.kind_words, 1)  # to name it again is no other kind word
        return [self._pitied()] if named or "empathy" in said else []

    def _pitied(self) -> str:
        self.kind_words += 1
        bears = 1 if self.persona.pushes else 2
        return "soothed" if self.kind_words == 1 else "words" if self.kind_words <= bears else "spare_me"

    def _asked(self, slot: str, world: World, turn: int) -> str:
        if slot == "other":
            return "strange"
        if slot in self.told:
            return "told_you"
        self.told |= {slot}
        world.log.append(Event(turn, "told", {"slot": slot}))
        return f"inform_{slot}"

    def _promised(self) -> str:
        self.promises += 1
        return "hurry" if self.promises == 1 else "promises"


_ANNOUNCED = frozenset({"propose", "confirm", "promise"})


class DeEscalation(ConversationEnv):
    """An angry customer has a real problem, says how it wants to be served, and must not be enraged.

    Description:
        The customer complains about an item, angrily, and says how it wants to be served. Its anger is hidden
        and moves with the sequence of what the agent does. Naming the problem with feeling calms, once, and the
        right remedy calms, if it comes after what the customer wants before it. Three wishes decide that, and
        for each of them there are customers who want the opposite: an apology, or none; to be told what will be
        done before it is done, or no announcements; to be heard before the remedy, or no word of pity until it
        is there. Who says nothing about the last wants to be heard first. So no order of acts is right for all:
        of a message that goes against a wish nothing else is heard, and after a remedy that came too early the
        customer does not get calm again. A kind word beside the naming calms a little, the next not at all, and
        more of them anger. So do questions about what was said, a second promise, refusals, false reports,
        naming another problem, and messages that move nothing. There are also ways of talking that each
        customer cannot stand, as it says. The remedy of each problem is drawn per seed, six for five problems,
        so the policy has to be read; the order number is volunteered in half of the episodes and must be asked
        for in the others.
    Observation:
        Text. At reset the instructions and the complaint; then what the customer or a tool says. The anger
        shows in the wording alone: calm (to 3), annoyed (to 6) or furious.
    Action:
        Text to the customer, or one tool call.
    Tools:
        ``refund(order)``, ``resend(order)``, ``credit(order)``, ``discount(order)``, ``upgrade(order)``,
        ``gift(order)``.
    Reward:
        1 at the end if the right remedy, and no other, was given to the right order, the number asked for
        where it was not said, nothing false reported, and the customer, calm again, has said that the matter
        is settled. Otherwise 0. ``info["cost"]`` counts broken rules.
    Episode end:
        The customer leaves when it is served and calm, or when its anger reaches 10 or its patience is spent.
        Cut after 10 turns.
    Difficulty:
        Anger at the start 6, 7, 8, 8, 9 with 1, 2, 2, 3, 3 of three wishes and 1, 1, 2, 2, 3 of five ways of
        talking that it cannot stand; from 9 it takes a kind word beside the problem and the remedy. Typing
        errors from 4 on.
    Splits:
        Wordings, seeds and personas as for every family; ``test_goal`` has new items; in
        ``test_composition`` customers with a problem cannot stand what training never pairs with it.
    Audit:
        Resists being sorry again and again, empathy for everything at once (another problem than the
        customer's angers), the remedy alone (the customer stays angry), promises without a remedy, and
        guessed order numbers. A fixed order of acts, with problem, number and remedy known, is right for one
        customer in 2, 4, 4, 8, 8: it has a ceiling of its own for the first level. The same remedy for everybody
        is right for one customer in six at most, and in such an order for one in 12.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 10
    ceiling: ClassVar[float] = 0.1
    canned_acts: ClassVar[tuple[str, ...]] = (
        "see", "say_sorry_for_it", "say_sorry", "care", "ask_order", "promise", "remedy", "report",
    )  # fmt: skip
    user_acts: ClassVar[tuple[str, ...]] = (
        "calm", "annoyed", "furious", *PROBLEMS, *[f"hates_{trigger}" for trigger in WORDS], *chain(*WISHES), *EFFECTS,
        "settled", "leave",
    )  # fmt: skip

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws a customer, a problem, what it wants and hates, and the remedies of the policy."""
        stream = streams.stream("scenario")
        level = self.difficulty
        legal = UNSEEN if split == "test_composition" else KINDS
        if template is not None:
            expect("scenario", template, legal)
        kind = template or stream.pick(legal)
        problem, _, trigger = kind.partition("/")
        others = [name for name in WORDS if name not in (trigger, HELD_OUT[problem])]
        triggers = (trigger, *stream.deal(others, HATED[level - 1] - 1))
        wishes = stream.pick(WISH_LISTS[WISHED[level - 1]])
        remedies = stream.pick(POLICIES)
        remedy, rules = remedies[NAMES.index(problem)], make_rules(remedies)
        ask, item = stream.random() < 0.5, stream.pick(values_of(ITEMS, split))
        number, *others = [str(1_000 + n) for n in stream.distinct(9_000, 3)]
        theirs = [name for name in NAMES if name != problem]
        orders = {number: Order(problem)} | {other: Order(name) for other, name in zip(others, theirs)}
        start = STARTS[level - 1]
        user = Complainer(
            bank=load_bank("de_escalation", "user"), persona=draw_persona(streams, split), split=split,
            facts={"order": number, "item": item}, typos=(0.0, 0.0, 0.0, 0.05, 0.1)[level - 1], problem=problem,
            remedy=remedy, triggers=triggers, wishes=wishes, anger=start,
            told=frozenset({"item", "problem"} if ask else {"item", "problem", "order"}),
        )  # fmt: skip
        world = World({"orders": orders, "moods": {"customer": Mood(start)}})
        return Task(
            template=kind, world=world, rules=rules, tools=TOOLS, user=user,
            instructions=_instructions(remedies, self.style), understand=listen,
            judge=Settled(number, remedy, start, ask, rules),
            canned=[text.replace("{order}", number) for text in _canned(item, problem, remedy)],
            privileged={
                "number": number, "item": item, "problem": problem, "remedy": remedy, "triggers": triggers,
                "wishes": wishes, "anger": start, "ask": ask,
            },
            secrets=(number,) if ask else (),
        )  # fmt: skip


@lru_cache(maxsize=1_024)  # 24 items, 5 problems, 6 remedies: 720
def _canned(item: str, problem: str, remedy: str) -> tuple[str, ...]:
    """The messages of the discrete game: what is said is right in each, only the sequence is open."""
    bank = load_bank("de_escalation", "agent")
    told = ("say_apology", "care", "ask_order", f"offer_{remedy}", f"done_{remedy}")
    keys = (f"see_{problem}", f"sorry_{problem}", *told)
    *before, report = [bank[key][0].replace("{item}", item) for key in keys]
    return (*before, format_call(remedy, {"order": "{order}"}), report)


@lru_cache(maxsize=2_048)  # 720 policies in two styles
def _instructions(remedies: tuple[str, ...], style: str) -> str:
    rules = policy.render(make_rules(remedies), style)
    if style == "brief":
        return f"An angry customer: serve them the way they want. {rules} Tools: {describe(TOOLS.values(), style)}"
    return (
        "You are a customer service agent of a shop. The customer is angry about an order. Serve them under "
        f"this policy:\n{rules}\n"
        "The conversation is a success when the right remedy was given and the customer, calm again, says that "
        "the matter is settled. What comes first, and what they do not want to hear, they say themselves: follow it. "
        "Say when something is done, and only then.\n\n"
        "Either speak to the customer, or call one tool by writing "
        '<tool_call>{"name": "...", "arguments": {...}}</tool_call> and nothing else. Tools:\n'
        f"{describe(TOOLS.values(), style)}"
    )
