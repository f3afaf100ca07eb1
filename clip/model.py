"""CLIP with optional prompts and other changes in its transformer blocks.

Architecture, parameter names and results are those of OpenAI's CLIP (Radford et al., 2021,
arXiv 2103.00020), and its modules can be called, hooked, wrapped and replaced like OpenAI's. Both
encoders take :class:`~clip.changes.Changes` of their blocks; without them they are plain CLIP. The
text encoder computes packed class prompts (see :mod:`clip.packing`), the image encoder finishes the
class token alone in its last block. The results equal those of the plain full-length computation,
to rounding; where somebody changed a module, that computation (:mod:`clip.plain`) runs instead.
"""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
from importlib import import_module

import numpy as np
import torch
from torch import Tensor, nn

from . import plain as plain_encoders
from .changes import Changes, LayerChanges, Prompt, splice
from .layers import (
    LayerNorm,
    QuickGELU,
    ResidualAttentionBlock,
    Transformer,
    causal_mask,
)
from .packing import PackedText, PrefixPlan, SuffixLayout, check_context, splice_packed
from .patched import IMAGE_PARTS, TEXT_PARTS, changed_part, hooked
from .resnet import AttentionPool2d, Bottleneck, ModifiedResNet

#: the module of this name in OpenAI's package has the same
__all__ = [  # noqa: F822  two of them come from __getattr__
    "CLIP",
    "AttentionPool2d",
    "Bottleneck",
    "LayerNorm",
    "ModifiedResNet",
    "QuickGELU",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "build_model",
    "convert_weights",
]


