"""A method that changes blocks inside, through the trainer and all optional machinery."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adaptation.classifier import PromptedCLIP
from adaptation.learner import PromptLearner, Steps
from adaptation.savings.memory import image_bytes, text_bytes
from adaptation.seeds import SeveralSeeds
from adaptation.trainer import PromptTrainer
from clip.changes import BlockChange, LowRank, Prompt
from clip.model import CLIP
from clip.packing import PackedText
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY, build_trainer
from tests.adaptation.test_memory import NAMES, allocated, images
from tests.parity_files import relative_error
from tests.tape import TapeCapture


class InsideLearner(PromptLearner):
    """Low-rank terms of every map, a layer norm and a branch in some blocks; one prompt.

    Args:
        text, vision: widths of the encoders.
        blocks: of either of them.
    """

    def __init__(self, text: int, vision: int, blocks: int) -> None:
        super().__init__()
        self.blocks = (1, blocks - 1)
        self.ctx = nn.Parameter(0.02 * torch.randn(2, text))
        self.norm = nn.Parameter(1 + 0.1 * torch.randn(2, text))
        self.terms = nn.ParameterDict()
        for tower, width in (("text", text), ("vision", vision)):
            for block in self.blocks:
                for part in ("query", "key", "value", "out", "branch"):
                    for name, shape in (("down", (2, width)), ("up", (width, 2))):
                        key = f"{tower}_{block}_{part}_{name}"
                        self.terms[key] = nn.Parameter(0.1 * torch.randn(shape))

    def _change(self, tower: str, block: int, **more: object) -> BlockChange:
        def pair(part: str) -> list[torch.Tensor]:
            return [self.terms[f"{tower}_{block}_{part}_{name}"] for name in ("down", "up")]

        def branch(x: torch.Tensor) -> torch.Tensor:
            down, up = pair("branch")
            return F.linear(F.linear(x, down).relu(), up)

        terms = {part: LowRank(*pair(part)) for part in ("query", "key", "value", "out")}
        return BlockChange(branch=branch, **terms, **more)

    def text_changes(self) -> dict[int, BlockChange | Prompt]:
        first, last = self.blocks
        inside = self._change("text", last, ln_2=(self.norm[0], self.norm[1]))
        return {0: Prompt(self.ctx, at=1), first: self._change("text", first), last: inside}

    def image_changes(self) -> dict[int, BlockChange]:
        return {block: self._change("vision", block) for block in self.blocks}


class Inside(PromptTrainer):
    """The method of these tests."""

    node = "INSIDE"

    @staticmethod
    def extend_cfg(cfg: CfgNode) -> None:
        cfg.TRAINER.INSIDE = CfgNode({"PREC": "fp32"})

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: list[str]) -> InsideLearner:
        towers = clip.transformer, clip.visual.transformer
        return InsideLearner(towers[0].width, towers[1].width, towers[0].layers)


@pytest.fixture(autouse=True)
def registered(monkeypatch) -> None:
    """The method is registered for one test at a time: other tests run over all that are."""
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Inside", Inside)


def built(make_cfg, *pairs: object) -> PromptTrainer:
    torch.manual_seed(3)
    return build_trainer(make_cfg("Inside", *pairs))


def step(trainer: PromptTrainer) -> dict[str, torch.Tensor]:
    """Gradients of one training step."""
    torch.manual_seed(4)
    batch = {"img": torch.randn(4, 3, 32, 32), "label": torch.tensor([0, 1, 2, 3])}
    trainer.batch_idx, trainer.num_batches = 0, 2
    trainer.forward_backward(batch)
    return {name: parameter.grad for name, parameter in trainer.model.learner.named_parameters()}


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize(
    ("precision", "limit"), [("fp32", 2e-4), ("amp", 5e-2), ("bf16", 3e-1), ("fp16", 5e-2)]
)
def test_step(make_cfg, precision, limit, fast):
    """Every tensor gets the gradient of float32; what is frozen stays as it is."""
    trainer = built(make_cfg, "TRAINER.INSIDE.PREC", precision, "MODEL.FAST_ENCODERS", fast)
    before = {name: p.clone() for name, p in trainer.model.clip.named_parameters()}
    grads, exact = step(trainer), step(built(make_cfg))
    for name, value in exact.items():
        assert float(value.abs().max()) > 0, name
        assert relative_error(grads[name], value) < limit, name
    for name, parameter in trainer.model.clip.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_chunks_of_text(make_cfg, monkeypatch):
    whole = step(built(make_cfg))
    monkeypatch.setattr(PromptedCLIP, "texts_at_once", lambda *_, **__: 2)
    for name, value in step(built(make_cfg)).items():
        assert relative_error(value, whole[name]) < 2e-4, name


def test_captured_steps(make_cfg, tmp_path):
    """A tape stands for the GPU: no part of the step reads on the host."""

    def run(graph: bool) -> dict[str, torch.Tensor]:
        trainer = built(
            make_cfg,
            *("OUTPUT_DIR", str(tmp_path / str(graph)), "OPTIM.CUDA_GRAPH", graph),
            *("DATASET.NUM_SHOTS", 4, "OPTIM.MAX_EPOCH", 2, "TEST.NO_TEST", True),
        )
        if graph:
            trainer.graph.capture = TapeCapture()
        trainer.train()
        return trainer.model.learner.state_dict()

    eager, captured = run(False), run(True)
    for name, value in eager.items():
        assert relative_error(captured[name], value) < 2e-4, name


def test_seeds_together_are_refused(make_cfg, tmp_path):
    def build(seed: int) -> PromptTrainer:
        return built(make_cfg, "SEED", seed, "OUTPUT_DIR", str(tmp_path / str(seed)))

    with pytest.raises(ValueError, match=r"--seeds: .*inside.* one by one with --seed$") as refused:
        SeveralSeeds({seed: partial(build, seed) for seed in (1, 2)}).train()
    assert "\n" not in str(refused.value)
    assert not list(tmp_path.glob("**/model.pth*"))


def model(make_cfg) -> PromptedCLIP:
    torch.manual_seed(1)
    clip = CLIP(64, 32, 12, 64, 8, 77, 49408, 64, 1, 12)
    return Inside.build_classifier(make_cfg("Inside"), clip, NAMES)


@pytest.mark.parametrize("tower", ["text", "vision"])
def test_estimates_hold(make_cfg, tower):
    """Of all blocks of an encoder that change inside: kept is what was estimated, or less."""
    own = model(make_cfg)
    change = own.learner._change(tower, 1)
    changes = dict.fromkeys(range(12), change)
    text, image = PackedText(own.text.ids), images(20)
    with allocated() as peak:
        if tower == "text":
            features = own.clip.encode_text(text, changes)
            estimate = len(text) * text_bytes(own.clip, text, changes, for_backward=True)
        else:
            features = own.clip.encode_image(image, changes)
            estimate = len(image) * image_bytes(own.clip, changes, for_backward=True)
        features.square().sum().backward()
    assert 0.4 < peak.value / estimate < 1


class RowsLearner(PromptLearner):
    """Tokens beside the class token, whose rows are read as well, by a forward of its own.

    Args:
        vision: width of the image encoder.
        projection: ``(vision, embed_dim)``, of the class token.
    """

    def __init__(self, vision: int, projection: torch.Tensor) -> None:
        super().__init__()
        self.tokens = nn.Parameter(0.1 * torch.randn(2, vision))
        self.beside = nn.Parameter(0.1 * torch.randn(projection.shape))
        self.register_buffer("projection", projection.clone(), persistent=False)

    def image_features(self, clip: Steps, image: torch.Tensor) -> torch.Tensor:
        rows = clip.encode_image(image, {6: Prompt(self.tokens, at=1)}, n_rows=3)
        rows = rows[:, 0] @ self.projection + rows[:, 1:].mean(1) @ self.beside
        return F.normalize(rows, dim=-1)


class Rows(Inside):
    """The method with rows of the last block."""

    @classmethod
    def build_learner(cls, cfg: CfgNode, clip: CLIP, classnames: list[str]) -> RowsLearner:
        return RowsLearner(clip.visual.transformer.width, clip.visual.proj.float())


def test_rows_of_the_last_block(make_cfg, tmp_path, monkeypatch):
    """Fast, plain, in half precision, and for seeds together as for one alone."""
    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "Rows", Rows)

    def build(folder: str, seed: int, *pairs: object) -> PromptTrainer:
        torch.manual_seed(seed)
        run = ("SEED", seed, "OUTPUT_DIR", str(tmp_path / folder / str(seed)))
        small = ("OPTIM.MAX_EPOCH", 1, "DATASET.NUM_SHOTS", 1, "TEST.NO_TEST", True)
        return build_trainer(make_cfg("Rows", *run, *small, *pairs))

    exact = step(build("one", 1))
    for pairs, limit in (
        (("MODEL.FAST_ENCODERS", False), 2e-4),
        (("TRAINER.INSIDE.PREC", "bf16"), 2e-1),
    ):
        for name, value in step(build("one", 1, *pairs)).items():
            assert relative_error(value, exact[name]) < limit, name

    together = SeveralSeeds({seed: partial(build, "together", seed) for seed in (1, 2)})
    together.train()
    for run in together.runs:
        alone = build("alone", run.seed)
        alone.train()
        for name, value in alone.model.learner.state_dict().items():
            assert relative_error(run.trainer.model.learner.state_dict()[name], value) < 1e-4, name
