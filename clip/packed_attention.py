"""How packed rows attend: as groups of suffixes behind a mask, or as causal sequences.

The packed row ``[SOS a photo of a | cat . EOT | golden retriever . EOT | dog . EOT]`` with a prefix
of ``P`` tokens (see :mod:`clip.packing`) is brought into sequences of one length, which a fused
kernel takes, and what they give is put back to its places.

:class:`AttentionGroups` cut it into sequences of queries, ``width`` tokens each, the prefix being
one member among the suffixes. Every sequence gets the keys of the prefix in front, and a mask lets
a query see the prefix and its own suffix up to itself (``#``)::

                              keys   SOS a photo of a | cat . EOT golden retriever . EOT
        queries   cat                 #  #   #   #  # |  #
                  .                   #  #   #   #  # |  #  #
                  EOT                 #  #   #   #  # |  #  #  #
                  golden              #  #   #   #  # |           #
                  retriever           #  #   #   #  # |           #       #
                  .                   #  #   #   #  # |           #       #     #
                  EOT                 #  #   #   #  # |           #       #     #  #

:class:`CausalSequences` give every class a sequence of its own, the prefix repeated and the last
token as a pad at the end. No mask is needed but the causal one, since nothing looks ahead::

        SOS a photo of a cat    .         EOT (EOT)
        SOS a photo of a golden retriever .    EOT
        SOS a photo of a dog    .         EOT (EOT)
"""

from __future__ import annotations

import torch
from torch import Tensor

from .layers import Attention

#: tokens of an attention sequence; wide enough for several class names, and few pads
GROUP_WIDTH = 32


#: kinds of devices that attend in ``AttentionGroups``; others do in ``CausalSequences``, unless
#: those have more than ``MOST_PLACES`` places per packed row, as with one very long class name
GROUPS_ON, MOST_PLACES = ("cpu",), 8


#: sequences that attend in one call; CUDA's kernels cannot be started for more
MOST_SEQUENCES = 65535


