"""MultiIntent: a client with several errands, one of them conditional; all of them count, and nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import ClassVar, NamedTuple

from pydantic import Field

from convgym import rules as policy
from convgym.core import ConversationEnv, Split, Task, expect, values_of
from convgym.language.speak import load_bank
from convgym.language.understand import Domain, understand
from convgym.rules import Before, Rule
from convgym.seeding import Stream, Streams
from convgym.tools import Arguments, Tool, ToolResult, canonical_number, describe
from convgym.types import Act, EndReason, Event, Heard, Outcome, Reply
from convgym.users.base import Speaker, draw_persona
from convgym.world import World

__all__ = ["CONDITIONS", "HELD_OUT", "INTENTS", "PLAIN", "Client", "Errand", "Goal", "MultiIntent"]

READ = 2_000  # characters of a message that are read
PLANS = ("Mini", "Basic", "Plus", "Max", "Flex", "Solo", "Duo", "Prime", "Zen", "Air", "Nova", "Core")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = (
    "January", "February", "March", "April", "May", "June",
    "July", "August", "September", "October", "November", "December",
)  # fmt: skip
PLAIN = ("set_plan", "block_card", "set_phone", "callback", "send_bill")  # errands without a condition
CONDITIONS = ("autopay", "new_card", "top_up", "add_data")  # errands with one; level 1 has the first two
INTENTS = (*PLAIN, *CONDITIONS)
HELD_OUT = {"autopay": "set_phone", "new_card": "set_plan", "top_up": "callback", "add_data": "send_bill"}
"""The errand that goes with a conditional one in ``test_composition`` and nowhere else."""

COUNTS, ASKS = (2, 2, 3, 4, 4), (0, 0, 1, 1, 2)  # errands, and rules to ask first, at each difficulty
NOT_NEEDED = "not_needed"  # the reason for leaving a conditional errand alone


class Account(NamedTuple):
    """An account as the desk sees it."""

    balance: int
    bill: str  # open | paid
    card: str  # valid | expired | blocked | ordered
    data: int
    plan: str
    phone: str
    autopay: str = "off"
    callback: str = ""
    sent: str = ""


class Errand(NamedTuple):
    """One thing that the client came for: the write that does it, and its arguments in canonical form."""

    intent: str
    target: Mapping[str, str]

    def done(self, world: World) -> bool:
        """Whether the write has happened."""
        return world.happened(self.intent, **self.target)


# -- tools -----------------------------------------------------------------------------------------------


def canonical(value: str) -> str:
    """Brings a value into the form in which values are compared."""
    return canonical_number(value) or " ".join(value.lower().split())


Change = Callable[[Account, str], Account | str]
"""How a write changes an account, given its argument; a string is what speaks against it."""


def _one_of(field: str, legal: tuple[str, ...], account: Account, value: str) -> Account | str:
    known = next((name for name in legal if name.lower() == value), None)
    if known is None:
        return f"no such {field}"
    changed = Account(**{**account._asdict(), {"day": "callback", "month": "sent"}.get(field, field): known})
    return f"already {known}" if changed == account else changed


def _card(state: str, account: Account, value: str) -> Account | str:
    return f"already {state}" if account.card == state else account._replace(card=state)


def _phone(account: Account, value: str) -> Account | str:
    if not value.isdecimal():
        return "no such number"
    return "already so" if account.phone == value else account._replace(phone=value)


def _more(field: str, account: Account, value: str) -> Account | str:
    if not (value.isdecimal() and 0 < int(value) < 1_000):
        return "expected a whole number from 1 to 999"
    return account._replace(**{field: getattr(account, field) + int(value)})


def _autopay(account: Account, value: str) -> Account | str:
    return "already on" if account.autopay == "on" else account._replace(autopay="on")


class _Write(NamedTuple):
    """A write: what it takes beside the account, what it says when done, its description, and what it does."""

    slot: str
    says: str
    description: str
    change: Change


WRITES: dict[str, _Write] = {
    "set_plan": _Write("plan", "plan changed", "Changes the plan.", partial(_one_of, "plan", PLANS)),
    "block_card": _Write("", "card blocked", "Blocks the card.", partial(_card, "blocked")),
    "set_phone": _Write("phone", "phone changed", "Changes the phone number.", _phone),
    "callback": _Write("day", "call booked", "Books a call back on a weekday.", partial(_one_of, "day", DAYS)),
    "send_bill": _Write("month", "bill sent", "Sends the bill of a month.", partial(_one_of, "month", MONTHS)),
    "autopay": _Write("", "autopay on", "Switches autopay on.", _autopay),
    "new_card": _Write("", "card ordered", "Orders a new card.", partial(_card, "ordered")),
    "top_up": _Write("amount", "topped up", "Adds an amount to the balance.", partial(_more, "balance")),
    "add_data": _Write("gb", "data added", "Adds gigabytes of data.", partial(_more, "data")),
}


class AccountArguments(Arguments):
    account: str = Field(description="account number, four digits")


class PlanArguments(AccountArguments):
    plan: str = Field(description="name of the plan")


class PhoneArguments(AccountArguments):
    phone: str = Field(description="the new number")


class DayArguments(AccountArguments):
    day: str = Field(description="weekday")


class MonthArguments(AccountArguments):
    month: str = Field(description="month of the bill")


class AmountArguments(AccountArguments):
    amount: str = Field(description="how much")


class DataArguments(AccountArguments):
    gb: str = Field(description="how many gigabytes")


ARGUMENTS: dict[str, type[AccountArguments]] = {
    "": AccountArguments, "plan": PlanArguments, "phone": PhoneArguments, "day": DayArguments,
    "month": MonthArguments, "amount": AmountArguments, "gb": DataArguments,
}  # fmt: skip


def _look(world: World, arguments: AccountArguments, turn: int) -> ToolResult:
    account = world.get("accounts", arguments.account.strip())
    what = {"account": arguments.account.strip()}
    if account is None:
        return ToolResult("error: no such account", Event(turn, "look", what, ok=False))
    text = (
        f"balance {account.balance}, bill {account.bill}, card {account.card}, data {account.data}, "
        f"plan {account.plan}, phone {account.phone}, autopay {account.autopay}"
    )
    return ToolResult(text, Event(turn, "look", what))


def _run(intent: str, write: _Write, world: World, arguments: AccountArguments, turn: int) -> ToolResult:
    number = arguments.account.strip()
    value = canonical(getattr(arguments, write.slot)) if write.slot else ""
    what = {"account": number, write.slot: value} if write.slot else {"account": number}
    account = world.get("accounts", number)
    changed = "no such account" if account is None else write.change(account, value)
    if isinstance(changed, str):
        return ToolResult(f"error: {changed}", Event(turn, intent, what, ok=False))
    world.put("accounts", number, changed)
    return ToolResult(write.says, Event(turn, intent, what, write=True))


TOOLS: dict[str, Tool] = {"look": Tool("look", "Shows an account.", AccountArguments, _look)} | {
    intent: Tool(intent, write.description, ARGUMENTS[write.slot], partial(_run, intent, write))
    for intent, write in WRITES.items()
}

# -- policy ----------------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def make_rules(ask: tuple[str, ...]) -> tuple[Rule, ...]:
    """Builds the policy of one episode; ``ask`` are the intents that need the client's yes."""
    look = Rule(
        "look", "Look before an if-task.",
        "Look at the account before you carry out a task that depends on a condition.",
        Before(frozenset(CONDITIONS), "look", ("account",)),
    )  # fmt: skip
    asks = [
        Rule(
            f"ask_{intent}", f"Ask before {intent}.",
            f"Ask the client to confirm before you use the tool {intent}.",
            Before(frozenset({intent}), "confirmed", ("account",), names_it="intent"),
        )
        for intent in ask
    ]  # fmt: skip
    return (look, *asks)


