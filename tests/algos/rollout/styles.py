"""Small tokenizers in the styles that people use: how they split, what is special, how they frame."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from algos.policies.embedded import train_tokenizer
from tests.conftest import CORPUS

FAST: Any = PreTrainedTokenizerFast
TEXTS = [*CORPUS, "system user assistant tool model", "### User: ### Assistant: [INST] [/INST] <s> </s>"] * 5

CHATML = (
    "{% for m in messages %}{% if loop.first and m.role != 'system' %}<|im_start|>system\nYou are helpful."
    "<|im_end|>\n{% endif %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'ipython' if m.role == 'tool' else m.role %}"
    "<|start_header_id|>{{ role }}<|end_header_id|>\n\n"
    "{% if m.role == 'tool' %}{{ m.content | tojson }}{% else %}{{ m.content | trim }}{% endif %}<|eot_id|>"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set head = messages[0].content + '\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n"
    "{{ head if loop.first else '' }}{{ m.content | trim }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}"
    "{% set head = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% set rest = messages[1:] %}{% else %}{% set head = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}"
    "{% if m.role == 'user' %}"
    "{{ bos_token + '[INST] ' + (head if loop.first else '') + m.content + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Strips the thoughts of earlier turns: what was sampled would not stay as it was sampled.
FORGETFUL = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
)


def _byte_level(
    special: list[str], template: str | None, eos: str, bos: str | None = None
) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    tokenizer: PreTrainedTokenizerFast = FAST(tokenizer_object=backend, eos_token=eos, bos_token=bos)
    tokenizer.chat_template = template
    return tokenizer


def chatml() -> PreTrainedTokenizerFast:
    """SmolLM, Qwen 2: framed by special tokens, with a system message of its own if there is none."""
    return _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], CHATML, "<|im_end|>")


def llama_3() -> PreTrainedTokenizerFast:
    """Trims contents, writes tool results as JSON, calls their role ipython."""
    special = [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ]
    return _byte_level(special, LLAMA_3, "<|end_of_text|>", "<|begin_of_text|>")


def forgetful() -> PreTrainedTokenizerFast:
    """A template that cannot grow, of a family whose training template can."""
    return _byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], FORGETFUL, "<|im_end|>")


def gpt_2() -> PreTrainedTokenizerFast:
    """No chat template, one special token for everything, and that one in the model's own vocabulary."""
    return _byte_level(["<|endoftext|>"], None, "<|endoftext|>", "<|endoftext|>")


def gemma() -> PreTrainedTokenizerFast:
    """No system role, no tool role, contents trimmed, runs of newlines with ids of their own."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    backend = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.normalizer = normalizers.Replace(" ", "▁")
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    pieces = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=460, special_tokens=[*special, *pieces, "\n\n"], show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    tokenizer: PreTrainedTokenizerFast = FAST(
        tokenizer_object=_unspecial(backend, {*pieces, "\n\n"}),
        eos_token="<eos>",
        bos_token="<bos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )
    tokenizer.chat_template = GEMMA
    return tokenizer


def _unspecial(backend: Tokenizer, ordinary: set[str]) -> Tokenizer:
    """The same tokenizer with these tokens in the vocabulary only; newlines stay added, but not special."""
    import json

    data = json.loads(backend.to_str())
    data["added_tokens"] = [t for t in data["added_tokens"] if t["content"] not in ordinary]
    out = Tokenizer.from_str(json.dumps(data))
    out.add_tokens([AddedToken("\n\n", special=False, normalized=False)])
    return out


def llama_2() -> PreTrainedTokenizerFast:
    """Unigram whose own vocabulary spells control tokens and markers; normalises, begins with a space."""
    words = sorted({word for text in TEXTS for word in text.split()})
    letters = sorted({c for text in TEXTS for c in text} | set("▁<>/s[]"))
    pieces = [("<unk>", 0.0), ("<s>", -1.0), ("</s>", -1.0), ("[INST]", -2.0), ("▁[/INST]", -2.0)]
    pieces += [(piece, -3.0) for piece in dict.fromkeys(f"▁{word}" for word in words)]
    known = {piece for piece, _ in pieces}
    pieces += [(letter, -6.0) for letter in letters if letter not in known]
    backend = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=False))
    backend.normalizer = normalizers.Sequence([normalizers.NFKC()])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    backend.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    tokenizer: PreTrainedTokenizerFast = FAST(
        tokenizer_object=backend, eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )
    tokenizer.chat_template = LLAMA_2
    return tokenizer


def embedded() -> PreTrainedTokenizerFast:
    """The one of the shipped checkpoints."""
    return train_tokenizer(CORPUS * 3, 320)


STYLES: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    maker.__name__: functools.cache(maker)
    for maker in (embedded, chatml, llama_3, gemma, llama_2, gpt_2, forgetful)
}
