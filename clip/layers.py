"""Transformer blocks of CLIP, with OpenAI's interface and faster methods for our own encoders.

When called, a block, its parts and a stack of blocks compute what OpenAI's do: length first, with
the text encoder's mask. Our encoders use the other methods: batch first, on PyTorch's fused
attention, and with an MLP that goes over its hidden layer once. These bypass the modules' calls;
``clip.patched`` says when they must not, because somebody hooked, wrapped or replaced a module.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .changes import UNCHANGED, BlockChange, LowRank, Norm


def at_least_float32(x: Tensor) -> Tensor:
    """Convert ``x`` to float32 if its type is narrower."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise over the last axis, in float32 at least; the result has the type of ``x``."""
    wide = at_least_float32(x)
    weight, bias = weight.to(wide.dtype), bias.to(wide.dtype)
    return F.layer_norm(wide, weight.shape, weight, bias, eps).to(x.dtype)


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes in float32 at least and returns the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float64):
            return super().forward(x)
        return layer_norm(x, self.weight, self.bias, self.eps)


#: slope of QuickGELU's sigmoid
SLOPE = 1.702


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, the activation of OpenAI's checkpoints."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(SLOPE * x)


class _QuickGELUMLP(torch.autograd.Function):
    """``quick_gelu(x W1' + b1) W2' + b2`` as matrix products around a SiLU.

    ``quick_gelu(h) = silu(s h) / s``: the matrix products apply the factors ``s`` and ``1 / s``,
    which cancel in the derivative. The wide hidden layer is read once and stored once.
    """

    @staticmethod
    def forward(
        ctx, rows: Tensor, first: Tensor, first_bias: Tensor, last: Tensor, last_bias: Tensor
    ) -> Tensor:
        scaled = torch.addmm(first_bias, rows, first.t(), beta=SLOPE, alpha=SLOPE)
        if not any(ctx.needs_input_grad):
            F.silu(scaled, inplace=True)
            return torch.addmm(last_bias, scaled, last.t(), alpha=1 / SLOPE)
        ctx.save_for_backward(scaled, rows if ctx.needs_input_grad[1] else None, first, last)
        return torch.addmm(last_bias, F.silu(scaled), last.t(), alpha=1 / SLOPE)

    @staticmethod
    @once_differentiable  # as fused attention is
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        scaled, rows, first, last = ctx.saved_tensors
        of_rows, of_first, of_first_bias, of_last, of_last_bias = ctx.needs_input_grad
        hidden = torch.ops.aten.silu_backward(grad @ last, scaled)
        return (
            hidden @ first if of_rows else None,
            hidden.t() @ rows if of_first else None,
            hidden.sum(0) if of_first_bias else None,
            grad.t() @ F.silu(scaled) / SLOPE if of_last else None,
            grad.sum(0) if of_last_bias else None,
        )


def fused_mlp(mlp: Any, x: Tensor) -> Tensor:
    """Compute the MLP of a block for ``x``, ``(..., width)``, equal to a call to rounding."""
    if not isinstance(mlp.gelu, QuickGELU):
        return mlp(x)
    values = [mlp.c_fc.weight, mlp.c_fc.bias, mlp.c_proj.weight, mlp.c_proj.bias]
    rows = x.reshape(-1, x.shape[-1])
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        rows, *values = (value.to(dtype) for value in (rows, *values))
    return _QuickGELUMLP.apply(rows, *values).view(x.shape)