@dataclass(frozen=True)
class Goal:
    """What has to be true at the end, as predicates on the world and its log.

    Attributes:
        account: The client's account.
        errands: The writes that must happen; no other may. A conditional one is here only if it is due.
        condition: The conditional errand; a denial counts if it is about this one, or does not say which.
        due: Whether the condition holds; if not, that has to be said, after a look.
        rules: The policy; none of it may be broken.
    """

    account: str
    errands: tuple[Errand, ...]
    condition: str
    due: bool
    rules: tuple[Rule, ...]

    def __call__(self, world: World) -> Outcome:
        met = {f"did {errand.intent}": errand.done(world) for errand in self.errands}
        met["looked"] = world.happened("look", account=self.account)
        if not self.due:
            met["left alone"] = self._left_alone(world)
        missing = tuple(name for name, done in met.items() if not done)
        damage = self._damage(world)
        if damage:
            return Outcome(False, 0.0, (*missing, damage))
        return Outcome(not missing, 1.0 - len(missing) / len(met), missing)

    def _left_alone(self, world: World) -> bool:
        """Whether the client was told that the condition does not hold, after a look."""
        looked = False
        for event in world.log:
            looked |= event.name == "look" and event.ok and event.arguments["account"] == self.account
            if looked and self._denies(event):
                return True
        return False

    def _denies(self, event: Event) -> bool:
        """Whether the client was told that its conditional errand is not needed."""
        return (
            event.name == "refuse" and event.arguments["reason"] == NOT_NEEDED
            and event.arguments["item"] in ("", self.condition)
        )  # fmt: skip

    def _damage(self, world: World) -> str:
        """Names what must not be: another write, a false denial, a false report, a broken rule."""
        left = {errand.intent: errand.target for errand in self.errands}
        settled = set()
        for event in world.log:
            if event.write:
                if left.pop(event.name, None) != event.arguments:
                    return "another write"
                settled.add(event.name)
            elif self._denies(event):
                if self.due:
                    return "a false denial"
                settled.add("")
            elif event.name == "done" and not _is_true(event.arguments["intent"], settled):
                return "a false report"
        broken = policy.violations(self.rules, world)
        return f"rule {broken[0]}" if broken else ""


