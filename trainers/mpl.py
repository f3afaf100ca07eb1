"""MPL: modular prompt learning, image prompts that are added, removed and kept from block to block.

"Modular Prompt Learning Improves Vision-Language Models", ICASSP 2025. MaPLe with three changes:
before each deeper prompted block of the image encoder the last N_RM_OP tokens are removed and
N_ADD_OP x N_CTX new ones are added, while the rest goes on; several maps make the new tokens from
one text prompt; and the hand-written words stay behind the learned tokens.

As in its code: all maps start as copies of one another, so that the tokens added at the last
prompted block get equal gradients and stay equal (TWIN_MAPS False starts each map by itself); with
N_RM_OP above N_CTX the first removal takes image patches; the learned tokens start from the
embedding of the placeholder "X". Departures: those of ``maple.py``, and no example prompts are
printed (there: drawn from Python's random stream).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from adaptation.learners import CoupledPromptLearner
from adaptation.starts import check_depth, check_least, copies, require_vit
from adaptation.trainer import PromptTrainer
from clip.changes import LayerChanges, Prompt
from clip.model import CLIP, VisionTransformer
from clip.tokens import tokenize
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY


class MPLLearner(CoupledPromptLearner):
    """Text prompts, and maps to the tokens that are added to the image encoder.

    Args:
        ctx: ``(n, d_text)`` start of the input prompt.
        depth: prompted blocks, input layer included.
        vision_width: width of the image encoder.
        template: frozen words around the class name.
        n_add: maps per block; each adds ``n`` tokens.
        n_remove: number of tokens removed in front of each deeper prompted block.
        twin_maps: whether all maps start as copies of one another.
    """

    txt2img_proj: Any  # ModuleList of one ModuleList per added set

    def __init__(
        self,
        ctx: Tensor,
        depth: int,
        vision_width: int,
        template: str,
        n_add: int,
        n_remove: int,
        twin_maps: bool = True,
    ) -> None:
        super().__init__(ctx, depth, vision_width, template)
        self.n_remove = n_remove
        size = (ctx.shape[-1], vision_width)
        if twin_maps:
            start = nn.Linear(*size)
            maps = [copies(start, depth - 1) for _ in range(n_add)]
        else:
            maps = [nn.ModuleList(nn.Linear(*size) for _ in range(depth - 1)) for _ in range(n_add)]
        self.txt2img_proj = nn.ModuleList(maps)

    def image_changes(self) -> LayerChanges:
        prompts = {0: Prompt(self.proj(self.ctx))}
        for layer, text in enumerate(self.compound_prompts_text, start=1):
            tokens = torch.cat([maps[layer - 1](text) for maps in self.txt2img_proj])
            prompts[layer] = Prompt(tokens, drop=self.n_remove)
        return prompts


@TRAINER_REGISTRY.register()
class MPL(PromptTrainer):
    """Modular prompt learning."""

    node = "MPL"
    model_name = "MultiModalPromptLearner"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.MPL = node = CfgNode()
        #: prompt tokens of the text encoder per block
        node.N_CTX = 2
        #: sets of N_CTX tokens added in front of each deeper prompted block
        node.N_ADD_OP = 2
        #: tokens removed there
        node.N_RM_OP = 1
        #: whether all maps start as copies of one another, as in the published code
        node.TWIN_MAPS = True
        #: words that stay behind the learned tokens
        node.CTX_INIT = "a photo of a"
        node.PREC = "fp16"
        #: prompted blocks, input layer included
        node.PROMPT_DEPTH = 9

    def check_cfg(self, cfg: CfgNode) -> None:
        super().check_cfg(cfg)
        node = cfg.TRAINER.MPL
        check_least(node, "TRAINER.MPL", 1, "N_CTX", "N_ADD_OP")
        check_least(node, "TRAINER.MPL", 0, "N_RM_OP")

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: Sequence[str]) -> MPLLearner:
        node, widths = cfg.TRAINER[cls.node], require_vit(clip, "MPL")
        check_depth(node.PROMPT_DEPTH, widths.layers, "TRAINER.MPL.PROMPT_DEPTH")
        # tokens of the image, then per deeper block: some removed from the end, some added
        assert isinstance(clip.visual, VisionTransformer)  # see require_vit
        length = clip.visual.positional_embedding.shape[0] + node.N_CTX
        for layer in range(1, node.PROMPT_DEPTH):
            if node.N_RM_OP >= length:
                raise ValueError(
                    f"TRAINER.MPL.N_RM_OP is {node.N_RM_OP}, but only {length} tokens are left in "
                    f"front of block {layer}, and the class token has to stay: remove fewer"
                )
            length += node.N_ADD_OP * node.N_CTX - node.N_RM_OP
        words = node.CTX_INIT.replace("_", " ").strip()
        with torch.no_grad():
            placeholder = tokenize("X")[0, 1:2].to(clip.token_embedding.weight.device)
            ctx = clip.token_embedding(placeholder).float().repeat(node.N_CTX, 1)
        template = " ".join([words, "{}."]).strip()
        return MPLLearner(
            ctx,
            depth=node.PROMPT_DEPTH,
            vision_width=widths.vision,
            template=template,
            n_add=node.N_ADD_OP,
            n_remove=node.N_RM_OP,
            twin_maps=node.TWIN_MAPS,
        )
