"""Files as the published code of a method writes them, with all that it leaves in them.

Folders, names and shapes are those of the code that was read, for the sizes of the recorded CLIP:
12 blocks of 64 (text) and 128 values (image), features of 32, five classes.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from dassl.engine import build_trainer
from tests.parity_files import recorded_clip

D_TEXT, D_IMAGE, D, CLASSES = 64, 128, 32, 5
Shapes = dict[str, tuple[int, ...]]


def linear(name: str, n_out: int, n_in: int) -> Shapes:
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def class_names(n_ctx: int, start: str = "") -> Shapes:
    prefix, suffix = (CLASSES, 1, D_TEXT), (CLASSES, 76 - n_ctx, D_TEXT)
    return {f"{start}token_prefix": prefix, f"{start}token_suffix": suffix}


def adapters_of_mma() -> Shapes:
    shapes: Shapes = {}
    for i in (11, 12):
        for tower, width in (("text", D_TEXT), ("visual", D_IMAGE)):
            shapes |= linear(f"{tower}_adapter.{i}.down.0", 32, width)
            shapes |= linear(f"{tower}_adapter.{i}.up", width, 32)
        shapes |= linear(f"shared_adapter.{i}.0", 32, 32)
    return shapes


def prompts_of_coprompt(n: int, depth: int) -> Shapes:
    start = "prompt_learner."
    shapes = {f"{start}ctx": (n, D_TEXT), **linear(f"{start}proj", D_IMAGE, D_TEXT)}
    for k in range(depth - 1):
        shapes[f"{start}compound_prompts_text.{k}"] = (n, D_TEXT)
        shapes |= linear(f"{start}compound_prompt_projections.{k}", D_IMAGE, D_TEXT)
    for tower in ("image", "text"):
        shapes |= {f"adapter_{tower}.fc.0.weight": (D // 4, D)}
        shapes |= {f"adapter_{tower}.fc.2.weight": (D, D // 4)}
    return shapes


def tokens_of_mmrl(low_rank: bool) -> Shapes:
    start = "representation_learner.compound_rep_tokens"
    shapes: Shapes = {start: (5, 512)}
    for side, width in (("v", D_IMAGE), ("t", D_TEXT)):
        shared = f"representation_learner.srra_r2{side}proj"
        if low_rank:
            shapes[f"{shared}.weight"] = (width, 512)
        for j in range(2):
            if low_rank:
                own = {"A": (width, 4), "B": (4, 512), "bias": (width,)}
                shapes |= {f"{shared}.srra.{j}.{name}": shape for name, shape in own.items()}
            else:
                shapes |= linear(f"{start}_r2{side}proj.{j}", width, 512)
    if low_rank:
        return {**shapes, "image_encoder.A": (D_IMAGE, 64), "image_encoder.B": (64, D)}
    return {**shapes, "image_encoder.proj_rep": (D_IMAGE, D)}


def rows(*names: str) -> Shapes:
    return dict.fromkeys(names, (CLASSES, D))


TCP_NET = linear("meta_net.linear1", D // 4, D) | linear("meta_net.linear2", 4 * D_TEXT, D // 4)
# what KgCoOp's code stores and never uses
KGCOOP = {"bias_vectors": (1, 512), **linear("meta_net.linear1", 512, 512)}
EMBEDDED = {"token_embedding": (CLASSES, 77, D_TEXT), "tokenized_prompts": (CLASSES, 77)}
#: method -> its folder, config pairs, what was trained, and what else stands in the file
FILES: dict[str, tuple[str, list[object], Shapes, Shapes]] = {
    "KgCoOp": ("prompt_learner", [], {"ctx": (4, D_TEXT)}, KGCOOP | class_names(4)),
    "TCP": ("prompt_learner", [], {"ctx": (4, D_TEXT), **TCP_NET}, class_names(4)),
    "ProGrad": ("prompt_learner", [], {"ctx": (16, D_TEXT)}, class_names(16)),
    "CLIPAdapter": ("clip_adapter", [], {"fc.0.weight": (8, D), "fc.2.weight": (D, 8)}, {}),
    "TaskRes": ("prompt_learner", [], rows("base_text_features", "text_feature_residuals"), {}),
    "ZSLP": ("adapter", [], rows("base_text_features", "prototypes"), {"logit_scale": ()}),
    "CLAP": ("adapter", [], rows("base_text_features", "prototypes"), {"logit_scale": ()}),
    "MMA": (
        *("adapter_learner", ["TRAINER.MMADAPTER.ADAPTER_START", 11]),
        *(adapters_of_mma(), EMBEDDED),
    ),
    "MMRL": (
        *("MultiModalRepresentationLearner", ["TRAINER.MMRL.REP_LAYERS", [11, 12]]),
        *(tokens_of_mmrl(False), {"prompt_embeddings": (CLASSES, 77, D_TEXT)}),
    ),
    "MMRLPlusPlus": (
        *("MultiModalRepresentationLearner", ["TRAINER.MMRLPLUSPLUS.REP_LAYERS", [11, 12]]),
        *(tokens_of_mmrl(True), {"prompt_embeddings": (CLASSES, 77, D_TEXT)}),
    ),
    "CoPrompt": (
        *("MultiModalPromptLearner", ["TRAINER.COPROMPT.PROMPT_DEPTH", 3]),
        *(prompts_of_coprompt(2, 3), class_names(2, "prompt_learner.")),
    ),
}


def clip_in_the_file(method: str) -> dict[str, Tensor]:
    """Frozen weights under the names of a model that is saved as a whole."""
    found = {}
    for key, value in recorded_clip().items():
        if method == "CoPrompt":
            found[f"model_distill.{key}"] = value
        if key.startswith("visual."):
            found[key.replace("visual.", "image_encoder.", 1)] = value
        elif key.startswith(("transformer.", "ln_final.", "positional_", "text_projection")):
            found[f"text_encoder.{key}"] = value
        elif key == "logit_scale" and method == "CoPrompt":
            found[key] = value
    return found


@pytest.mark.parametrize("method", FILES)
def test_a_published_file_is_read(make_cfg, tmp_path, method):
    folder, pairs, trained, left = FILES[method]
    trainer = build_trainer(make_cfg(method, *pairs))
    learned = {key: torch.randn(shape).half() for key, shape in trained.items()}
    state = learned | {key: torch.randn(shape).half() for key, shape in left.items()}
    if trainer.model_name.startswith("MultiModal"):
        state = clip_in_the_file(method) | state
    path = tmp_path / "published" / folder / "model.pth.tar-50"
    path.parent.mkdir(parents=True)
    # the engine of KgCoOp and ProGrad is older, and keeps no result of a validation
    torch.save({"state_dict": state, "epoch": 50, "optimizer": None, "scheduler": None}, path)
    trainer.load_model(str(tmp_path / "published"), epoch=50)

    def values(tensors: dict[str, Tensor]) -> list[tuple[tuple[int, ...], float]]:
        return sorted((tuple(t.shape), float(t.double().sum())) for t in tensors.values())

    assert values(trainer.model.learner.state_dict()) == values(learned)
