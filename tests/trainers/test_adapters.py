"""What CLIP-LoRA, MMA and 2SFS do besides the contract: dropout, stages, rows by name, settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from adaptation.predictor import Predictor
from dassl.engine import build_trainer
from dassl.engine.run_notes import run_facts
from dassl.utils import set_random_seed
from tests.conftest import CLASSNAMES
from tests.parity_files import relative_error
from tests.trainers.test_contract import batch_of

DROPOUT = ("TRAINER.CLIPLORA.DROPOUT", 0.5)


class Recording(torch.nn.Dropout):
    """Dropout that keeps the shapes of its inputs, and what it kept of them."""

    def __init__(self, p: float) -> None:
        super().__init__(p)
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        mask = super().forward(torch.ones_like(x))
        self.seen.append(mask.detach())
        return x * mask


class Same(torch.nn.Module):
    """Drops the same places of every position."""

    def __init__(self, keep: torch.Tensor) -> None:
        super().__init__()
        self.keep = keep

    def forward(self, x):
        return x * self.keep


def record(trainer) -> dict[str, Recording]:
    found = {}
    for name, module in trainer.model.learner.named_modules():
        if hasattr(module, "drop"):
            module.drop = found[name] = Recording(module.dropout)
            with torch.no_grad():
                module.up.normal_(std=0.1)  # which starts at 0
    return found


@pytest.mark.parametrize("chunk", [0, 2])
def test_every_text_and_every_projection_has_dropout_of_its_own(make_cfg, monkeypatch, chunk):
    """The prefix that the packed texts have in common is not shared while masks are drawn."""
    trainer = build_trainer(make_cfg("CLIPLoRA", *DROPOUT))
    monkeypatch.setattr(trainer.model, "texts_at_once", lambda *_, **__: chunk)
    drops = record(trainer)
    trainer.set_model_mode("train")
    trainer.batch_idx, trainer.num_batches = 0, 2
    trainer.forward_backward(batch_of(trainer))
    n_tokens = sum(trainer.model.text.lengths)
    seen = {name: drop.seen for name, drop in drops.items()}
    assert len(seen) == 2 * 12 * 3
    for name, masks in seen.items():
        if name.startswith("text"):
            parts = -(-len(CLASSNAMES) // chunk) if chunk else 1
            first, again = masks[:parts], masks[parts:]
            assert sum(mask.shape[1] for mask in first) == n_tokens, name
            # a chunk that is computed again for the backward pass has the same masks, in any order
            assert len(again) == (parts if chunk else 0)
            for mask in again:
                assert any(mask.shape == m.shape and torch.equal(mask, m) for m in first), name
        assert 0.3 < (torch.cat(masks, dim=1) == 0).float().mean() < 0.7
    ends = trainer.model.text.layout(trainer.model.text.lengths)
    q, k = seen["text.3.q"][0], seen["text.3.k"][0]
    assert not torch.equal(q, k)
    if not chunk:
        starts = ends.end - torch.tensor(ends.lengths) + 1  # start tokens, one of each class
        assert not torch.equal(q[0, starts[0]], q[0, starts[1]])


def test_dropout_is_for_training_alone(make_cfg):
    trainer = build_trainer(make_cfg("CLIPLoRA", *DROPOUT))
    drops = record(trainer)
    trainer.test()
    assert not any(drop.seen for drop in drops.values())


def test_dropout_is_refused_where_numbers_cannot_be_drawn(make_cfg):
    with pytest.raises(
        ValueError, match=r"OPTIM\.CUDA_GRAPH: .*CLIPLoRA draw.*CLIPLORA\.DROPOUT 0"
    ):
        build_trainer(make_cfg("CLIPLoRA", *DROPOUT, "OPTIM.CUDA_GRAPH", True))


def test_fast_and_plain_texts_have_the_same_terms_with_equal_masks(make_cfg):
    """Masks that depend on the position alone, for the packed texts and for whole ones."""

    def features(fast: bool):
        torch.manual_seed(2)
        trainer = build_trainer(make_cfg("CLIPLoRA", *DROPOUT, "MODEL.FAST_ENCODERS", fast))
        keep = torch.rand(1, 1, 64, generator=torch.Generator().manual_seed(1)) > 0.5
        for drop in record(trainer):
            term = trainer.model.learner.get_submodule(drop)
            if drop.startswith("text"):
                term.drop = Same(keep)
        trainer.set_model_mode("train")
        return trainer.model.text_features()

    assert relative_error(features(True), features(False).detach()) < 2e-5


WRONG = [
    ("CLIPLoRA", ("TRAINER.CLIPLORA.POSITION", "halfup"), r"CLIPLORA\.POSITION.*half-up"),
    ("CLIPLoRA", ("TRAINER.CLIPLORA.ENCODER", "image"), r"CLIPLORA\.ENCODER"),
    ("CLIPLoRA", ("TRAINER.CLIPLORA.PARAMS", ("q", "x")), r"CLIPLORA\.PARAMS"),
    ("CLIPLoRA", ("TRAINER.CLIPLORA.PARAMS", ()), r"PARAMS is \(\): name each"),
    ("CLIPLoRA", ("TRAINER.CLIPLORA.PARAMS", ("q", "q")), r"name each of some of q, k, v, o once"),
    ("CLIPLoRA", ("TRAINER.CLIPLORA.R", 0), r"R is 0: use 1 or more"),
    ("CLIPLoRA", ("TRAINER.CLIPLORA.DROPOUT", 1.0), r"DROPOUT is 1\.0: use 0 to below 1"),
    ("MMA", ("TRAINER.MMADAPTER.ADAPTER_END", 13), r"ADAPTER_END 13: this backbone takes 0 to 12"),
    ("MMA", ("TRAINER.MMADAPTER.ADAPTER_START", -1), r"ADAPTER_START -1 to"),
    ("MMA", ("TRAINER.MMADAPTER.ADAPTER_DIM", 0), r"ADAPTER_DIM is 0"),
    ("MMA", ("TRAINER.MMADAPTER.ADAPTER_SCALE", 0.0), r"ADAPTER_SCALE is 0\.0: gradients"),
    ("TwoStageFS", ("TRAINER.TWOSTAGE.N_ITERS_FRAC", 0.0), r"N_ITERS_FRAC is 0\.0"),
    ("TwoStageFS", ("TRAINER.TWOSTAGE.LN_MODALITY", "image"), r"TWOSTAGE\.LN_MODALITY"),
    ("TwoStageFS", ("TRAINER.TWOSTAGE.LN_TEXT_START", 12), r"LN_TEXT_START is 12: .* 0 to 11"),
]


@pytest.mark.parametrize(("method", "pairs", "message"), WRONG)
def test_settings_that_cannot_be(make_cfg, method, pairs, message):
    with pytest.raises(ValueError, match=message) as error:
        build_trainer(make_cfg(method, *pairs))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("method", "pairs"),
    [
        ("CLIPLoRA", ("TRAINER.CLIPLORA.ENCODER", "text")),
        ("TwoStageFS", ("TRAINER.TWOSTAGE.LN_MODALITY", "text")),
        ("MMA", None),
    ],
)
def test_a_resnet_has_a_text_encoder_alone(make_cfg, rn_file, method, pairs):
    backbone = ("MODEL.BACKBONE.NAME", rn_file, "INPUT.SIZE", (64, 64))
    with pytest.raises(ValueError, match=f"{method} .*vision transformer"):
        build_trainer(make_cfg(method, *backbone))
    if pairs:
        trainer = build_trainer(make_cfg(method, *backbone, *pairs))
        trainer.set_model_mode("train")
        trainer.batch_idx, trainer.num_batches = 0, 2
        trainer.forward_backward(batch_of(trainer))


@pytest.mark.parametrize(
    ("position", "blocks"),
    [
        ("bottom", range(4)),
        ("mid", range(4, 8)),
        ("up", range(8, 12)),
        ("half-bottom", range(6)),
        ("half-up", range(6, 12)),
        ("top3", range(9, 12)),
        ("all", range(12)),
    ],
)
def test_positions(make_cfg, position, blocks):
    trainer = build_trainer(make_cfg("CLIPLoRA", "TRAINER.CLIPLORA.POSITION", position))
    learner = trainer.model.learner
    assert [*map(int, learner.text)] == [*map(int, learner.vision)] == [*blocks]


# --- two stages -----------------------------------------------------------------------------------

#: 20 images in batches of 4 and 3 steps of the first, 4 of the second stage
STAGES = ("OPTIM.MAX_ITERATIONS", 7, "TRAINER.TWOSTAGE.N_ITERS_FRAC", 0.5, "DATASET.NUM_SHOTS", 4)


@pytest.fixture
def two_stages(make_cfg, tmp_path):
    def build(folder: str = "run", *pairs):
        out = ("OUTPUT_DIR", str(tmp_path / folder))
        set_random_seed(1)
        return build_trainer(make_cfg("TwoStageFS", *STAGES, *out, *pairs))

    return build


@pytest.mark.parametrize("precision", ["fp32", "amp", "bf16", "fp16"])
def test_second_stage_trains_the_rows_alone(two_stages, capsys, precision):
    trainer = two_stages("run", "TRAINER.TWOSTAGE.PREC", precision, "OPTIM.NAME", "adamw")
    model, learner, norms, seen = trainer.model, trainer.model.learner, {}, []
    begin, step = trainer.begin_stage, trainer.forward_backward

    def begin_and_keep(stage):
        begin(stage)
        norms.update({k: v.clone() for k, v in learner.state_dict().items()})

    def step_and_keep(batch):
        seen.append((learner.rows is None, trainer.get_current_lr()))
        return step(batch)

    trainer.begin_stage, trainer.forward_backward = begin_and_keep, step_and_keep
    trainer.train()
    assert [first for first, _ in seen] == [True] * 3 + [False] * 4
    assert f"Stage 2: a classifier of {learner.rows.numel()} parameters" in capsys.readouterr().out
    start = norms.pop("rows")
    assert not torch.equal(learner.rows, start)
    assert all(torch.equal(learner.state_dict()[key], value) for key, value in norms.items())
    assert torch.allclose(start.norm(dim=-1), torch.ones(len(start)), atol=1e-3)
    with torch.no_grad():
        assert torch.equal(model.text_features(), F.normalize(learner.rows, dim=-1))
    assert run_facts(trainer)["parameters"] == sum(p.numel() for p in learner.parameters())


def test_rows_are_known_by_name(two_stages, make_cfg):
    trainer = two_stages()
    trainer.train()
    rows = F.normalize(trainer.model.learner.rows.detach(), dim=-1)
    names = [CLASSNAMES[2], "a tram", CLASSNAMES[0]]
    predictor = Predictor.load(trainer.output_dir, classnames=names, device="cpu")
    with torch.no_grad():
        text = predictor.model.text_features()
        assert torch.equal(text[[0, 2]], rows[[2, 0]])
        # the name that the run does not know is encoded, as it is for a run without rows
        predictor.model.learner.register_parameter("rows", None)
        predictor.model.forget_text()
        encoded = predictor.model.text_features()
    assert torch.equal(text[1], encoded[1])
    assert not torch.allclose(text[0], encoded[0], atol=1e-4)

    new = build_trainer(make_cfg("TwoStageFS", "DATASET.SUBSAMPLE_CLASSES", "new"))
    new.load_model(trainer.output_dir)
    assert 0 <= new.test() <= 100
    assert torch.equal(new.model.learner.rows, trainer.model.learner.rows)


def test_of_equal_names_the_last_row_counts(two_stages):
    trainer = two_stages()
    learner = trainer.model.learner
    learner.begin_rows(torch.eye(3, learner.embed_dim), ["cat", "dog", "cat"])
    trainer.model.set_classes(["cat", "dog", "cat"])
    trainer.set_model_mode("train")
    assert torch.equal(trainer.model.text_features(), torch.eye(3, learner.embed_dim))
    trainer.set_model_mode("eval")
    with torch.no_grad():
        found = trainer.model.text_features().argmax(dim=-1)
    assert found.tolist() == [2, 1, 2]


def test_rows_of_another_number_of_classes_are_damage(two_stages):
    trainer = two_stages()
    trainer.train()
    path = Path(trainer.output_dir, trainer.model_name, "model.pth.tar-2")
    content = torch.load(path, weights_only=True)
    content["state_dict"]["rows"] = content["state_dict"]["rows"][:-1]
    torch.save(content, path)
    with pytest.raises(ValueError, match=r"rows has shape \(4, 32\), this run needs \(5, 32\)"):
        trainer.load_model(trainer.output_dir)


def test_one_stage_has_no_classifier(two_stages):
    trainer = two_stages("run", "TRAINER.TWOSTAGE.N_ITERS_FRAC", 1.0)
    trainer.train()
    assert trainer.model.learner.rows is None


def test_a_captured_step_is_captured_anew_in_the_second_stage(two_stages):
    from tests.tape import TapeCapture

    runs = []
    for graph in (False, True):
        trainer = two_stages(
            f"graph {graph}", "OPTIM.CUDA_GRAPH", graph, "OPTIM.MAX_ITERATIONS", 14
        )
        captures, new = [], trainer.new_optimiser

        def captured(*words, trainer=trainer, captures=captures, new=new):
            new(*words)
            if trainer.graph is not None:
                trainer.graph.capture = TapeCapture()
                captures.append(trainer.graph.capture)

        trainer.new_optimiser = captured
        if graph:
            trainer.graph.capture = TapeCapture()
            captures.append(trainer.graph.capture)
        trainer.train()
        runs.append(trainer)
    assert [(c.records, c.replays) for c in captures] == [(1, 4), (1, 4)]
    for key, value in runs[0].model.learner.state_dict().items():
        assert relative_error(runs[1].model.learner.state_dict()[key], value) < 2e-4, key