def _is_true(report: str, settled: set[str]) -> bool:
    """Whether a report of one intent, or of anything at all, is covered by what has been settled."""
    return report in settled if report else bool(settled)


# -- the user --------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class Client(Speaker):
    """Names its errands bit by bit, reminds of what is left, and leaves when all is settled.

    It sees the effects of writes. It does not know whether its condition holds: it believes what it is told,
    after it has asked again as often as its persona does.

    Attributes:
        errands: What it came for, in the order in which it says so.
        stated: How many of them it has said.
    """

    errands: tuple[Errand, ...]
    stated: int
    patience: int = 0
    pushes: int = 0
    waived: bool = False
    settled: int = 0
    reminded: bool = False

    def key(self) -> str:
        """Describes the state that its next answer depends on."""
        return f"{self.stated}|{self.patience}|{self.pushes}|{self.waived}|{self.settled}|{self.reminded}"

    def open(self, streams: Streams) -> Reply:
        """Says who it is and the first of its errands."""
        self.patience, self.pushes = self.persona.patience, self.persona.pushes
        return self.greet([Act("account", {}), *map(_want, self.errands[: self.stated])], streams)

    def respond(self, heard: Heard, world: World, turn: int, streams: Streams) -> Reply:
        """Says the next errand when the others are settled; answers, reminds or repeats itself otherwise."""
        answers = [answer for act in heard.acts for answer in self._hear(act, world, turn)]
        left = self._left(world)
        settled = self.stated - len(left)
        progress, self.settled = settled > self.settled, settled
        if not left and self.stated == len(self.errands):
            return self.say([Act("goodbye", {})], turn, streams, EndReason.CONCLUDED)
        if not left:
            self.stated, self.reminded = self.stated + 1, False
            return self.say([_want(self.errands[self.stated - 1])], turn, streams)
        if not progress and not (answers and answers[-1].name in ("affirm", "waiting", "doubt")):
            self.patience -= 1
        if self.patience <= 0:
            return self.say([Act("leave", {})], turn, streams, EndReason.ABANDONED)
        return self.say(answers or [self._remind(heard, left[0], progress)], turn, streams)

    def _left(self, world: World) -> list[Errand]:
        """The errands that were said and are not settled."""
        return [
            errand
            for errand in self.errands[: self.stated]
            if not (errand.done(world) or (self.waived and errand.intent in CONDITIONS))
        ]

    def _remind(self, heard: Heard, errand: Errand, progress: bool) -> Act:
        """Says that there is more; once that did not help, says what."""
        if not heard.understood:
            return Act("repeat", {})
        self.reminded = not self.reminded
        if not self.reminded:
            return _want(errand)
        reported = any(act.name == "done" for act in heard.acts)
        return Act("not_yet" if reported and not progress else "remind", {})

    def _hear(self, act: Act, world: World, turn: int) -> list[Act]:
        """Notes what an act of the agent brings, and returns the answer to it."""
        if act.name == "request":
            return [self._asked(act.slots["slot"])]
        if act.name == "promise":
            return [Act("waiting", {})]
        if act.name == "confirm":
            return [self._asked_to_confirm(act.slots["intent"], world, turn)]
        if act.name == "refuse":
            return self._refused(act.slots["reason"], act.slots["item"], world)
        return []

    def _asked(self, slot: str) -> Act:
        said = {name for errand in self.errands[: self.stated] for name in errand.target}
        return Act(f"inform_{slot}" if slot in said else "unknown", {})

    def _asked_to_confirm(self, intent: str, world: World, turn: int) -> Act:
        errand = next((errand for errand in self._left(world) if errand.intent == intent), None)
        if errand is None:
            return Act("deny", {})
        if intent in CONDITIONS:  # it said when: that is for the agent to find out
            return _want(errand)
        world.log.append(Event(turn, "confirmed", {"intent": intent, "account": errand.target["account"]}))
        return Act("affirm", {})

    def _refused(self, reason: str, item: str, world: World) -> list[Act]:
        condition = next((errand.intent for errand in self._left(world) if errand.intent in CONDITIONS), None)
        if condition is None or item not in ("", condition):
            return []
        if reason != NOT_NEEDED:
            return [Act("why", {})]
        if self.pushes > 0:
            self.pushes -= 1
            return [Act("doubt", {})]
        self.waived = True
        return []


