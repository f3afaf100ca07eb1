"""Transformer blocks under OpenAI's parameter names, batch first, on PyTorch's fused attention."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class LayerNorm(nn.LayerNorm):
    """Layer norm that computes in float32 at least and returns the type of its input."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == self.weight.dtype and x.dtype in (torch.float32, torch.float64):
            return super().forward(x)
        y = F.layer_norm(
            x.float(), self.normalized_shape, self.weight.float(), self.bias.float(), self.eps
        )
        return y.to(x.dtype)


class QuickGELU(nn.Module):
    """``x * sigmoid(1.702 x)``, the activation of OpenAI's checkpoints."""

    slope = 1.702

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.slope * x)


class _QuickGELUMLP(torch.autograd.Function):
    """``quick_gelu(x W1' + b1) W2' + b2`` as matrix products around a SiLU.

    ``quick_gelu(h) = silu(s h) / s``, and the products take the factors ``s`` and ``1 / s`` along;
    in the derivative they cancel. The wide hidden layer is touched once and kept once.
    """

    @staticmethod
    def forward(
        ctx, rows: Tensor, first: Tensor, first_bias: Tensor, last: Tensor, last_bias: Tensor
    ) -> Tensor:
        s = QuickGELU.slope
        scaled = torch.addmm(first_bias, rows, first.t(), beta=s, alpha=s)
        if not any(ctx.needs_input_grad):
            F.silu(scaled, inplace=True)
            return torch.addmm(last_bias, scaled, last.t(), alpha=1 / s)
        ctx.save_for_backward(scaled, rows if ctx.needs_input_grad[1] else None, first, last)
        return torch.addmm(last_bias, F.silu(scaled), last.t(), alpha=1 / s)

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
            grad.t() @ F.silu(scaled) / QuickGELU.slope if of_last else None,
            grad.sum(0) if of_last_bias else None,
        )


class MLP(nn.Module):
    """Two linear maps with an activation between them.

    Args:
        width, hidden: units of the outer and the inner layer.
        quick_gelu: whether the activation is OpenAI's approximation of GELU, or GELU itself.
    """

    def __init__(self, width: int, hidden: int, quick_gelu: bool) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, hidden)
        self.gelu = QuickGELU() if quick_gelu else nn.GELU()
        self.c_proj = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., width)`` to the same shape."""
        if not isinstance(self.gelu, QuickGELU):
            return self.c_proj(self.gelu(self.c_fc(x)))
        values = (self.c_fc.weight, self.c_fc.bias, self.c_proj.weight, self.c_proj.bias)
        rows = x.reshape(-1, x.shape[-1])
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            dtype = torch.get_autocast_dtype(x.device.type)
            rows, *values = (value.to(dtype) for value in (rows, *values))
        return _QuickGELUMLP.apply(rows, *values).view(x.shape)


class Attention(nn.Module):
    """Multi-head self-attention; parameters are named as those of ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if heads < 1 or width % heads:
            raise ValueError(f"width {width} is not divisible by {heads} heads")
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.out_proj.bias)

    def project(self, x: Tensor) -> Tensor:
        """Queries, keys and values of ``x``, one beside the other: ``(..., 3 width)``."""
        return F.linear(x, self.in_proj_weight, self.in_proj_bias)

    def project_one_query(self, x: Tensor, row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries for the rows ``row`` only, keys and values for all of ``x``."""
        width = x.shape[-1]
        weight, bias = self.in_proj_weight, self.in_proj_bias
        keys, values = F.linear(x, weight[width:], bias[width:]).chunk(2, dim=-1)
        return F.linear(row, weight[:width], bias[:width]), keys, values

    def split(self, x: Tensor) -> Tensor:
        """``(..., length, d)`` to ``(sequences, heads, length, d / heads)``."""
        # the fused kernels take four dimensions only
        return x.flatten(0, -3).unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def weights(self, q: Tensor, k: Tensor) -> Tensor:
        """What ``attend`` weighs the values with where nothing is masked; for inspection.

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
        """Attention without the out-projection.

        Args:
            q: ``(..., q_len, d)`` queries.
            k, v: ``(..., k_len, d)`` keys and values.
            mask: boolean, true where a query sees a key; broadcast to (sequences, heads, q_len,
                k_len), all leading dimensions of ``q`` being one.
            causal: whether a query sees the keys up to its own position only.
        """
        y = F.scaled_dot_product_attention(
            self.split(q), self.split(k), self.split(v), attn_mask=mask, is_causal=causal
        )
        return y.transpose(1, 2).reshape(q.shape)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block: ``x + attn(ln_1 x)``, then ``x + mlp(ln_2 x)``.

    Args:
        width, heads: of the attention.
        mlp_width: hidden units of the MLP; ``None`` for four times the width.
        quick_gelu: whether the MLP computes OpenAI's approximation of GELU, or GELU itself.
    """

    def __init__(
        self, width: int, heads: int, mlp_width: int | None = None, quick_gelu: bool = True
    ) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.ln_1 = LayerNorm(width)
        self.mlp = MLP(width, mlp_width or 4 * width, quick_gelu)
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor, causal: bool = False) -> Tensor:
        """``(N, length, d)`` to the same shape."""
        q, k, v = self.attn.project(self.ln_1(x)).chunk(3, dim=-1)
        return self.finish(x, self.attn.attend(q, k, v, causal=causal))

    def forward_first(self, x: Tensor) -> Tensor:
        """Result for the first position only, which sees all others: ``(N, d)``."""
        y = self.ln_1(x)
        q, k, v = self.attn.project_one_query(y, y[:, :1])
        return self.finish(x[:, :1], self.attn.attend(q, k, v)).squeeze(1)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """What follows attention, for the rows of ``x``."""
        x = x + self.attn.out_proj(attended)
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of blocks; ``causal`` makes every position see only those up to itself."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        causal: bool = False,
        mlp_width: int | None = None,
        quick_gelu: bool = True,
    ) -> None:
        super().__init__()
        self.width, self.layers, self.causal = width, layers, causal
        self.resblocks = nn.Sequential(
            *(ResidualAttentionBlock(width, heads, mlp_width, quick_gelu) for _ in range(layers))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Run a whole **length-first** sequence, ``(length, N, d)``, as upstream's callers do."""
        x = x.transpose(0, 1)
        for block in self.resblocks:
            x = block(x, causal=self.causal)
        return x.transpose(0, 1)
