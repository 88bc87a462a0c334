"""The reference policy: what the KL penalty measures distance to."""

from __future__ import annotations

import copy

from transformers import PreTrainedModel


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model as it is now, that never trains.

    Args:
        model: The policy's causal language model, before its first update.

    Returns:
        An independent model in evaluation mode, whose parameters need no gradient.
    """
    reference = copy.deepcopy(model)
    reference.requires_grad_(False).train(False)
    return reference