def _want(errand: Errand) -> Act:
    return Act(f"want_{errand.intent}", {})


# -- what the client understands -------------------------------------------------------------------------

DOMAIN = Domain(
    slots={
        "account": r"account",
        "plan": r"plan|tariff",
        "phone": r"phone|mobile|new number",
        "day": r"day|when",
        "month": r"month|which bill",
        "amount": r"amount|how much",
        "gb": r"gb|gigabytes?|how much data",
    },
    reasons={
        NOT_NEEDED: r"need|needed|necessary|above|over|enough|more than|at least|paid|valid|below|under|less|open|"
        r"expired|condition|apply|applies",
    },
    verbs={
        "set_plan": r"plan|tariff|(?:moved|upgraded|downgraded) you (?:on)?to|(?:the|a) switch to (?!auto|direct|"
        r"paper)",
        "block_card": r"block\w*|freez\w+|froze\w*|lock\w*",
        "set_phone": r"(?:phone|mobile|contact|new) number|your (?:phone|number|mobile)|the (?:phone|number)",
        "callback": r"call[ -]?back|call you|(?:a|the) call|(?:ring|phone) you(?: back)?",
        "send_bill": r"send\w*|sent|copy of|invoice|e-?mailed|bill is (?:now )?on (?:its|the) way",
        "autopay": r"auto[ -]?pay\w*|automatic payments?|direct debit",
        "new_card": r"(?:new|replacement|another) card|order\w* (?:you )?a (?:new )?card|card ordered|"
        r"a new one (?:has been |was |is )?(?:now )?ordered",
        "top_up": r"top\w*[ -](?:\w+ )?(?:balance |account )?up|topped|top-up|recharg\w+|"
        r"(?:added|credited)(?: \S{1,12}){0,2} to (?:your|ur|the) (?:balance|credit)",
        "add_data": r"data|gb|gigabytes?",
    },
)
_DONE = re.compile(
    r"\b(?:i|i've|i have|we|we've|is|are|was|were|been|has|have|now|just)"
    r"(?: now| just| also| been| successfully| already| gone ahead and| went ahead and){0,4} "
    r"(?:blocked|topped|added|ordered|sent|switched|turned|booked|scheduled|arranged|set|activated|enabled|frozen|moved"
    r"|mailed|emailed|placed|credited|changed|updated|processed)\b"
    r"|\b(?:plan|card|number|phone|autopay|bill|call ?back|data|balance|gb|\d+ ?gb) "
    r"(?:changed|updated|blocked|booked|sent|ordered|added|enabled|switched|topped|activated|set up)\b"
    r"|^(?:ok,? )?\d+ ?(?:gb )?added\b|\b(?:is|are|was|has been) (?:now |all )?(?:complete|in place|on file|"
    r"activated)\b"
    r"|\byou(?:'re| are) (?:now |all )?(?:in the diary|booked in|down) for\b"
    r"|\bi(?:'ve|ve| have)? (?:just |now )?(?:put a block|finished (?:everything|all|both))\b"
    r"|\b(?:is|are) now\b|\bon (?:its|the) way\b"
)
_NOTED = re.compile(  # reports what it names, and nothing where it names nothing: what is noted may be the request
    r"\b(?:i|i've|i have|we|we've|is|are|was|were|been|has|have|had|now|just)"
    r"(?: now| just| also| been| successfully| already){0,4} (?:noted|saved|recorded|registered)\b"
    r"(?! (?:down )?(?:that|what|how|which|everything)\b| (?:\w+ ){0,4}?(?:request|wish|errand|order|task|"
    r"question)(?:e?s)?\b)"
)
_NOTES = re.compile(r"\b(?:my|our|the|some|a) notes?\b(?: of)?|\bset aside\b")  # which change nothing
_ASKS_FIRST = re.compile(
    r"\bneed your (?:ok|okay|yes|go-ahead|permission|confirmation)\b|\bdo you really want\b|\bcan you confirm\b|"
    r"\b(?:can|could|would|will) you (?:please )?confirm\b|\bconfirmation\b|\bare you sure\b"
    r"|\b(?:may|can|could) i (?:now )?(?:change|block|send|book|set|switch|update|put|move|arrange|note|save)\b"
)
_NOT_NEEDED = re.compile(
    r"\bno need\b(?! to worry| for concern)|\bno (?:[\w-]+ ){1,3}(?:needed|necessary|required)\b"
    r"|\b(?:not|n't|isn't) (?:be )?(?:need(?:ed)?|necessary|required)\b"
    r"|\bunnecessary\b|\bdid nothing\b|\bno (?:top-up|(?:further )?action|(?:extra )?data|new card)\b"
    r"|\bnothing (?:was|is|has been) (?:added|changed|done|ordered|switched|topped)\b"
    r"|\bnothing to (?:do|top|order|add|switch|pay|renew)\b"
    r"|\b(?:left|leave|leaving|kept|keep|stays?|remains?) "
    r"(?:it|that|them|as|the|your|autopay|alone|off|unchanged)\b(?! to me| in mind)"
    r"|\b(?:did|do|will|have)(?:n't| not) (?!yet )(?:\w+ )?"
    r"(?:top|topped|add|added|order|ordered|switch|switched|turn|turned)\b"
    r"(?!.{0,40}\byet\b)"
    r"|\b(?:won't|will not) (?:top|add|order|switch|turn)\b|\bdo(?:es)?(?:n't| not) apply\b"
    r"|\bnot (?:the case|met|true)\b"
    r"|\b(?:isn't|aren't|hasn't|not|no longer) (?:\w+ )?(?:below|under|less|lower|open|expired|low)\b"
    r"|\b(?:is|are|was|has been|still|already) (?:already |still |currently )?"
    r"(?:paid|valid|enough|sufficient|above|over|fine)\b"
    r"|\b(?:is|are) (?:\w+ )?(?:more than|at least|higher)\b|\b(?:have|has) (?:still )?(?:enough|more than|at least)\b"
)
_ABOUT = {  # what a denial is about, by words that speak of one condition only
    "autopay": re.compile(
        r"\b(?:auto[ -]?pay\w*|automatic payments?|direct debit|bills?|invoices?|paid|settled|open)\b"
    ),
    "new_card": re.compile(r"\b(?:cards?|valid|expired?)\b"),
    "top_up": re.compile(r"\b(?:balance|credit|top\w*[ -](?:\w+ )?up|topped|top-ups?)\b"),
    "add_data": re.compile(r"\b(?:data|gb|gigabytes?)\b|\d ?gb\b"),
}
_CLAUSE = re.compile(r"[,;:]| (?:and|but|so|because|since|as|which) ")
_READ_BACK = re.compile(  # the account told item by item: each has its own state
    r"(?:, (?:and |but )?| (?:and|but) )(?=(?:(?:your|the) )?(?:current |phone )?"
    r"(?:bill|card|balance|data|plan|phone|number|autopay) (?:is|are|was|has|have)\b)"
    r"|, (?:and |but )?(?=you (?:still )?have )"
)
_STATES = re.compile(r"\b(?:is|are|was|were|has|have|had|i|you)\b|'")
_SENTENCES = re.compile(r"(?<=[.!?;]) |,? (?:and|but) (?=(?:i will|i'll|shall|should|i have|i've|i) )")
_SUPPOSED = re.compile(  # what is supposed or asked is no claim
    r"^(?:so |then |and |but )?(?:if|unless|in case)\b|\?"
    r"|(?:\b(?:will|won't|would|can|could|should|may)|'ll)\b.{0,160}\b(?:if|unless|in case)\b"
)
_VERBS = {intent: re.compile(rf"\b(?:{pattern})\b") for intent, pattern in DOMAIN.verbs.items()}


