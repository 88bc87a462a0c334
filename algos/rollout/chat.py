"""Messages to tokens and back; with ``junctions.py``, the only place that knows of chat templates.

A conversation grows by extension. Sampled ids stay as they were sampled, and new messages are appended as the
ids of their contents with the template's own text (the *junctions*) around them. Nothing is decoded and
encoded again.

Nobody can forge a turn: contents are encoded by a copy of the tokenizer that knows no added tokens, junctions by the
real one, and ids are concatenated. Markers that are plain text (``[INST]``, ``### User:``) are broken up in contents.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from algos.rollout.junctions import GENERATE, START, growing_junctions, plain_markers
from convgym.errors import TemplateError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Messages = Sequence[Mapping[str, str]]

_BREAKS = ("\u200b", " ", "-", ".")  # what breaks a plain-text marker; some normalisers drop the first


class Demonstration(NamedTuple):
    """A finished conversation as tokens, for behaviour cloning; it ends with the last agent turn.

    Attributes:
        ids: int64 [T].
        action: True on the agent's words and their end-of-turn token, bool [T].
        turn: Agent turn of each action token, int64 [T]; -1 off action.
    """

    ids: NDArray[np.int64]
    action: NDArray[np.bool_]
    turn: NDArray[np.int64]


class Chat:
    """Encodes the growth of a conversation, and decodes what the policy said.

    Args:
        tokenizer: A fast tokenizer. Without a chat template, a plain-text one is used; with one that cannot
            grow, its family's training template.
        eos_ids: Tokens that end a turn, beyond the tokenizer's own EOS and the template's end marker.

    Attributes:
        eos_ids: Every token that ends a turn.
        end_id: The one that a demonstration ends a turn with.
        control_ids: Tokens that no content can produce.
        markers: Plain-text markers that no content can reproduce.

    Raises:
        TemplateError: if the template cannot grow by appending and no training template serves its family.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, eos_ids: Iterable[int] = ()) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise TemplateError(
                f"{type(tokenizer).__name__} is not a fast tokenizer, so its added tokens cannot be switched "
                "off for contents. Save the tokenizer with a tokenizer.json (PreTrainedTokenizerFast)."
            )
        self._backend = backend
        self._junctions, self._trims = growing_junctions(tokenizer)
        self._frame_tokenizer, self._content_tokenizer = _copies(backend)
        # Some families give runs of spaces ids of their own: those are words, not marks.
        self._marks = frozenset(token for token in tokenizer.get_added_vocab() if token.strip())
        self.eos_ids = frozenset(eos_ids) | {tokenizer.eos_token_id} - {None}
        self.end_id = self._own_end(tokenizer.eos_token_id)
        self.eos_ids |= {self.end_id}
        self.control_ids = self._controls(tokenizer)
        self.markers = plain_markers(self._junctions.values(), self._marks)
        self._control_array = np.array(sorted(self.control_ids), dtype=np.int64)
        self._encoded = functools.lru_cache(maxsize=2048)(self._encode)
        self._framed = functools.lru_cache(maxsize=None)(self._frame)

    def delta(self, messages: Messages, last_id: int | None = None) -> list[int]:
        """Ids to append before the agent speaks again.

        Args:
            messages: New messages only, in order; none is an empty user message.
            last_id: Last id of the agent's turn that they answer; ``None`` at the start of the conversation.
                If it is the end marker that the template puts there, it is not appended a second time.

        Returns:
            At least one id, up to and including the agent's header.

        Raises:
            TemplateError: for a role that the template does not take at this place.
        """
        ids: list[int] = []
        previous = START if last_id is None else "assistant"
        for message in messages or ({"role": "user", "content": ""},):
            self._extend(ids, previous, message, last_id)
            previous, last_id = message["role"], None
        return ids + self._framed(previous, GENERATE, last_id)[0]

    def demonstration(self, messages: Messages) -> Demonstration:
        """Tokens of a whole conversation whose agent turns are given as text (role ``assistant``).

        Raises:
            TemplateError: if no message is the agent's, or two of the agent's follow one another.
        """
        ids: list[int] = []
        turns: list[int] = []
        start, last_id, turn, length = 0, None, 0, 0
        for at, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            if at == start and turn:
                raise TemplateError(
                    "two agent messages follow one another; join them, or put a reply between"
                )
            ids += self.delta(messages[start:at], last_id)
            turns += [-1] * (len(ids) - len(turns))
            ids += [*self.encode(message["content"]), self.end_id]
            turns += [turn] * (len(ids) - len(turns))
            start, last_id, turn, length = at + 1, self.end_id, turn + 1, len(ids)
        if not turn:
            raise TemplateError("a demonstration needs at least one message with the role 'assistant'")
        index = np.array(turns[:length], dtype=np.int64)
        return Demonstration(np.array(ids[:length], dtype=np.int64), index >= 0, index)

    def encode(self, content: str) -> tuple[int, ...]:
        """Ids of a message's content, none of them a control id, whatever the string.

        Lone surrogates are replaced by ``?``; plain-text markers of the template are broken up.
        """
        return self._encoded(content)

    def texts(self, turns: Sequence[NDArray[np.int64]]) -> list[str]:
        """What the policy said in each turn, without end of turn and other control tokens."""
        spoken = [ids[~np.isin(ids, self._control_array)].tolist() for ids in turns]
        decoded: list[str] = self._backend.decode_batch(spoken, skip_special_tokens=False)
        return decoded

    def _extend(self, ids: list[int], previous: str, message: Mapping[str, str], last_id: int | None) -> None:
        role, content = message["role"], message["content"]
        frame, spaces = self._framed(previous, role, last_id)
        ids += frame
        ids += self.encode(" " * spaces + (content.strip() if role in self._trims else content))

    def _frame(self, previous: str, role: str, last_id: int | None) -> tuple[list[int], int]:
        """Ids of a junction, and how many spaces at its end belong to the next content's first token."""
        text = self._junctions.get((previous, role))
        if text is None:
            raise TemplateError(
                f"the chat template takes no {role!r} message after {previous or 'the start'!r}; "
                "environments send system and user first, and user or tool messages after each agent turn"
            )
        tokenizer = self._frame_tokenizer if previous else self._backend
        stripped = text.rstrip(" ")
        ids: list[int] = tokenizer.encode(stripped, add_special_tokens=False).ids
        if last_id in ids and not self._backend.decode(ids[: ids.index(last_id)]).strip():
            ids = ids[ids.index(last_id) + 1 :]
        return ids, len(text) - len(stripped)

    def _encode(self, content: str) -> tuple[int, ...]:
        text = content.encode("utf-8", "replace").decode("utf-8")
        ids = self._without_controls(_broken(text, self.markers, _BREAKS[0]))
        for separator in _BREAKS:  # a normaliser may have put a marker together, or dropped what broke it
            spoken = self._backend.decode(ids, skip_special_tokens=False) if self.markers else ""
            if not any(marker in spoken for marker in self.markers):
                return tuple(ids)
            ids = self._without_controls(_broken(spoken, self.markers, separator))
        return tuple(self._without_controls(re.sub(r"\W+", " ", text)))

    def _without_controls(self, text: str) -> list[int]:
        """Encodes; where the vocabulary itself spells a control token, its text is encoded in two halves."""
        encoding = self._content_tokenizer.encode(text, add_special_tokens=False)
        ids: list[int] = encoding.ids
        forged = [i for i, token in enumerate(ids) if token in self.control_ids]
        if not forged:
            return ids
        offsets = encoding.offsets  # a copy each time
        spans = [offsets[i] for i in forged]
        cuts = sorted({(start + end) // 2 for start, end in spans} - {0, len(text)})
        if not cuts or any(end - start < 2 for start, end in spans):
            return [token for token in ids if token not in self.control_ids]  # nothing left to halve
        pieces = zip([0, *cuts], [*cuts, len(text)])
        return [token for start, end in pieces for token in self._without_controls(text[start:end])]

    def _own_end(self, eos_id: int | None) -> int:
        """The control token right after an agent message, else the tokenizer's EOS."""
        text = self._junctions["assistant", "user"]
        ids = self._frame_tokenizer.encode(text, add_special_tokens=False).ids
        for token in ids:
            if self._backend.id_to_token(token) in self._marks:
                return int(token)
            if self._backend.decode([token]).strip():
                break
        if eos_id is None:
            raise TemplateError(
                "nothing ends an agent turn: the template puts no control token after agent messages and the "
                "tokenizer has no eos_token. Set tokenizer.eos_token."
            )
        return int(eos_id)

    def _controls(self, tokenizer: PreTrainedTokenizerFast) -> frozenset[int]:
        structure = "".join(self._junctions.values())
        added = tokenizer.added_tokens_decoder
        controls = {i for i, token in added.items() if token.special or _structural(token.content, structure)}
        controls |= set(tokenizer.all_special_ids)
        # An unknown character is content, unless the same id also ends a turn.
        unknown = getattr(self._backend.model, "unk_token", tokenizer.unk_token)
        controls -= {unknown and self._backend.token_to_id(unknown)}
        return frozenset(int(i) for i in controls | self.eos_ids)


def _structural(token: str, structure: str) -> bool:
    """Whether an added token is a marker of the template, rather than a run of spaces that has its own id."""
    return bool(token.strip()) and token in structure


def _copies(backend: Any) -> tuple[Any, Any]:
    """Two tokenizers over the same vocabulary, for junctions and for contents: the second knows no added
    tokens.

    Both continue a text, so neither puts a space before it as at the beginning of a sentence.
    """
    from tokenizers import Tokenizer, models

    parts = {name: getattr(backend, name) for name in ("normalizer", "pre_tokenizer")}
    plain = {name: part and json.loads(part.__getstate__()) for name, part in parts.items()}
    continuing = {name: _continuing(part) for name, part in plain.items()}
    frames = backend
    if continuing != plain:
        dummy = json.loads(Tokenizer(models.BPE()).to_str())
        edited = Tokenizer.from_str(json.dumps(dummy | continuing))
        parts = {name: getattr(edited, name) for name in parts}
        frames = Tokenizer.from_str(backend.to_str())
    contents = Tokenizer(backend.model)
    for tokenizer in (frames, contents) if frames is not backend else (contents,):
        tokenizer.normalizer, tokenizer.pre_tokenizer = parts["normalizer"], parts["pre_tokenizer"]
    return frames, contents


def _continuing(part: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normaliser or pre-tokenizer without the space that some put at the beginning of a text."""
    if part is None or part["type"] == "Prepend":
        return None
    for key in ("normalizers", "pretokenizers"):
        if key in part:
            kept = [inner for inner in map(_continuing, part[key]) if inner is not None]
            return part | {key: kept} if kept else None
    changes = {"prepend_scheme": "never", "add_prefix_space": False}
    return part | {key: value for key, value in changes.items() if key in part}


def _broken(text: str, markers: tuple[str, ...], separator: str) -> str:
    """Puts ``separator`` after the first character of every marker in ``text``.

    A separator that stands in no marker destroys one occurrence each time and makes none, so this ends.
    """
    for marker in markers:
        while separator not in marker and marker in text:
            text = text.replace(marker, marker[0] + separator + marker[1:])
    return text