class AttentionGroups:
    """Packed rows as a fused attention kernel wants them: sequences of one width.

    Padding every suffix to the longest one would multiply the work. Here a sequence is a group of
    suffixes, each of which sees the common prefix and itself; the prefix is one more member.

    Args:
        lengths: tokens per class behind the prefix.
        n_prefix: tokens of the common prefix ``P``.
        device: where the index tensors live.
    """

    def __init__(self, lengths: tuple[int, ...], n_prefix: int, device: torch.device) -> None:
        members = (n_prefix, *lengths)
        width, starts, end = max(GROUP_WIDTH, 2 * max(lengths), n_prefix), [], 0
        for length in members:
            if end % width + length > width:
                end += width - end % width
            starts.append(end)
            end += length
        self.n_groups = -(-end // width)

        size = torch.tensor(members)
        member = torch.arange(len(members)).repeat_interleave(size)
        column = torch.arange(len(member)) - (size.cumsum(0) - size).repeat_interleave(size)
        place = torch.tensor(starts).repeat_interleave(size) + column

        def grouped(values: Tensor, pad: int) -> Tensor:
            padded = torch.full((self.n_groups * width,), pad)
            padded[place] = values
            return padded.view(self.n_groups, width)

        rows = grouped(torch.arange(len(member)), pad=0)
        owner = grouped(member, pad=-1)
        position = grouped(torch.where(member > 0, n_prefix, 0) + column, pad=0)  # (G, width)
        prefix_rows = torch.arange(n_prefix)
        sees_own = (owner[:, :, None] == owner[:, None, :]) & (owner[:, None, :] > 0)
        sees_own &= position[:, None, :] <= position[:, :, None]
        # (G, width, P + width)
        seen = torch.cat([prefix_rows <= position[:, :, None], sees_own], dim=2)
        # the result of a pad is thrown away, but has to be a number
        seen |= (owner < 0)[:, :, None]
        self.n_prefix = n_prefix
        #: (G * width,) packed row of every query
        self.queries = rows.flatten().to(device)
        #: (G * width,) row of every key, counted behind the prefix; in places of the prefix and of
        #: pads any row does, since the mask hides it
        self.keys = (rows.flatten() - n_prefix).clamp(min=0).to(device)
        #: (G, 1, width, P + width) whether a query sees a key
        self.mask = seen[:, None].to(device)
        #: (P + total,) place of every packed row among the queries
        self.place = place.to(device)

    def attend(self, attention: Attention, qkv: Tensor) -> Tensor:
        """Attention over packed rows without the out-projection.

        Args:
            attention: of a block.
            qkv: ``(B, P + total, 3 d)``, what it projects the rows to.

        Returns:
            ``(B, P + total, d)``.
        """
        width = qkv.shape[-1] // 3
        q, kv = qkv.split((width, 2 * width), dim=-1)
        # (B, G, width, d)
        q = q.index_select(1, self.queries).unflatten(1, (self.n_groups, -1))
        # (B, G, P + width, d)
        k, v = behind_prefix(kv, self.n_prefix, self.keys, self.n_groups).chunk(2, dim=-1)
        mask = self.mask if len(q) == 1 else self.mask.repeat(len(q), 1, 1, 1)
        attended = attention.attend(q, k, v, mask=mask)  # (B, G, width, d)
        return attended.flatten(1, 2).index_select(1, self.place)


def behind_prefix(x: Tensor, n_prefix: int, rows: Tensor, n_sequences: int) -> Tensor:
    """Sequences that start with the same rows.

    Args:
        x: ``(B, P + total, d)`` packed rows.
        n_prefix: how many of them, ``P``, start every sequence.
        rows: ``(n_sequences * length,)`` what follows in one sequence after the other, counted
            behind the prefix.
        n_sequences: how many there are.

    Returns:
        ``(B, n_sequences, P + length, d)``. The prefix is expanded, not indexed: what comes back to
        it is then summed up at once, which rounds once, where indexed additions in half precision
        round each time.
    """
    prefix, rest = x.split((n_prefix, x.shape[1] - n_prefix), dim=1)
    prefix = prefix[:, None].expand(-1, n_sequences, -1, -1)
    return torch.cat([prefix, rest.index_select(1, rows).unflatten(1, (n_sequences, -1))], dim=2)


def attends_in_sequences(device: torch.device, lengths: tuple[int, ...], n_prefix: int) -> bool:
    """Whether packed rows attend in ``CausalSequences`` there, or else in ``AttentionGroups``."""
    places = len(lengths) * (n_prefix + max(lengths))
    return device.type not in GROUPS_ON and places <= MOST_PLACES * (n_prefix + sum(lengths))


class CausalSequences:
    """Packed rows as sequences that need no mask: prefix and suffix of one class, pads at the end.

    The pads cost more than those of ``AttentionGroups``, and the prefix attends to itself once per
    class. In return attention is causal and nothing else, as the flash kernels of a GPU want it.

    Args:
        lengths, n_prefix, device: as for ``AttentionGroups``.
    """

    def __init__(self, lengths: tuple[int, ...], n_prefix: int, device: torch.device) -> None:
        size, longest = torch.tensor(lengths), max(lengths)
        starts, column = size.cumsum(0) - size, torch.arange(longest)
        # a pad repeats the last token, which no query sees there
        rows = starts[:, None] + column.minimum(size[:, None] - 1)  # (C, longest)
        begins = torch.arange(len(lengths)) * (n_prefix + longest) + n_prefix
        places = (begins[:, None] + column)[column < size[:, None]]
        self.n_classes, self.n_prefix = len(lengths), n_prefix
        #: (C * longest,) row of every token, counted behind the prefix
        self.rows = rows.flatten().to(device)
        #: (P + total,) place of every packed row in the sequences; the prefix is that of class 0
        self.place = torch.cat([torch.arange(n_prefix), places]).to(device)

    def attend(self, attention: Attention, qkv: Tensor) -> Tensor:
        """As :meth:`AttentionGroups.attend`."""
        # (B * C, P + longest, 3 d)
        x = behind_prefix(qkv, self.n_prefix, self.rows, self.n_classes).flatten(0, 1)
        parts = []
        for part in x.split(MOST_SEQUENCES):
            q, k, v = part.chunk(3, dim=-1)
            parts.append(attention.attend(q, k, v, causal=True))
        attended = parts[0] if len(parts) == 1 else torch.cat(parts)  # (B * C, P + longest, d)
        # (B, P + total, d)
        return attended.unflatten(0, (-1, self.n_classes)).flatten(1, 2).index_select(1, self.place)
