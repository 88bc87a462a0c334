"""What a chat template writes between two messages, found by rendering probe conversations.

The contents of a probe are sentinels, so that a rendering falls into pieces: the *junctions*. A template
    whose
junctions depend on anything but the two neighbouring roles cannot grow by appending, so that sampled tokens
could not be kept; it is replaced by its family's training template, or refused with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from convgym.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Render = Callable[[list[dict[str, str]], bool], str]
Junctions = dict[tuple[str, str], str]

START, GENERATE = "", "generate"  # the two ends of a rendering, as if they were roles
_ROLES = {"s": "system", "u": "user", "a": "assistant", "t": "tool"}
# The first must render; the others only if the template knows system and tool messages and repeated roles.
_PROBES = ("uauaua", "suaua", "suataua", "uatatua", "suattau", "suatuau", "uutua", "uauua", "sta")
_TAGS = {"user": "[user message] ", "tool": "[tool result] "}  # where a template has no such role

_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ 'ipython' if m.role == 'tool' else m.role }}"
    "<|end_header_id|>\n\n{{ m.content | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
_PLAIN = (
    "{{ bos_token }}{% for m in messages %}### {{ m.role | capitalize }}:\n{{ m.content }}"
    "{{ eos_token if m.role == 'assistant' else '' }}\n\n{% endfor %}"
    "{% if add_generation_prompt %}### Assistant:\n{% endif %}"
)
TRAINING_TEMPLATES = {"<|im_start|>": _CHATML, "<|start_header_id|>": _LLAMA}
"""Templates that grow by appending, by the control token of the family they serve."""


def growing_junctions(tokenizer: PreTrainedTokenizerFast) -> tuple[Junctions, frozenset[str]]:
    """Junctions and trimmed roles of the tokenizer's own template, else of its family's training template."""
    own = tokenizer.chat_template
    vocabulary = tokenizer.get_added_vocab()
    family = next((text for token, text in TRAINING_TEMPLATES.items() if token in vocabulary), None)
    candidates = [own, family] if own else [family or _PLAIN]
    reason = ""
    for template in candidates:
        if template is None:
            continue
        try:
            return _probe(_renderer(tokenizer, template))
        except TemplateError as error:
            reason = reason or str(error)
    raise TemplateError(
        f"This chat template cannot grow by appending: {reason}. Sampled tokens would have to be encoded "
        "again. Set tokenizer.chat_template to one that renders every message the same wherever it stands."
    )


def _renderer(tokenizer: PreTrainedTokenizerFast, template: str | Mapping[str, str]) -> Render:
    if isinstance(template, Mapping):
        template = template.get("default") or next(iter(template.values()))

    def render(messages: list[dict[str, str]], generate: bool) -> str:
        try:
            text = tokenizer.apply_chat_template(
                messages,
                chat_template=template,
                tokenize=False,
                add_generation_prompt=generate,
                date_string="26 Jul 2024",  # some templates print today's date, and runs must be repeatable
            )
        except Exception as error:  # a template raises what it likes on roles that it does not take
            raise TemplateError(f"it refuses {[m['role'] for m in messages]}: {error}") from error
        return str(text)

    return render


def _probe(render: Render) -> tuple[Junctions, frozenset[str]]:
    """Finds what a template puts between any two roles.

    Raises:
        TemplateError: with the reason why appending cannot reproduce the template.
    """
    found: Junctions = {}
    for probe in _PROBES:
        try:
            pieces = _pieces(render, [_ROLES[letter] for letter in probe])
        except TemplateError:
            if probe == _PROBES[0]:
                raise
            continue
        for pair, text in pieces:
            if found.setdefault(pair, text) != text:
                raise TemplateError(
                    f"between {pair[0]!r} and {pair[1]!r} it writes {found[pair]!r} in one place and "
                    f"{text!r} in another"
                )
    _reconcile(found)
    _fall_back(found)
    return found, frozenset(role for role in ("system", "user", "tool") if _trimmed(render, role))


def _pieces(render: Render, roles: list[str]) -> list[tuple[tuple[str, str], str]]:
    """Junctions in the renderings of a conversation, at each moment at which the agent would speak."""
    messages = [{"role": role, "content": f"qz{i}sentinel{i}zq"} for i, role in enumerate(roles)]
    ends = [i for i in range(1, len(roles)) if roles[i] == "assistant"]
    out = []
    for end in ends:
        text = render(messages[:end], True)
        previous = START
        for message in messages[:end]:
            before, sentinel, text = text.partition(message["content"])
            if not sentinel:
                raise TemplateError(
                    f"it drops, changes or moves the content of a {message['role']!r} message"
                )
            out.append(((previous, message["role"]), before))
            previous = message["role"]
        out.append(((previous, GENERATE), text))
    return out


def _reconcile(found: Junctions) -> None:
    """The agent's header must be the same when it is asked to speak and when its words are history."""
    for previous in ("user", "tool", "system"):
        asked, history = found.get((previous, GENERATE)), found.get((previous, "assistant"))
        if asked is None or history is None or asked.rstrip() == history.rstrip():
            continue
        if not history.startswith(asked):
            raise TemplateError(
                f"the agent's header is {asked!r} when it is asked to speak, but {history!r} in the history"
            )
        found[previous, GENERATE] = history  # it ignores add_generation_prompt


def _fall_back(found: Junctions) -> None:
    """Fills in what the template does not know: system and tool messages, and two user messages in a row."""
    if (START, "system") not in found:  # then instructions open the first user message
        found[START, "system"] = found[START, "user"]
        found["system", "user"] = "\n\n"
        found["system", GENERATE] = found["user", GENERATE]
    if ("assistant", "tool") not in found:  # then a tool speaks as a user, with a tag
        found["assistant", "tool"] = found["assistant", "user"] + _TAGS["tool"]
        found["tool", GENERATE] = found["user", GENERATE]
    found.setdefault(("system", GENERATE), found["user", GENERATE])
    for previous in ("user", "tool", "system"):
        for role, tag in _TAGS.items():
            found.setdefault((previous, role), "\n\n" + tag)


def _trimmed(render: Render, role: str) -> bool:
    """Whether the template strips the spaces around contents of this role."""
    roles = {"system": ["system", "user"], "user": ["user"], "tool": ["user", "assistant", "tool"]}[role]
    try:
        text = render([{"role": r, "content": "  padded  " if r == role else "x"} for r in roles], True)
    except TemplateError:
        return False
    return "  padded  " not in text


def plain_markers(junctions: Iterable[str], control: frozenset[str]) -> tuple[str, ...]:
    """Structural text that is spelled with ordinary tokens, longest first.

    Lines and what stands between control tokens count if they look like markup (letters and punctuation), or
    if no control token guards their junction; so do single words in brackets. A bare role name inside control
    tokens is an ordinary word.
    """
    split = re.compile("|".join(map(re.escape, sorted(control, key=len, reverse=True))) or r"(?!)")
    markers: set[str] = set()
    for text in junctions:
        guarded = bool(split.search(text))
        for piece in re.split(r"\n", split.sub("\n", text)):
            words = piece.strip()
            if re.search(r"\w", words) and (re.search(r"[^\w\s]", words) or not guarded):
                markers.add(words)
            markers.update(word for word in words.split() if re.fullmatch(r"[^\w\s].*\w.*[^\w\s]", word))
    return tuple(sorted(markers, key=lambda marker: (-len(marker), marker)))
