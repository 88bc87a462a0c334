"""The embedded policies: small Llama models with a tokenizer of their own, made from seeds and saved as
ordinary folders.

They are multi-query (one key-value head), because on a CPU decoding is bound by reading the cache, and tie
their embeddings. The vocabulary is small, so that nearly all parameters sit in the layers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from algos.policies.load import Policy, quietly
from convgym.errors import ConfigError, UnknownNameError

if TYPE_CHECKING:
    from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

ROLES = ("system", "user", "tool", "assistant")
END, PAD = "<|end|>", "<|pad|>"
SPECIAL_TOKENS = (PAD, END, *(f"<|{role}|>" for role in ROLES))

# One control token opens a message. Only the agent's own messages are closed, because only their end is a
# decision.
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content }}"
    "{% if m.role == 'assistant' %}{{ '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

# Where the text is cut before merges are learned: no token crosses a cut. The scaffolding of a tool call
# comes first, so that it can become one token; digits stay single, so that numbers are copied digit by digit;
# names keep their underscores; a run of punctuation may contain single spaces, as in JSON.
_CUTS = "|".join(
    (
        r'<tool_call>\{"name": "',
        r'", "arguments": \{"?',
        r'"?\}\}</tool_call>',
        r"</?[a-z_]+>",
        r"\p{N}",
        r" ?\p{L}+(?:_\p{L}+)*",
        r" ?[\p{P}\p{S}]+(?: [\p{P}\p{S}]+)*",
        r"\s+(?!\S)",
        r"\s+",
    )
)


@dataclass(frozen=True)
class Shape:
    """Size of an embedded model.

    Attributes:
        layers: Transformer layers; copying needs at least two.
        hidden: Width D, divisible by ``heads``.
        heads: Query heads, each ``hidden / heads`` wide.
        kv_heads: Key-value heads.
        mlp: Inner width of the feed-forward part.
        context: Most tokens in a conversation.
        vocab: Size of the vocabulary that it is meant for.
    """

    layers: int
    hidden: int
    heads: int
    mlp: int
    vocab: int
    kv_heads: int = 1
    context: int = 1024

    def __post_init__(self) -> None:
        """Refuses sizes that do not divide."""
        if self.hidden % self.heads or (self.hidden // self.heads) % 2 or self.heads % self.kv_heads:
            raise ConfigError(
                f"{self}: expected hidden divisible by heads with an even quotient, and heads by kv_heads"
            )


SHAPES: dict[str, Shape] = {
    "nano": Shape(layers=3, hidden=96, heads=4, mlp=256, vocab=512),  # 0.34M parameters
    "micro": Shape(layers=4, hidden=144, heads=6, mlp=384, vocab=1024),  # 1.0M
    "mini": Shape(layers=6, hidden=256, heads=8, mlp=704, vocab=2048),  # 4.7M
}
"""Sizes of the embedded models, by name."""


def train_tokenizer(texts: Iterable[str], vocab_size: int = 512) -> PreTrainedTokenizerFast:
    """Learns a byte-level BPE with single digits and our chat template.

    Args:
        texts: Contents of messages (not rendered conversations).
        vocab_size: Most ids, at least 256 bytes + 6 control tokens; fewer come out if the texts are poor.

    Returns:
        A tokenizer whose control tokens come first (padding is id 0, end of turn 1). Training is
        deterministic.

    Raises:
        ConfigError: if the vocabulary cannot hold all bytes.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ConfigError(
            f"vocab_size = {vocab_size} is too small: 256 bytes and control tokens need {least}"
        )
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_CUTS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    make: Any = PreTrainedTokenizerFast
    tokenizer: PreTrainedTokenizerFast = make(
        tokenizer_object=backend,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(SPECIAL_TOKENS[2:]),
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def new_model(shape: Shape | str, tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """A freshly initialised model; equal seeds give equal weights, and torch's global generator is left
    alone.

    Args:
        shape: A shape, or the name of one in ``SHAPES``.
        tokenizer: Decides the vocabulary, the end of turn and the padding.
        seed: Seed of the initialisation.
    """
    import torch
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    if isinstance(shape, str):
        if shape not in SHAPES:
            raise UnknownNameError.of("shape", shape, SHAPES)
        shape = SHAPES[shape]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden,
        intermediate_size=shape.mlp,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        # Scaled like the published small models: 0.02 is for widths of some thousands.
        initializer_range=shape.hidden**-0.5 / 2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlamaForCausalLM(config)
    make: Any = GenerationConfig
    model.generation_config = make(
        do_sample=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    fresh: LlamaForCausalLM = model.eval()
    return fresh


def save_policy(policy: Policy, folder: str | Path) -> Path:
    """Writes an ordinary Hugging Face folder: config, safetensors, tokenizer with chat template, generation
    config.

    Returns:
        The folder, which ``load_policy`` and ``AutoModelForCausalLM.from_pretrained`` both take.
    """
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    with quietly():
        policy.model.save_pretrained(path)
        policy.tokenizer.save_pretrained(path)
    return path