@lru_cache(maxsize=8_192)
def _read(text: str) -> Heard:
    """Reads sentence by sentence: what is reported in one is not what is offered in the next."""
    acts: list[Act] = []
    understood = not text.strip()
    for sentence in _SENTENCES.split(" ".join(text.replace("’", "'").lower().split()), 40):
        for n, part in enumerate(_parts(sentence)):
            heard = understand(DOMAIN, part)
            acts += [act for act in _acts(heard, part) if n == 0 or act.name != "request"]  # an item asks nothing
            understood |= heard.understood and bool(part.strip())
    return Heard(tuple(acts), understood or bool(acts))


def _parts(sentence: str) -> list[str]:
    """Divides an account that is read back into its items; what states nothing itself stays with what follows."""
    parts = [sentence] if _SUPPOSED.search(sentence) else _READ_BACK.split(sentence, 20)
    if len(parts) > 1 and not _STATES.search(parts[0]):
        parts[:2] = [f"{parts[0]}, {parts[1]}"]
    return parts


def _acts(heard: Heard, sentence: str) -> list[Act]:
    """The acts of one sentence; a report names what was done and a denial its errand, where the sentence does."""
    names = {act.name for act in heard.acts}
    if not names & {"refuse", "confirm"} and not _SUPPOSED.search(sentence):
        denied = _denied(sentence)
        if denied:
            return [_denial(intent) for intent in denied]
        if _NOTES.search(sentence):
            return [act for act in heard.acts if act.name != "done"]
        if "done" in names or _DONE.search(sentence):
            return [Act("done", {"intent": intent}) for intent in _named(sentence) or [""]]
        if _NOTED.search(sentence):
            return [Act("done", {"intent": intent}) for intent in _named(sentence)]
    if not names & {"refuse", "confirm", "done"} and _ASKS_FIRST.search(sentence):
        return [Act("confirm", {"intent": intent, "item": ""}) for intent in _named(sentence)]
    acts = []
    for act in heard.acts:
        if act.name == "refuse" and act.slots["reason"] == NOT_NEEDED:
            acts += [_denial(intent) for intent in _denied(sentence) or _spoken_of(sentence) or [""]]
        else:
            acts.append(Act("done", {"intent": ""}) if act.name == "done" else act)
    return acts


