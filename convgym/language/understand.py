"""Text to speech acts: patterns sentence by sentence, with a domain's own slots, reasons and verbs, and a classifier.

The listener is forgiving about wording and strict about facts: it looks for the act (a question about a slot,
a refusal and its reason, a report, a promise) and takes values only in the forms that the domain lists. Where no
pattern finds an act, the n-gram classifier guesses which act it is; slots, reasons and verbs are still the domain's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from convgym.language.classify import classify
from convgym.types import Act, Heard

__all__ = ["UNCLEAR", "Domain", "understand"]

READ = 2_000  # characters that a person reads of one message; also bounds the work of the patterns
UNCLEAR = "unclear"  # the item of a refusal that is about one of several things and does not name it
SURE = 0.7  # probability from which the classifier is believed; precision there is shown by benchmarks.understanding


def _words(*patterns: str) -> re.Pattern[str]:
    """Compiles alternatives that begin and end where words do."""
    return re.compile(rf"\b(?:{'|'.join(patterns)})\b")


_SENTENCE = re.compile(r"[^.!?;\n]*(?:\.(?=\d)[^.!?;\n]*)*[.!?;\n]*")
_SUPPOSED = _words(  # what follows is not said to be so
    r"if|unless|in case|whether|whenever|had (?:i|we|you|it|the|this|they)|(?:would|could|should|might) have",
    r"once (?:you|we|it|i|the|an?|this|that|[a-z]+ed)",
)
_OPEN_QUESTION = _words(
    r"(?:^|and|so|but|at|in|on|for|under|to|with|by) ?(?:what|which|who|whom|whose|where|when|how)",
    r"[,:!-] ?(?:what|which|who|whom|whose|where|when|how)",
)
_ASKS = _words(
    r"(?:could|can|may|would|might) (?:you|i|we)|please|pls|what|whats|which|when|where|who|how many|any",
    r"i(?:'ll| will|'m going to| am going to)? (?:also |just )?(?:need|require)|(?:tell|give|send) (?:me|us)|"
    r"let (?:me|us) (?:know|have)(?! a look)|(?:did not|didn't) (?:quite )?(?:catch|get|hear)|just your|"
    r"(?:once|until|after) you(?:'ve| have)? (?:tell|told|given?|send|sent)",
    r"(?:provide|share|confirm|state|verify|name|quote|enter|pick|choose|specify|type) "
    r"(?:me )?(?:your|the|a|an|which|pin)",
    r"(?:waiting for|missing is|one more thing|is it|was it|is the|do you (?:want|prefer)|would you (?:rather|like))",
)
_OFFERS = _words(
    r"(?:shall|should) (?:i|we)|(?:do you |would you |you )?(?:want|like) (?:me|us) to|ok(?:ay)? (?:if|to)",
    r"(?:is|are|does|do) (?:it|that|this|everything|all|these|you) (?:all |both |still )?"
    r"(?:ok|okay|alright|all right|right|correct|fine|good|sound|look|sure|certain|happy|agree)",
    r"(?:may|can|could|might) (?:i|we) (?!(?:please )?(?:have|get|ask|know|see|take|help|assist|also|interest|"
    r"just ask))",
    r"would (?:it|that|you) be (?:ok|okay|alright|all right|right|fine|happy|good)|would you like that|want that",
    r"do you (?:confirm|agree|want the|want a|still want)|ready (?:for me )?to|can you confirm (?:that )?(?:you|"
    r"the [a-z]+ation)",
    r"please confirm(?! (?:your|the (?:[a-z]+ )?(?:zip|pin|number|code|city|name|day|date|time|order number)))",
    r"(?:have|need|get|with|give me) your (?:permission|approval|consent|go-ahead|green light|okay|ok)|mind if (?:i|"
    r"we)|"
    r"(?:okay|ok|fine|good) to proceed|(?:shall|should|can|may) (?:i|we) proceed|is that what you (?:want|would like)|"
    r"you(?:'d| would)? (?:really )?(?:want|like) (?:me|us) to|go ahead ?\?|sounds? (?:good|right|okay|ok) ?\?|"
    r"(?:just )?say the word|let me (?:just )?confirm|"
    r"(?:say|reply|answer) yes|yes or no|am i (?:right|correct)|(?:can|may) i take it|did i get (?:that|it|this|"
    r"everything)",
    r"(?:just )?to (?:confirm|be (?:sure|certain|clear|safe)|double.?check)|double.?checking|just checking",
)
_TAGGED = re.compile(r"(?:, ?|\b)(?:correct|right|yes|ok|okay|yeah|alright|agreed|then) ?\?")
_CANNOT = _words(
    r"can(?:no|')?t(?! (?:thank|wait|see|find|hear|promise))|can not|unable|impossible|"
    r"(?:not|[a-z]{2,8}n't) (?:be )?(?:able|possible)|nothing (?:that )?(?:i|we) can do|(?:blocks?|prevents?|stops?|"
    r"keeps?|bars?) (?:me|us) from",
    r"(?:not|[a-z]{2,8}n't) eligible|ineligible|(?:not|[a-z]{2,8}n't) (?:be )?(?:allowed|permitted|something|"
    r"authori[sz]ed|permit|let me|accept|offer)|not going to be able",
    r"(?:time|window|period|deadline)(?: [a-z]+){0,4} (?:has |have |had |is |already )+"
    r"(?:run out|expired|passed|lapsed|closed|ended)|(?:goes|is|are|was) (?:over|above|beyond) (?:my|that|our) "
    r"(?:limit|maximum)",
    r"won't (?:be able|be possible|work)|will not be (?:able|possible)|(?:have to|must|need to|has been|was|been) "
    r"(?:declined?|refused?|rejected|den(?:y|ied)|turn(?:ed)? (?:you |it |this )?down)|does(?:n't| not) qualify",
    r"could(?:n't| not)|(?:not|neither|non.?) ?(?:be )?(?:refund(?:able|ed)|return(?:able|ed)|exchange(?:able|"
    r"d)|covered)",
    r"no longer (?:be |possible|change|cancel|refund|eligible)|out of the question|no can do|(?:no|"
    r"not any) (?:refunds?|returns?|exchanges?)(?! (?:was|were|has|have))",
    r"too late|past (?:the|your|our|my)|lack the|(?:excluded|exempt) from|beyond (?:my|the|our)|have to decline|"
    r"must decline",
    r"(?<!not )(?<!n't )(?:forbids?|forbidden|prohibits?|prohibited)|"
    r"against (?:our|the|company) (?:polic(?:y|ies)|rules?)|not an option|"
    r"[a-z]{2,8}n't an option|no way (?:to|for me|that i)|not in a position|(?:i'm|i am) afraid (?:not|no)(?=[,.!]|$)|"
    r"(?:must|have to) (?:say no|refuse)|"
    r"(?:request|claim|refund|return|exchange|cancell?ation) (?:is|was|has been|must be) (?:denied|declined|"
    r"rejected|refused)|"
    r"aren't mine|only (?:my|a|the|our) (?:supervisor|manager) can",
)
_DONE = _words(
    r"done|all set|taken care of|sorted",
    r"(?:been|i|i've|we|we've|have|has|is|are|was|were|now|it's|'s|successfully|just|managed to|able to|already) "
    r"(?:now |just |been |successfully |already |fully |also |(?:went|gone) ahead and ){0,4}"
    r"(?:refund(?:ed)?|cancel(?:l?ed)?|exchange(?:d)?|replaced?|swapped|updated?|changed?|switched|processed|completed|"
    r"booked|submitted|issued|credited|redirected|rerouted|reimbursed|returned your|sent (?:you )?a (?:new|"
    r"replacement)|amended|corrected|stopped (?:the|your) (?:order|shipment|delivery))",
    r"^(?:ok(?:ay)?,? |great,? |good news[,:]? )?(?:refunded|cancell?ed|updated|changed|exchanged|swapped|replaced)",
    r"(?:refund|exchange|cancell?ation|replacement|address change|swap) (?:(?:of|for) [^.!?,]{1,24} )?"
    r"(?:is |was |has |been |now |just |already ){0,4}(?:issued|complete|completed|processed|done|confirmed|"
    r"went through|sent|approved|in place)",
    r"that's the (?:address|order|refund|lamp|item) (?:changed|cancell?ed|done|updated)",
    r"^(?:ok(?:ay)?,? )?(?:your |the )?(?:new |delivery |shipping )?(?:address|city|order) "
    r"(?:updated|changed|corrected|cancell?ed|saved)",
    r"(?:replacement|refund|money|new one)(?: for [^.!?,]{1,24})? is (?:now |already )?(?:on (?:its|the) way|"
    r"coming your way)",
    r"(?:i|we|i've|we've|i have|we have) (?:now |just |already |also |(?:went|gone) ahead and ){0,4}"
    r"(?:g[ai]ven?|arranged|set up|put|made|placed) (?:you |a |an |the |your |full |complete |free ){0,4}"
    r"(?:refund|replacement|exchange|swap|cancell?ation|change)(?! (?:request|form|note|of))",
    r"(?:address|city)(?: (?:on|of|for) [^.!?,]{1,24})? now (?:reads|says|is)|new address (?:is|was|has been) "
    r"(?:now |just )?(?:saved|set|stored|on file|in place)",
)
_PENDING = re.compile(  # before "done": what is still to come
    r"(?:\b(?:will|can|could|would|should|may|might|must|to)|'ll)(?: now| then| also| just| soon){0,2} (?:be|get|"
    r"have|see)\b"
    r"[^,;:]{0,24}$|\b(?:almost|nearly|being|getting|let me|let us|let's) [^,;:]{0,16}$"
)
_HARMLESS = _words(  # what is denied beside a report and takes nothing of it back
    r"(?:you|it|they) (?:won't|will not|don't|do not|needn't) (?:be (?:charged|billed|shipped|sent|delivered)|need|owe|"
    r"have to|pay)|no longer exists?|nothing (?:more|else|further)",
)
_NOT_SO = _words(
    r"not|never|no(?! (?:problem|worries))|nor|[a-z]{2,8}n't|hardly|yet to be|last (?:year|month|week)|"
    r"before (?:i|we) (?:refund|cancel|exchange|replace|swap|update|change|switch|issue|process|complete|submit)|"
    r"(?:shall|should|may|can|could|must) (?:i|we)|want me to|you (?:said|told|mentioned|wrote)|"
    r"order (?:was|has been|is) (?:already )?(?:processed|completed|booked|submitted)"
)
_CHECKED = _words(  # what can be done with no effect: to report it is to report nothing
    r"verification|authentication|identity|(?:security|identity|id|order|account|record) (?:checks?|questions?)|"
    r"look-?ups?|looking (?:it |that |this |your order |the order )?up|checking|verifying|verified|the checks?",
)
_CLAUSE = re.compile(r"[,;:]| and | but | so ")
_CONTRAST = re.compile(r"\b(?:but|however|though|although|whereas|while)\b")
_LISTED = re.compile(r"(?:[ ,]|\b(?:and|or|nor|neither|both|the|your|a|an|of)\b)*")  # between things in one list
_AND = re.compile(r"\b(?:and|or|nor)\b")
_NEGATED = re.compile(r"\bnot\b|n't\b|\bexcept\b|\bother than\b")
_SOME_ONE = _words(r"the other|one of (?:them|these|those|the)|only one|the (?:first|second|latter|former)")
_PROMISE = _words(
    r"i(?:'ll| will| am going to|'m going to| shall) (?!(?:also |just )?(?:need|be (?:your|assisting|helping|"
    r"happy|glad)|require|let you))",
    r"let me (?!know)|let's (?:see|check|have a look)|hold (?:on|for|please|the line)|please wait|right away|"
    r"bear with me",
    r"(?:one|a|1|just a|few|two|a few|couple of|a couple of) (?:moments?|seconds?|minutes?|mins?|secs?|tick|jiffy)",
    r"(?:i'm|i am|we're|we are|just|currently|now) (?:now |just |currently ){0,4}"
    r"(?:checking|looking|working|verifying|processing|pulling|on it|reviewing|getting|taking care)|on it|give me",
)
_SMALL_TALK = (
    ("empathy", _words(
        r"sorry|apolog(?:y|ies|i[sz]e)|i (?:completely |fully |totally |really )?understand|understandabl[ey]|"
        r"frustrat\w+",
        r"inconvenience|empathi[sz]e|feel for you|a shame|(?:must|does|sounds?|can) (?:be |have been |so |very ){0,4}"
        r"(?:annoying|hard|difficult|stressful|upsetting|terrible|awful|disappointing|frustrating)|hassle|oh no|regret",
        r"how (?:annoying|upsetting|awful|terrible|disappointing|unfortunate)|such a disappointment|"
        r"terrible experience|"
        r"what a (?:pity|nuisance|pain|mess|disappointment)|every (?:right|reason) to|don't blame you|feel bad|"
        r"i can (?:imagine|(?:see|hear|tell) (?:why|how|that)) (?:you|annoying|hard|it)|i get that (?:this|it) is not|"
        r"i(?:'d| would) (?:feel|be) (?:exactly |just )?(?:the same|disappointed|upset|annoyed|angry)|"
        r"i (?:really |truly )?do understand|pardon the",
    )),
    ("offer", _words(
        r"anything else|something else|else (?:can|may|could|should) (?:i|we)|else i can|further (?:help|"
        r"questions|assistance|requests?)",
        r"(?:any|another|other|more) (?:other |more )?(?:questions?|requests?|concerns?|matters?|support|"
        r"issues?|help)|was that all|is that all|will that be all|is that everything|does that (?:cover|answer)|"
        r"any other way",
        r"(?:anything|something) (?:more|further|besides|other)|anything (?:that )?you need from|answered all|"
        r"more (?:that )?(?:i|we) (?:can|may|could) (?:do|help)|help (?:you )?with anything|anythi?gn? else|"
        r"(?:any|some)thi?gn else",
    )),
    ("bye", _words(
        r"good ?bye|bye|(?:have|enjoy|wish\w*(?: you)?) (?:a |the |an |your )?(?:rest of your |very )?"
        r"(?:nice|good|great|lovely|pleasant|wonderful|fantastic|blessed|rest|day|evening|weekend)|take care|"
        r"farewell|cheerio",
        r"see (?:you|ya)|cya|take it easy$|until next time|good ?night|so long|all the best|talk (?:to you )?soon",
    )),
    ("thank", _words(r"thank(?:s| you|ful)|thx|ty|tysm|appreciate[ds]?|much appreciated|grateful|cheers|obliged|"
    r"gratitude")),
    ("greet", _words(
        r"hello|hi|hey|heya|hiya|howdy|welcome|greetings|g'day|yo|good (?:morning|afternoon|evening|day)|"
        r"^(?:morning|evening|afternoon)",
        r"how (?:can|may|could|do) (?:i|we) (?:be of |help|assist)|what (?:can|may|could) (?:i|we) (?:do|help)|"
        r"how are you|what brings you|you(?:'re| are) contacting us about",
    )),
    ("affirm", _words(
        r"^(?:ok|okay|sure|yes|yep|yeah|yup|of course|certainly|alright|all right|absolutely|definitely|exactly|"
        r"got it|noted|"
        r"understood|right|roger|indeed|correct|perfect|fine|great|agreed|very well|no problem|lovely|will do|"
        r"gladly|aye|"
        r"with pleasure|by all means|that works|no worries|excellent|affirmative|kk|cool|for sure|mm+-?hmm*|i agree|"
        r"true|"
        r"(?:oh|ah|well),? (?:sure|great|yes|ok|okay|of course)|i (?:see|understand)(?=[.!]*$))",
        r"duly noted|got it|no problem|sounds good|of course|you're (?:right|absolutely right)|that's (?:absolutely |"
        r"perfectly )?(?:right|correct|fine|affirmative)|makes sense|i(?:'ve| have) got (?:it|that)",
    )),
)  # fmt: skip
_AMOUNT = re.compile(
    r"\brefund(?:ed)?(?: of)?(?: you)?(?: the)? [$€£]?(\d[\d,]*(?:\.\d+)?)\b|[$€£](\d[\d,]*(?:\.\d+)?)"
)


@dataclass(frozen=True, eq=False)
class Domain:
    """What a scenario family speaks about.

    Attributes:
        slots: ``{slot: pattern of its names}``, what an agent may ask for.
        reasons: ``{reason: pattern}``, typed reasons of a refusal.
        verbs: ``{intent: pattern}``, what an agent may offer, promise or report.
        items: Pattern of one item name, for claims about one of several things.
    """

    slots: Mapping[str, str]
    reasons: Mapping[str, str] = field(default_factory=dict)
    verbs: Mapping[str, str] = field(default_factory=dict)
    items: str = r"(?!)"


@lru_cache(maxsize=64)
def _compiled(domain: Domain) -> tuple[list[tuple[str, re.Pattern[str]]], ...]:
    return tuple(
        [(name, _words(pattern)) for name, pattern in table.items()]
        for table in (domain.slots, domain.reasons, domain.verbs, {"item": domain.items})
    )


def understand(domain: Domain, text: str) -> Heard:
    """Finds the speech acts in an agent message.

    Args:
        domain: The scenario's slots, reasons and verbs.
        text: The message, any string. Only its first 2,000 characters are read.

    Returns:
        The acts: ``request(slot)``, ``confirm(intent, item)``, ``refuse(reason, item)``, ``done(amount)``,
        ``promise()`` and small talk. Silence is understood as silence. A refusal with the item "" is of everything
        that is wanted, and one with the item :data:`UNCLEAR` of something that it fails to name.
    """
    return _understand(domain, text[:READ])


@lru_cache(maxsize=8_192)
def _understand(domain: Domain, text: str) -> Heard:
    text = text.replace("’", "'").lower()
    if not text.strip():
        return Heard((), True)
    read = _Reading(domain, " ".join(text.split()))
    sentences = [" ".join(found.split()) for found in _SENTENCE.findall(text) if found.strip()]
    acts = read.claims(sentences)
    if not acts:
        acts = read.questions(sentences)
    if not acts:
        acts = [Act("promise", {})] if read.checked else read.guess()
    acts += [Act(name, {}) for name, pattern in _SMALL_TALK if pattern.search(read.text)]
    acts = list({(act.name, *act.slots.values()): act for act in acts}.values())
    return Heard(tuple(acts), bool(acts))


class _Reading:
    """One message, read for one domain."""

    def __init__(self, domain: Domain, text: str) -> None:
        self.text = text
        self.checked = False  # whether it reports a check, which is no report
        self.several = domain.items != Domain.items
        self.slots, self.reasons, self.verbs, self.items = _compiled(domain)

    def claims(self, sentences: list[str]) -> list[Act]:
        """Refusals and reports: what the agent is held to. Suppositions and questions claim nothing."""
        acts: list[Act] = []
        at = 0
        for sentence in sentences:
            at = max(at, self.text.find(sentence, at))
            if sentence.endswith("?") or _SUPPOSED.search(sentence):
                continue
            cannot = _CANNOT.search(sentence)
            if cannot is not None:
                acts += self._further(self.refusal(at, at + cannot.start(), at + len(sentence)), acts)
                continue
            if any(self._reports(sentence, done) for done in _DONE.finditer(sentence)):
                acts += self.report()
        return acts

    def _further(self, refusals: list[Act], acts: list[Act]) -> list[Act]:
        """What a refusal adds to earlier claims: nothing unless it names its thing, and after a report its reason."""
        if not acts:
            return refusals
        reported = any(act.name == "done" for act in acts)
        named = [act for act in refusals if act.slots["item"] not in ("", UNCLEAR)]
        return [act for act in named if act.slots["reason"] or not reported]

    def _reports(self, sentence: str, done: re.Match[str]) -> bool:
        """Whether something is reported that has an effect: neither denied, nor to come, nor a mere check."""
        if _PENDING.search(sentence[: done.start()]) or _NOT_SO.search(_HARMLESS.sub("", sentence)):
            return False
        checks = [found.start() for found in _CHECKED.finditer(sentence)]
        if not checks:
            return True
        # It is about what comes next in its clause, and else about what was named last.
        acts = [found.start() for _, pattern in self.verbs for found in pattern.finditer(sentence)]
        if any(done.start() <= at < done.end() for at in acts):
            return True
        clause = _CLAUSE.search(sentence, done.end())
        end = clause.start() if clause else len(sentence)
        after = [(at, at in checks) for at in (*checks, *acts) if done.end() <= at < end]
        before = [(at, at in checks) for at in (*checks, *acts) if at < done.end()]
        mere = min(after)[1] if after else max(before)[1] if before else False
        self.checked = self.checked or mere
        return not mere

    def refusal(self, start: int, cannot: int, end: int) -> list[Act]:
        """A refusal for every reason given, of each thing that it is about.

        Args:
            start: Where its sentence starts in the text.
            cannot: Where the sentence says no.
            end: Where the sentence ends.
        """
        found = [name for name, pattern in self.reasons if pattern.search(self.text)]
        things = self._refused_things(start, cannot, end)
        return [Act("refuse", {"reason": reason, "item": item}) for reason in (found or [""]) for item in things]

    def _refused_things(self, start: int, cannot: int, end: int) -> list[str]:
        """The things named after the no, else the last ones before it, else those of later sentences, else all ("")."""
        named = list(self.items[0][1].finditer(self.text))
        contrast = _CONTRAST.search(self.text, cannot, end)  # "I can't refund this, but I can refund that"
        stop = contrast.start() if contrast else end
        after = _first_list(self.text, [item for item in named if cannot <= item.start() < stop])
        before = _first_list(self.text, [item for item in named if start <= item.start() < cannot][::-1])
        if self.several and not after and self._some_one(start, cannot, stop):
            return [UNCLEAR]
        return after or before or _first_list(self.text, [item for item in named if item.start() >= end]) or [""]

    def _some_one(self, start: int, cannot: int, stop: int) -> bool:
        """Whether it is about "the other one", or another one that is not named."""
        contrasts = list(_CONTRAST.finditer(self.text, start, cannot))
        return _SOME_ONE.search(self.text, contrasts[-1].end() if contrasts else start, stop) is not None

    def report(self) -> list[Act]:
        """A report with every amount that is named."""
        amounts = [one or other for one, other in _AMOUNT.findall(self.text)]
        return [Act("done", {"amount": amount.replace(",", "")}) for amount in amounts or [""]]

    def questions(self, sentences: list[str]) -> list[Act]:
        """Offers to be confirmed, questions about slots, and promises, in this order."""
        acts: list[Act] = []
        for sentence in sentences:
            if not _OPEN_QUESTION.search(sentence) and (_OFFERS.search(sentence) or _TAGGED.search(sentence)):
                acts += self.offers()
                break
        if not acts and ("?" in self.text or _ASKS.search(self.text)):
            acts = self.requests()
        if not acts and "?" not in self.text and _PROMISE.search(self.text):
            acts = [Act("promise", {})]
        return acts

    def offers(self) -> list[Act]:
        """One offer for every verb of the domain that is named."""
        named = {match.group() for match in self.items[0][1].finditer(self.text)}
        item = named.pop() if len(named) == 1 else ""
        meant = [name for name, pattern in self.verbs if pattern.search(self.text)]
        return [Act("confirm", {"intent": name, "item": item}) for name in meant]

    def requests(self) -> list[Act]:
        """One question for every slot that is named."""
        return [Act("request", {"slot": name}) for name, pattern in self.slots if pattern.search(self.text)]

    def guess(self) -> list[Act]:
        """What the classifier takes it for, where it is sure and the domain knows what it is about.

        A report is never guessed, and a refusal only with its reason: a claim that was not made would be held
        against the agent.
        """
        act, probability = classify(self.text)
        if probability < SURE:
            return []
        if act == "refuse":
            negated = _NEGATED.search(self.text)
            at = negated.start() if negated else 0
            return [act for act in self.refusal(0, at, len(self.text)) if act.slots["reason"]]
        if act == "confirm":
            return self.offers()
        if act == "request":
            return self.requests()
        return [Act("promise", {})] if act == "promise" else []


def _first_list(text: str, named: list[re.Match[str]]) -> list[str]:
    """The first of some matches, and those that are listed with it: "the lamp and the mug"."""
    things, joined = [item.group() for item in named[:1]], False
    for last, item in pairwise(named):
        one, other = sorted((last.span(), item.span()))
        if not _LISTED.fullmatch(text, one[1], other[0]):
            break
        joined = joined or _AND.search(text, one[1], other[0]) is not None
        things.append(item.group())
    return things if joined else things[:1]
