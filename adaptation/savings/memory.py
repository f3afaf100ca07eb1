"""The memory bound MODEL.MEMORY_GB: estimates of the memory of encoding, and what fits into it.

An estimate counts the tensors of a transformer in rows as wide as the tower. It is meant to be
high: it ignores that automatic mixed precision keeps half of the rows in half the size.
"""

from __future__ import annotations

from torch import Tensor

from clip.changes import Changes, LayerChanges
from clip.model import CLIP, VisionTransformer
from clip.packed_attention import attends_in_sequences
from clip.packing import PackedText, PrefixPlan
from dassl.utils import SettingError

#: rows per token that a block keeps for the backward pass: the inputs of its two halves, queries,
#: keys, values and result of attention with the pads of ``AttentionGroups``, the hidden layer
KEPT_ROWS = 12

#: rows per token that a block keeps in addition if it changes itself: ``ln_1 x`` and the result of
#: attention for low-rank terms, the input of a branch and its hidden layers up to this width in all
KEPT_INSIDE = 4

#: rows per token that the computation of one block needs at a time, forward or backward
WORKING_ROWS = 24

#: rows of both kinds, in addition, per place in ``CausalSequences``: queries, keys, values and
#: result of attention, and their gradients
KEPT_PLACES, WORKING_PLACES = 4, 12

#: maps of the size of the first stage's result: those that a ResNet holds at a time, and those that
#: each of its blocks keeps for the backward pass
WORKING_MAPS, KEPT_MAPS = 8, 8

#: what is really held, as a share of an estimate: of a transformer with what it keeps for the
#: backward pass and without, and of a ResNet (docs/reliability.md compares with measured memory)
HELD_WITH_GRADIENTS, HELD, HELD_BY_RESNET = 0.8, 0.6, 0.5

#: the same in half precision, as a share of that in float32
HELD_IN_HALF = 0.6

#: rows per token that a block of the plain encoders keeps in addition: a second hidden layer
KEPT_IF_PLAIN = 4

#: copies of the learner's tensors that a step adds: gradients, and a state of the optimiser
LEARNER_COPIES = 2


def text_bytes(
    clip: CLIP,
    text: PackedText,
    changes: LayerChanges | None = None,
    for_backward: bool = False,
    plain: bool = False,
) -> float:
    """Estimate the bytes that ``clip.encode_text`` takes per text.

    Args:
        clip, text, changes: as for ``clip.encode_text``.
        for_backward: whether to count what is kept for the backward pass.
        plain: whether the plain encoders compute, every text at full length.
    """
    blocks, changes = clip.transformer.resblocks, Changes.of(changes)
    if plain:
        kept = _kept_rows(len(blocks), changes, plain)
        places = clip.context_length * (WORKING_ROWS + for_backward * kept)
        return places * clip.transformer.width * _item_size(clip)
    plan = PrefixPlan(text, changes)
    n_prefix, n_added = plan.n_common, 0
    for prompt in changes.prompts():
        if plan.in_prefix(prompt, n_prefix):
            n_prefix += prompt.growth
        else:
            n_added += prompt.growth
    n_tokens = sum(plan.suffix_lengths) / len(text) + n_added
    rows = n_tokens * (WORKING_ROWS + for_backward * _kept_rows(len(blocks), changes))
    lengths = tuple(length + n_added for length in plan.suffix_lengths)
    if attends_in_sequences(text.device, lengths, n_prefix):
        n_places = n_prefix + max(lengths)
        rows += n_places * (WORKING_PLACES + for_backward * KEPT_PLACES * len(blocks))
    return rows * clip.transformer.width * _item_size(clip)


def image_bytes(
    clip: CLIP,
    changes: LayerChanges | None = None,
    for_backward: bool = False,
    plain: bool = False,
) -> float:
    """Estimate the bytes that ``clip.encode_image`` takes per image.

    Args:
        clip, changes: as for ``clip.encode_image``.
        for_backward: whether to count what is kept for the backward pass.
        plain: whether the plain encoders compute.
    """
    tower = clip.visual
    if not isinstance(tower, VisionTransformer):
        # the first stage's maps; those of a block of each later stage are half as large in all
        maps = 4 * tower.conv3.out_channels * (tower.input_resolution // 4) ** 2
        stages = (tower.layer1, tower.layer2, tower.layer3, tower.layer4)
        blocks = sum(len(stage) / 2**i for i, stage in enumerate(stages))
        return (WORKING_MAPS + for_backward * KEPT_MAPS * blocks) * maps * _item_size(clip)
    n_tokens, n_blocks = len(tower.positional_embedding), len(tower.transformer.resblocks)
    changes = Changes.of(changes)
    n_tokens += sum(prompt.growth for prompt in changes.prompts())
    rows = n_tokens * (WORKING_ROWS + for_backward * _kept_rows(n_blocks, changes, plain))
    return rows * tower.transformer.width * _item_size(clip)


def _kept_rows(n_blocks: int, changes: Changes, plain: bool = False) -> int:
    # blocks in front of the first change have no gradients
    n_trained = n_blocks - min(changes.blocks, default=0)
    return (KEPT_ROWS + plain * KEPT_IF_PLAIN) * n_trained + KEPT_INSIDE * changes.inside


def _item_size(clip: CLIP) -> int:
    table: Tensor = clip.positional_embedding  # never stored in half precision
    return table.element_size()


class MemoryBound:
    """Bound on the memory of a step or a batch, not counting the weights; false without a bound.

    Args:
        gb: bound in 10^9 bytes; 0 for no bound.
    """

    def __init__(self, gb: float) -> None:
        self.bytes = gb * 1e9

    def __bool__(self) -> bool:
        return self.bytes > 0

    def how_many_fit(
        self, bytes_each: float, what: str, share: float = 1.0, in_use: float = 0.0
    ) -> int:
        """Return how many items fit into the memory.

        Args:
            bytes_each: size of one item.
            what: name of an item, for the error.
            share: share of the bound that they may use, 0 to 1.
            in_use: bytes of that share that something else uses.

        Raises:
            SettingError: not even one fits.
        """
        free = share * self.bytes - in_use
        if free < bytes_each:
            raise SettingError(
                f"MODEL.MEMORY_GB is {self.bytes / 1e9:g}, too little for {what}: use "
                f"{1.01 * (bytes_each + in_use) / share / 1e9:.3g} or more, or 0 for no bound"
            )
        return int(free // bytes_each)