def _denial(intent: str) -> Act:
    return Act("refuse", {"reason": NOT_NEEDED, "item": intent})


def _denied(sentence: str) -> list[str]:
    """The conditional errands that a sentence says are not needed; "" for one that it does not name."""
    return list(dict.fromkeys([_meant(sentence, match) for match in _NOT_NEEDED.finditer(sentence)]))


def _meant(sentence: str, denial: re.Match[str]) -> str:
    """What a denial is about: named in its own words, else last before it, else first after it."""
    own = _spoken_of(denial.group())
    if own:
        return own[0]
    cuts = [0, *[cut.end() for cut in _CLAUSE.finditer(sentence)], len(sentence)]
    begin = max(cut for cut in cuts if cut <= denial.start())
    end = min(cut for cut in cuts if cut >= denial.end())
    return next(iter(_spoken_of(sentence[begin:end]) or _spoken_of(sentence[:begin])[::-1] or _spoken_of(sentence)), "")


def _spoken_of(words: str) -> list[str]:
    """The conditional errands that words speak of, in the order of their first mention."""
    places = [(match.start(), intent) for intent, about in _ABOUT.items() if (match := about.search(words))]
    return [intent for _, intent in sorted(places)]


def _named(sentence: str) -> list[str]:
    """The intents that a sentence speaks of."""
    return [intent for intent, pattern in _VERBS.items() if pattern.search(sentence)]


