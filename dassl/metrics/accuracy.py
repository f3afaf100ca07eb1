"""Top-k accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import torch


def compute_accuracy(
    output: torch.Tensor | Sequence[torch.Tensor],
    target: torch.Tensor,
    topk: Sequence[int] = (1,),
) -> list[torch.Tensor]:
    """Return the top-k accuracies.

    Args:
        output: logits ``(batch, n_cls)``; of a tuple or list the first element counts.
        target: labels ``(batch,)``.
        topk: values of k.

    Returns:
        One tensor ``(1,)`` per k, in percent.
    """
    if not isinstance(output, torch.Tensor):
        output = output[0]
    ranked = output.topk(max(topk), dim=1).indices  # (batch, max k)
    correct = ranked == target.view(-1, 1)
    scale = 100.0 / target.size(0)
    return [correct[:, :k].float().sum().mul(scale).view(1) for k in topk]
