"""``Utterance``: a Gymnasium space of any Unicode string."""

from __future__ import annotations

from typing import Any

import numpy as np
from gymnasium.error import CustomSpaceError
from gymnasium.spaces import Text
from gymnasium.vector.utils import create_shared_memory

__all__ = ["Utterance"]

_COMMON = (
    "hello hi yes no please thanks sorry sure order number the a my your is it what when which can could "
    "you i we refund cancel book table name day time city help done wait 1 2 3 4821 ok bye"
)
_LEXICON = _COMMON.split()


class Utterance(Text):
    """All Unicode strings up to a length, the empty one included.

    Gymnasium's ``Text`` tests every character against a set whose default lacks the space, and a set of all
    of Unicode takes seconds to build. This space tests type and length, and samples a few common words.

    Args:
        max_length: Longest member, in code points. The default admits whatever fits into memory.
        seed: Seed of :meth:`sample`.
    """

    def __init__(self, max_length: int = 2**31 - 1, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(max_length, min_length=0, charset="abcdefghijklmnopqrstuvwxyz ", seed=seed)

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Draws 0 to 8 words from a small lexicon. Masks are not supported and must be None."""
        if mask is not None or probability is not None:
            raise ValueError(
                "Utterance.sample takes no mask: expected None, because the space has no fixed alphabet."
            )
        count = int(self.np_random.integers(0, 9))
        words = self.np_random.integers(0, len(_LEXICON), size=count)
        return " ".join(_LEXICON[i] for i in words)[: self.max_length]

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a string that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"Utterance({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Utterance) and self.max_length == other.max_length

    def __hash__(self) -> int:
        return hash((Utterance, self.max_length))


@create_shared_memory.register(Utterance)
def _refuse_shared_memory(space: Utterance, n: int = 1, ctx: Any = None) -> Any:
    raise CustomSpaceError(
        "Utterances have no fixed size, so they cannot live in shared memory: pass shared_memory=False to "
        "AsyncVectorEnv, or use gym.make_vec without vectorization_mode for convgym's own batched env."
    )