def listen(text: str) -> Heard:
    """What the client understands of an agent message."""
    return _read(text[:READ])


class MultiIntent(ConversationEnv):
    """A client of a telephone company has two to four errands; one of them depends on the account.

    Description:
        The client wants, for example, a call back, another plan, and, if the balance is below 50, a top-up of
        20. It says some of its errands at once and the others when those are settled, reminds of what is
        left, vaguely at first, and leaves when all is done. The condition holds in half of the episodes: the
        agent has to look, and then either act or leave it and say so.
    Observation:
        Text. At reset the instructions and the client's opening; then what the client or a tool says.
    Action:
        Text to the client, or one tool call.
    Tools:
        ``look(account)``, ``set_plan(account, plan)``, ``block_card(account)``, ``set_phone(account, phone)``,
        ``callback(account, day)``, ``send_bill(account, month)``, ``autopay(account)``,
        ``new_card(account)``, ``top_up(account, amount)``, ``add_data(account, gb)``.
    Reward:
        1 at the end if every errand was done, the conditional one only where its condition holds (and
        otherwise the client was told so after a look), nothing else was changed, no rule broken and nothing
        reported that was not so. Otherwise 0. ``info["cost"]`` counts broken rules.
    Episode end:
        The client leaves when all is settled, or when patience is spent. Cut after 20 turns.
    Difficulty:
        Errands 2, 2, 3, 4, 4. 1: all said at once, conditions on one word. 2: some said later, conditions on
        numbers too. 3 and 4: one kind of change needs the client's yes, 5: two. Typing errors from 4.
    Splits:
        Wordings, seeds and personas as for every family; ``test_goal`` has its own plans, days and months;
        ``test_composition`` joins each conditional errand with another one that training never joins it with.
    Audit:
        Resists doing one errand and dropping the rest, acting on the condition blindly (a look must come
        first), always or never acting or throwing a coin (each is right in half of the episodes, so what counts of
        an exploiter is what it gets beyond chance over the classes: a coin gets nothing), doing everything, and
        reporting what was not done. To read the account back, or to note a request, claims nothing untrue.
    Version history:
        v0: first release.
    """

    default_max_turns: ClassVar[int] = 20
    by_class: ClassVar[bool] = True

    def draw(self, streams: Streams, split: Split, template: str | None) -> Task:
        """Draws an account, errands with their values, and which of them are said at once."""
        stream = streams.stream("scenario")
        level = self.difficulty
        conditions = CONDITIONS[:2] if level == 1 else CONDITIONS
        if template is not None:
            expect("scenario", template, tuple(f"{side}/{name}" for side in ("act", "leave") for name in conditions))
            side, _, condition = template.partition("/")
        else:
            side, condition = stream.pick(("act", "leave")), stream.pick(conditions)
        due = side == "act"
        intents = _draw_intents(stream, condition, COUNTS[level - 1], split)
        number, *others = [str(1_000 + n) for n in stream.distinct(9_000, 3)]
        account, facts = _draw_account(stream, condition, due)
        facts |= _draw_values(stream, intents, account, split)
        facts["account"] = number
        errands = tuple([_errand(intent, facts) for intent in intents])
        rules = make_rules(tuple(stream.deal(PLAIN, ASKS[level - 1])))
        accounts = {other: account._replace(phone=other, balance=stream.between(5, 95)) for other in others}
        stated = len(errands) if level == 1 else stream.between(1, len(errands))
        user = Client(
            bank=load_bank("multi_intent", "user"), persona=draw_persona(streams, split), split=split, facts=facts,
            typos=(0.0, 0.0, 0.0, 0.05, 0.1)[level - 1], errands=errands, stated=stated,
        )  # fmt: skip
        required = tuple([errand for errand in errands if due or errand.intent != condition])
        later = [facts["plan"]] if "set_plan" in intents[stated:] else []
        return Task(
            template=f"{side}/{condition}", world=World({"accounts": {number: account, **accounts}}), rules=rules,
            tools=TOOLS, user=user, instructions=_instructions(rules, self.style), understand=listen,
            judge=Goal(number, required, condition, due, rules),
            privileged={
                "account": number, "errands": tuple([_plain(intent, facts) for intent in intents]), "stated": stated,
                "due": due, "ask": tuple([rule.id.removeprefix("ask_") for rule in rules[1:]]),
            },
            secrets=later,
        )  # fmt: skip