def __getattr__(name: str) -> object:
    """Import on first use the names of :mod:`clip.weights` that OpenAI's package has here."""
    if name in ("build_model", "convert_weights"):
        return getattr(import_module(".weights", __package__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


#: Entries of a state dict for what its shapes do not say: the activation (bool), the heads of both
#: towers (int), mean and standard deviation (3,) of the images' normalisation. OpenAI's files have
#: none of them; they mean QuickGELU, 64 units per head and CLIP's usual numbers.
EXTRA_ENTRIES = ("quick_gelu", "vision_heads", "transformer_heads", "image_mean", "image_std")

#: Bytes of the largest tensor of an image batch on the CPU. Tensors above 32 MB are slower: glibc
#: gives their memory back to the system after each use, and every new page has to be cleared.
LARGEST_ON_CPU = 24e6


class VisionTransformer(nn.Module):
    """Image tower: patches and a class token through a transformer, class token projected.

    Args:
        input_resolution: side of the square input in pixels.
        patch_size: side of a patch in pixels.
        width, layers, heads: of the transformer.
        output_dim: width of the joint embedding.
        mlp_width, quick_gelu: see ``ResidualAttentionBlock``.
    """

    def __init__(
        self,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        mlp_width: int | None = None,
        quick_gelu: bool = True,
    ) -> None:
        super().__init__()
        self.input_resolution, self.output_dim = input_resolution, output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        scale = width**-0.5
        n_tokens = (input_resolution // patch_size) ** 2 + 1
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(n_tokens, width))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(
            width=width, layers=layers, heads=heads, mlp_width=mlp_width, quick_gelu=quick_gelu
        )
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))
        self.parts_warned_of: list[str] = []

    def forward(
        self,
        x: Tensor,
        changes: LayerChanges | None = None,
        n_rows: int | None = None,
        plain: bool = False,
    ) -> Tensor:
        """Encode images.

        Without gradients on the CPU, a large batch goes through the blocks in nearly equal parts.

        Args:
            x: ``(N, 3, input_resolution, input_resolution)``, normalised.
            changes: changes of the blocks. Prompt tokens are ``(n, width)``, or ``(N, n, width)``
                with one set per image. Those of block 0 get no positional embedding but pass
                through ``ln_pre`` with all others, unless they are ``embedded``; those of later
                blocks enter as they are.
            n_rows: return the first ``n_rows`` positions of the last block after ``ln_post``
                instead of the features; the class token comes first.
            plain: compute as ``clip.plain`` does, even if nobody changed a module.

        Returns:
            ``(N, output_dim)``, not normalised; ``(N, width)`` where ``proj`` is ``None``, and
            ``(N, n_rows, width)`` with ``n_rows``.

        Raises:
            ValueError: a change for a block that does not exist, a prompt that does not fit, or
                more rows than the last block has.
        """
        changes = Changes.of(changes)
        changed = changed_part(self, IMAGE_PARTS, causal=False)
        if plain or warn_if_changed(self, changed and f"visual.{changed}"):
            rows = plain_encoders.encode_image(self, x, changes, n_rows or 1)
        else:
            rows = self._encode_in_parts(x, changes, n_rows or 1)
        if n_rows is not None:
            if not n_rows == rows.shape[1] > 0:
                raise ValueError(
                    f"{n_rows} rows of the last block's result are asked for: it has "
                    f"{self._n_tokens(changes)}, so ask for 1 to {self._n_tokens(changes)}"
                )
            return self.ln_post(rows)
        features = self.ln_post(rows[:, 0])
        return features if self.proj is None else features @ self.proj

    def _n_tokens(self, changes: Changes) -> int:
        """Count the tokens per image in the last block."""
        return len(self.positional_embedding) + sum(p.growth for p in changes.prompts())

    def _encode_in_parts(self, x: Tensor, changes: Changes, n_rows: int) -> Tensor:
        changes.check_depth(len(self.transformer.resblocks))
        shared = all(prompt.tokens.dim() == 2 for prompt in changes.prompts())
        # a graph is for batches of any size
        in_one = torch.is_grad_enabled() or torch.compiler.is_exporting()
        if in_one or x.device.type != "cpu" or not shared:
            return self._encode(x, changes, n_rows)
        # an empty batch is one part
        parts = x.tensor_split(max(1, -(-len(x) // self.images_at_once())))
        return torch.cat([self._encode(part, changes, n_rows) for part in parts])

    def images_at_once(self) -> int:
        """Return how many images go through the blocks at once on the CPU, without gradients."""
        hidden = len(self.positional_embedding) * self.transformer.resblocks[0].mlp.c_fc.bias.nbytes
        return max(1, int(LARGEST_ON_CPU // hidden))

    def _encode(self, x: Tensor, changes: Changes, n_rows: int) -> Tensor:
        blocks = self.transformer.resblocks
        dtype = self.conv1.weight.dtype
        # under autocast the convolution returns half precision; the sums below are float32
        x = self.conv1(x.to(dtype)).to(dtype).flatten(2).transpose(1, 2)  # (N, patches, width)
        cls = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)  # (N, 1, width)
        x = torch.cat([cls, x], dim=1) + self.positional_embedding.to(x.dtype)  # (N, tokens, width)
        for prompt in changes.at_input:
            x = splice(x, prompt)  # (N, tokens + growth, width)
        x = changes[0].entered(self.ln_pre(x))
        for i, block in enumerate(blocks):
            for prompt in changes.in_front_of(i):
                x = splice(x, prompt)  # (N, tokens + growth, width)
            if i < len(blocks) - 1:
                x = block.forward_batch_first(x, changes[i])  # (N, tokens, width)
            else:
                x = block.forward_first(x, n_rows, changes[i])  # (N, n_rows, width)
        return x


class CLIP(nn.Module):
    """Contrastive language-image model with prompts.

    Args:
        embed_dim: width of the joint embedding.
        image_resolution: side of the square input in pixels.
        vision_layers: blocks of the ViT, or blocks per stage (four numbers) of a ResNet.
        vision_width: width of the ViT, or of the ResNet's stem.
        vision_patch_size: side of a patch in pixels; ``None`` for a ResNet.
        context_length, vocab_size: of the text encoder.
        transformer_width, transformer_heads, transformer_layers: of the text encoder.
        vision_heads: of the ViT, or of the ResNet's attention pool; ``None`` for 64 units each.
        vision_mlp_width, transformer_mlp_width: hidden units of the MLPs; ``None`` for four times
            the width of the tower.
        quick_gelu: see ``ResidualAttentionBlock``.
    """

    image_mean: Tensor | None
    image_std: Tensor | None
    quick_gelu: Tensor | None

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: int | tuple[int, int, int, int],
        vision_width: int,
        vision_patch_size: int | None,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
        vision_heads: int | None = None,
        vision_mlp_width: int | None = None,
        transformer_mlp_width: int | None = None,
        quick_gelu: bool = True,
    ) -> None:
        super().__init__()
        self.context_length, self.vocab_size = context_length, vocab_size
        for name in EXTRA_ENTRIES:
            self.register_buffer(name, None)  # set by ``build_model`` from the state dict
        if isinstance(vision_layers, int):
            assert vision_patch_size is not None
            self.visual: VisionTransformer | ModifiedResNet = VisionTransformer(
                input_resolution=image_resolution,
                patch_size=vision_patch_size,
                width=vision_width,
                layers=vision_layers,
                heads=vision_heads or vision_width // 64,
                output_dim=embed_dim,
                mlp_width=vision_mlp_width,
                quick_gelu=quick_gelu,
            )
        else:
            self.visual = ModifiedResNet(
                layers=vision_layers,
                output_dim=embed_dim,
                heads=vision_heads or vision_width * 32 // 64,
                input_resolution=image_resolution,
                width=vision_width,
            )
        self.transformer = Transformer(
            width=transformer_width,
            layers=transformer_layers,
            heads=transformer_heads,
            attn_mask=self.build_attention_mask(),
            mlp_width=transformer_mlp_width,
            quick_gelu=quick_gelu,
        )
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(np.log(1 / 0.07), dtype=torch.float32))
        self.parts_warned_of: list[str] = []
        self.visual.parts_warned_of = self.parts_warned_of
        self.initialize_parameters()

    def initialize_parameters(self) -> None:
        """Initialise the text encoder as for training from scratch (paper, section 2.4).

        On the meta device there is nothing to draw, and pretending to takes a quarter of the time
        that building a model takes.
        """
        if self.text_projection.is_meta:
            return
        width, layers = self.transformer.width, self.transformer.layers
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        nn.init.normal_(self.text_projection, std=width**-0.5)
        for block in self.transformer.resblocks:
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(block.mlp.c_fc.weight, std=(2 * width) ** -0.5)
            nn.init.normal_(block.mlp.c_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)

    def build_attention_mask(self) -> Tensor:
        """Make the mask of the text encoder's blocks: see ``causal_mask``."""
        return causal_mask(self.context_length)

    @property
    def dtype(self) -> torch.dtype:
        """Type that the encoders compute in."""
        return self.visual.conv1.weight.dtype

    def changed_part(self) -> str | None:
        """Name the first part that somebody hooked, wrapped, replaced or patched, if any."""
        text = changed_part(self, TEXT_PARTS, causal=True)
        if text is not None or isinstance(self.visual, VisionTransformer):
            return text or changed_part(self.visual, IMAGE_PARTS, causal=False)
        # a ResNet runs through its modules anyway
        return next(
            (name for name, part in self.visual.named_modules(prefix="visual") if hooked(part)),
            None,
        )

    def encode_image(
        self,
        image: Tensor,
        changes: LayerChanges | None = None,
        plain: bool = False,
        n_rows: int | None = None,
    ) -> Tensor:
        """Encode images to ``(N, embed_dim)``, not normalised; see ``VisionTransformer``."""
        image = image.type(self.dtype)  # as in OpenAI's code: a replaced tower may rely on it
        options: dict[str, int] = {} if n_rows is None else {"n_rows": n_rows}
        if plain and isinstance(self.visual, VisionTransformer):  # a ResNet has one way
            options["plain"] = True
        return self.visual(image, changes, **options) if changes or options else self.visual(image)

    def encode_text(
        self,
        text: Tensor | PackedText,
        changes: LayerChanges | None = None,
        plain: bool = False,
    ) -> Tensor:
        """Encode the texts of a class list.

        Args:
            text: ``(C, context_length)`` token ids, or the same packed once with ``PackedText``.
            changes: changes of the blocks. Positions of prompts count from the start token, which
                is at 0. Prompts of block 0 get the positional embedding of the place where they
                end up unless they are ``embedded``, later ones enter as they are. Where a block
                has several prompts, positions refer to the sequence after the prompts before.
            plain: compute as ``clip.plain`` does, even if nobody changed a module.

        Returns:
            ``(C, embed_dim)``, or ``(B, C, embed_dim)`` if a prompt holds one set per sample;
            not normalised.

        Raises:
            ValueError: a change for a block that does not exist, a position outside the sequence,
                or more tokens than the context has room for.
        """
        text, changes = PackedText.of(text), Changes.of(changes)
        if plain or warn_if_changed(self, changed_part(self, TEXT_PARTS, causal=True)):
            return plain_encoders.encode_text(self, text, changes)
        blocks = self.transformer.resblocks
        changes.check_depth(len(blocks))
        plan = PrefixPlan(text, changes)
        batch = changes.batch_size

        n_prefix = plan.n_common
        layout = text.layout(plan.suffix_lengths)
        x = self.token_embedding(self._packed_ids(text, n_prefix, layout)).to(self.dtype)
        # rows: the common prefix, then the suffixes of all classes
        x = x.expand(1 if batch is None else batch, -1, -1)  # (B or 1, rows, width)
        for prompt in changes.at_input:
            x, n_prefix, layout = self._splice_text(x, prompt, n_prefix, layout, plan, text)
        x = self._add_positions(changes[0].entered(x), n_prefix, layout)
        for i, block in enumerate(blocks):
            for prompt in changes.in_front_of(i):
                x, n_prefix, layout = self._splice_text(x, prompt, n_prefix, layout, plan, text)
            normed = block.attention_input(x, changes[i])  # (B or 1, rows, width)
            qkv = block.attn.project(normed, changes[i])  # (B or 1, rows, 3 width)
            attended = layout.attention(n_prefix).attend(block.attn, qkv)  # (B or 1, rows, width)
            if i == len(blocks) - 1:  # only the end-of-text rows: (B or 1, C, width)
                end = n_prefix + layout.end
                x, normed, attended = (rows.index_select(1, end) for rows in (x, normed, attended))
            x = block.finish(x, normed, attended, changes[i])
        features = self.ln_final(x).to(self.dtype) @ self.text_projection  # (B or 1, C, embed_dim)
        return features.squeeze(0) if batch is None else features

    @staticmethod
    def _packed_ids(text: PackedText, n_prefix: int, layout: SuffixLayout) -> Tensor:
        suffix = text.ids[layout.owner, n_prefix + layout.position]  # (rows - n_prefix,)
        return torch.cat([text.ids[0, :n_prefix], suffix])[None]  # (1, rows)

    @staticmethod
    def _splice_text(
        x: Tensor,
        prompt: Prompt,
        n_prefix: int,
        layout: SuffixLayout,
        plan: PrefixPlan,
        text: PackedText,
    ) -> tuple[Tensor, int, SuffixLayout]:
        if prompt.tokens.shape[-1] != x.shape[-1]:
            raise ValueError(
                f"prompt of width {prompt.tokens.shape[-1]} for a text encoder of {x.shape[-1]}"
            )
        if plan.in_prefix(prompt, n_prefix):
            tokens = prompt.tokens.squeeze(-3) if prompt.tokens.dim() > 2 else prompt.tokens
            return splice(x, replace(prompt, tokens=tokens)), n_prefix + prompt.growth, layout
        x, lengths = splice_packed(x, prompt, n_prefix, layout)
        return x, n_prefix, text.layout(lengths)

    def _add_positions(self, x: Tensor, n_prefix: int, layout: SuffixLayout) -> Tensor:
        check_context(n_prefix + layout.longest, self.context_length)
        position = self.positional_embedding.to(x.dtype)  # (context_length, width)
        return x + torch.cat([position[:n_prefix], position[n_prefix + layout.position]])

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return scaled cosine similarities, image by text ``(N, C)``, and their transpose."""
        image_features = nn.functional.normalize(self.encode_image(image), dim=-1)
        text_features = nn.functional.normalize(self.encode_text(text), dim=-1)
        logits = self.logit_scale.exp() * image_features @ text_features.t()
        return logits, logits.t()


def warn_if_changed(model: CLIP | VisionTransformer, part: str | None) -> bool:
    """Return whether a part is changed, so that ``clip.plain`` has to run; warn once per model.

    Args:
        model: holds the encoder.
        part: name of the changed part, or ``None``.
    """
    if part is not None and not model.parts_warned_of:
        model.parts_warned_of.append(part)
        warnings.warn(
            f"{part} of this CLIP is hooked, wrapped, replaced or patched: what encodes with it "
            "runs module by module, as OpenAI's does, which is slower",
            stacklevel=3,
        )
    return part is not None


def with_text_projection(clip: CLIP, projection: Tensor) -> CLIP:
    """Return a CLIP that shares everything with another but the projection of its texts.

    Args:
        clip: the other one, which stays as it is.
        projection: ``(d_text, embed_dim)``; it gets the type and device of the other's.

    Raises:
        ValueError: it has another shape.
    """
    own = clip.text_projection
    if projection.shape != own.shape:
        raise ValueError(
            f"a text projection of shape {tuple(projection.shape)} does not fit this backbone, "
            f"whose own has {tuple(own.shape)}"
        )
    other = copy.copy(clip)
    other._parameters = dict(clip._parameters)
    other.text_projection = nn.Parameter(projection.to(own), requires_grad=False)
    return other