class Attention(nn.MultiheadAttention):
    """Multi-head self-attention: PyTorch's when called, with its parts as methods.

    Raises:
        ValueError: the width is not divisible by the number of heads.
    """

    def __init__(self, width: int, heads: int) -> None:
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        super().__init__(width, heads)

    def project(self, x: Tensor, change: BlockChange = UNCHANGED) -> Tensor:
        """Project ``x``, ``(..., d)``, to queries, keys and values in one tensor ``(..., 3 d)``."""
        terms = (change.query, change.key, change.value)
        return _with_terms(F.linear(x, self.in_proj_weight, self.in_proj_bias), x, terms)

    def project_queries(
        self, x: Tensor, rows: Tensor, change: BlockChange = UNCHANGED
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Project ``rows``, ``(N, n, d)``, to queries, and ``x``, ``(N, length, d)``, to the rest.

        Returns:
            queries ``(N, n, d)``, keys and values ``(N, length, d)``.
        """
        width = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        queries = F.linear(rows, weight[:width], bias[:width])  # (N, n, d)
        keys_values = F.linear(x, weight[width:], bias[width:])  # (N, length, 2 d)
        keys_values = _with_terms(keys_values, x, (change.key, change.value))
        keys, values = keys_values.chunk(2, dim=-1)
        return _with_terms(queries, rows, (change.query,)), keys, values

    def split(self, x: Tensor) -> Tensor:
        """Split ``(..., length, d)`` into heads: ``(sequences, heads, length, d / heads)``."""
        # the fused kernels take four dimensions only
        return x.flatten(0, -3).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """Compute the attention weights without a mask, for inspection.

        Args:
            q: ``(..., q_len, d)`` queries.
            k: ``(..., k_len, d)`` keys.

        Returns:
            ``(sequences, heads, q_len, k_len)`` float32, every row with sum 1.
        """
        q, k = self.split(q).float(), self.split(k).float()
        with torch.autocast(q.device.type, enabled=False):
            return (q @ k.transpose(-2, -1) / q.shape[-1] ** 0.5).softmax(dim=-1)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, causal: bool = False
    ) -> Tensor:
        """Compute attention without the output projection.

        Args:
            q: ``(..., q_len, d)`` queries.
            k, v: ``(..., k_len, d)`` keys and values.
            mask: boolean, true where a query sees a key; broadcast to ``(sequences, heads, q_len,
                k_len)``, where ``sequences`` is the product of the leading dimensions of ``q``.
            causal: whether a query sees the keys up to its own position only.

        Returns:
            ``(..., q_len, d)``.
        """
        y = F.scaled_dot_product_attention(  # (sequences, heads, q_len, d / heads)
            self.split(q), self.split(k), self.split(v), attn_mask=mask, is_causal=causal
        )
        return y.transpose(1, 2).reshape(q.shape)


def _with_terms(y: Tensor, x: Tensor, terms: Sequence[LowRank | None]) -> Tensor:
    """Split ``y`` into one part per term, add to each its term of ``x``, and join them again."""
    if all(term is None for term in terms):
        return y
    parts = zip(y.chunk(len(terms), dim=-1), terms, strict=True)
    return torch.cat(
        # under autocast, ``x`` may be wider than what a linear map gives for it
        [part if term is None else part + term(x).to(part.dtype) for part, term in parts],
        dim=-1,
    )


def _normed(norm: LayerNorm, x: Tensor, other: Norm | None) -> Tensor:
    """Apply a layer norm to ``x``, with the weight and bias of ``other`` if it is given."""
    return norm(x) if other is None else layer_norm(x, *other, norm.eps)


def causal_mask(length: int) -> Tensor:
    """Make the mask that, added to attention's scores, hides later positions.

    Returns:
        ``(length, length)`` float32: minus infinity where a key comes later than its query, else 0.
    """
    # on the CPU even while a model is built on the meta device; a block moves it to its input's
    return torch.full((length, length), float("-inf"), device="cpu").triu(1)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block: ``x + attn(ln_1 x)``, then ``x + mlp(ln_2 x)``.

    Args:
        width, heads: of the attention.
        attn_mask: ``(length, length)``, added to the scores of attention by :meth:`forward`.
        mlp_width: hidden units of the MLP; ``None`` for four times the width.
        quick_gelu: whether the MLP uses QuickGELU, OpenAI's approximation of GELU, or GELU itself.
    """

    mlp: Any  # nn.Sequential of c_fc, gelu and c_proj
    _checked_mask: tuple[Tensor, int, bool]  # set by clip.patched

    def __init__(
        self,
        width: int,
        heads: int,
        attn_mask: Tensor | None = None,
        mlp_width: int | None = None,
        quick_gelu: bool = True,
    ) -> None:
        super().__init__()
        hidden = mlp_width or 4 * width
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        parts = [
            ("c_fc", nn.Linear(width, hidden)),
            ("gelu", QuickGELU() if quick_gelu else nn.GELU()),
            ("c_proj", nn.Linear(hidden, width)),
        ]
        self.mlp = nn.Sequential(OrderedDict(parts))
        self.ln_2 = LayerNorm(width)
        self.attn_mask = attn_mask

    def attention(self, x: Tensor) -> Tensor:
        """Compute self-attention of ``x``, ``(length, N, d)``, under the block's mask."""
        mask = self.attn_mask
        if mask is not None and (mask.dtype, mask.device) != (x.dtype, x.device):
            with torch.inference_mode(False):  # the mask is kept, and training may use it later
                self.attn_mask = mask = mask.to(dtype=x.dtype, device=x.device)
        return self.attn(x, x, x, need_weights=False, attn_mask=mask)[0]

    def forward(self, x: Tensor) -> Tensor:
        """Run the block, **length first** as OpenAI's: ``(length, N, d)`` to the same shape."""
        x = x + self.attention(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))

    def forward_batch_first(self, x: Tensor, change: BlockChange = UNCHANGED) -> Tensor:
        """Run the block without its mask on ``(N, length, d)``, bypassing the modules' calls."""
        normed = self.attention_input(x, change)
        q, k, v = self.attn.project(normed, change).chunk(3, dim=-1)  # (N, length, d) each
        return self.finish(x, normed, self.attn.attend(q, k, v), change)

    def forward_first(self, x: Tensor, n: int = 1, change: BlockChange = UNCHANGED) -> Tensor:
        """Compute ``forward_batch_first`` for the first ``n`` positions only: ``(N, n, d)``."""
        normed = self.attention_input(x, change)
        first = normed[:, :n]  # (N, n, d)
        q, k, v = self.attn.project_queries(normed, first, change)
        return self.finish(x[:, :n], first, self.attn.attend(q, k, v), change)

    def attention_input(self, x: Tensor, change: BlockChange = UNCHANGED) -> Tensor:
        """Compute ``ln_1 x``, the input of attention."""
        return _normed(self.ln_1, x, change.ln_1)

    def finish(
        self, x: Tensor, normed: Tensor, attended: Tensor, change: BlockChange = UNCHANGED
    ) -> Tensor:
        """Compute the rest of the block after attention, for any selection of positions.

        Args:
            x: ``(..., d)`` input of the block.
            normed: ``ln_1 x`` at these positions, of the same shape.
            attended: result of ``Attention.attend`` there, of the same shape.
            change: of the block.

        Returns:
            ``(..., d)`` output of the block.
        """
        x = x + _with_terms(self.attn.out_proj(attended), attended, (change.out,))
        y = x + fused_mlp(self.mlp, _normed(self.ln_2, x, change.ln_2))
        if change.branch is None:
            return y
        return y + change.branch(at_least_float32(normed)).to(y.dtype)


class Transformer(nn.Module):
    """A stack of blocks; arguments as those of a block."""

    resblocks: Any  # nn.Sequential of ResidualAttentionBlock

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        attn_mask: Tensor | None = None,
        mlp_width: int | None = None,
        quick_gelu: bool = True,
    ) -> None:
        super().__init__()
        self.width, self.layers = width, layers
        self.resblocks = nn.Sequential(
            *(
                ResidualAttentionBlock(
                    width, heads, attn_mask=attn_mask, mlp_width=mlp_width, quick_gelu=quick_gelu
                )
                for _ in range(layers)
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run all blocks, **length first** as OpenAI's: ``(length, N, d)`` to the same shape."""
        return self.resblocks(x)