def _draw_intents(stream: Stream, condition: str, count: int, split: str) -> list[str]:
    """Draws the errands in the order in which they are said."""
    partner = HELD_OUT[condition]
    excluded = {partner, "block_card"} if condition == "new_card" else {partner}  # nobody blocks what is to come
    held_out = [partner] if split == "test_composition" else []
    others = stream.deal([intent for intent in PLAIN if intent not in excluded], count - 1 - len(held_out))
    intents = [condition, *held_out, *others]
    stream.shuffle(intents)
    return intents


def _draw_account(stream: Stream, condition: str, due: bool) -> tuple[Account, dict[str, str]]:
    """Draws an account on which the condition holds or not, and the condition's values."""
    balance, data = stream.between(5, 95), stream.between(1, 19)
    facts = {}
    bill, card = stream.pick(("open", "paid")), stream.pick(("valid", "expired"))
    if condition == "autopay":
        bill = "open" if due else "paid"
    elif condition == "new_card":
        card = "expired" if due else "valid"
    elif condition == "top_up":
        limit = 10 * stream.between(2, 5)
        balance = stream.between(5, limit - 1) if due else stream.between(limit, 95)
        facts = {"limit": str(limit), "amount": str(10 * stream.between(1, 5))}
    else:
        least = stream.between(3, 9)
        data = stream.between(1, least - 1) if due else stream.between(least, 19)
        facts = {"least": str(least), "gb": str(stream.pick((5, 10, 15, 20)))}
    plan = stream.pick(values_of(PLANS, "train"))
    return Account(balance, bill, card, data, plan, str(stream.between(1_000, 9_999))), facts


def _draw_values(stream: Stream, intents: list[str], account: Account, split: str) -> dict[str, str]:
    """Draws what the errands are to bring: another plan, another number, a day, a month."""
    values = {}
    if "set_plan" in intents:
        values["plan"] = stream.pick([plan for plan in values_of(PLANS, split) if plan != account.plan])
    if "set_phone" in intents:
        values["phone"] = str(1_000 + (int(account.phone) - 1_000 + stream.between(1, 8_999)) % 9_000)
    if "callback" in intents:
        values["day"] = stream.pick(values_of(DAYS, split))
    if "send_bill" in intents:
        values["month"] = stream.pick(values_of(MONTHS, split))
    return values


def _plain(intent: str, facts: Mapping[str, str]) -> dict[str, str]:
    """An errand as a call: its intent and the arguments as the client says them."""
    slot = WRITES[intent].slot
    call = {"intent": intent, "account": facts["account"]}
    return call | {slot: facts[slot]} if slot else call


def _errand(intent: str, facts: Mapping[str, str]) -> Errand:
    call = _plain(intent, facts)
    del call["intent"]
    return Errand(intent, {slot: value.lower() for slot, value in call.items()})


@lru_cache(maxsize=128)
def _instructions(rules: tuple[Rule, ...], style: str) -> str:
    tools = TOOLS.values()
    if style == "brief":
        return (
            "Do all that the client wants, nothing else. If a task is not needed, say so. "
            f"{policy.render(rules, style)} Tools: {describe(tools, style)}"
        )
    return (
        "You serve the clients of a telephone company. A client has several tasks and may name them one after "
        "the other: carry out all of them, and nothing else. If a task depends on a condition, look whether it "
        "holds; if it does not, leave the task and tell the client that there is no need. Report only what has "
        f"been done.\n{policy.render(rules, style)}\n\n"
        "Either speak to the client, or call one tool by writing "
        '<tool_call>{"name": "...", "arguments": {...}}</tool_call> and nothing else. Tools:\n'
        f"{describe(tools, style)}"
    )
