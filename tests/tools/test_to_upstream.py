"""Runs written as published code saves them: their keys, and what they are when read back."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch

from clip import build_model, tokenize
from dassl.engine import build_trainer
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import load_checkpoint, resume_from_checkpoint
from support.command_line import run_command
from tests.conftest import CLASSNAMES
from tests.parity_files import recorded_clip
from tools import to_upstream
from tools.to_upstream import LAYOUTS

RESBLOCKS = "transformer.resblocks"


def text_deep(depth: int) -> set[str]:
    return {f"text_encoder.{RESBLOCKS}.{block}.VPT_shallow" for block in range(1, depth)}


def image_deep(depth: int) -> set[str]:
    deep = {f"image_encoder.{RESBLOCKS}.{block}.VPT_shallow" for block in range(1, depth)}
    return {"image_encoder.VPT"} | deep


def coupled(*others: str) -> set[str]:
    names = ["ctx", "proj.weight", "proj.bias", *(f"compound_prompts_text.{k}" for k in (0, 1))]
    return {f"prompt_learner.{name}" for name in (*names, *others)}


ENDS = ("down.0", "up")


def represented(others: Iterable[str] = ()) -> set[str]:
    start = "representation_learner.compound_rep_tokens"
    return {start, *(f"{start}{other}" for other in others)}


#: method -> its folder, config pairs, tokens of its context, trained keys as the published code
#: names them
METHODS = {
    "CoOp": ("prompt_learner", ["TRAINER.COOP.N_CTX", 3], 3, {"ctx"}),
    "CoCoOp": (
        *("prompt_learner", ["TRAINER.COCOOP.CTX_INIT", "a photo of a"], 4),
        {"ctx", *(f"meta_net.linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias"))},
    ),
    "KgCoOp": ("prompt_learner", ["TRAINER.KGCOOP.N_CTX", 3], 3, {"ctx"}),
    "TCP": (
        *("prompt_learner", ["TRAINER.TCP.N_CTX", 4], 4),
        {"ctx", *(f"meta_net.linear{i}.{kind}" for i in (1, 2) for kind in ("weight", "bias"))},
    ),
    "ProGrad": ("prompt_learner", ["TRAINER.PROGRAD.N_CTX", 5], 5, {"ctx"}),
    "CLIPLoRA": (
        *("lora_weights.pt", ["TRAINER.CLIPLORA.POSITION", "half-up"], 0),
        {f"layer_{number}" for number in range(12)},
    ),
    "MMA": (
        *("adapter_learner", ["TRAINER.MMADAPTER.ADAPTER_START", 11], 0),
        {
            f"{name}_adapter.{i}.{part}.{kind}"
            for name, parts in (("text", ENDS), ("visual", ENDS), ("shared", ("0",)))
            for i in (11, 12)
            for part in parts
            for kind in ("weight", "bias")
        },
    ),
    "CLIPAdapter": (
        *("clip_adapter", ["TRAINER.CLIPADAPTER.RATIO", 0.5], 0),
        {"fc.0.weight", "fc.2.weight"},
    ),
    "TaskRes": (
        *("prompt_learner", ["TRAINER.TASKRES.RESIDUAL_SCALE", 0.7], 0),
        {"base_text_features", "text_feature_residuals"},
    ),
    "ZSLP": (
        *("adapter", ["TRAINER.ZSLP.PASSES", 2], 0),
        {"base_text_features", "prototypes", "logit_scale"},
    ),
    "CLAP": (
        *("adapter", ["TRAINER.CLAP.PASSES", 2], 0),
        {"base_text_features", "prototypes", "logit_scale"},
    ),
    "VPT": ("prompt_learner", ["TRAINER.VPT.PROMPT_DEPTH_VISION", 3], 0, image_deep(3)),
    "IVLP": (
        *("VLPromptLearner", ["TRAINER.IVLP.PROMPT_DEPTH_TEXT", 2], 2),
        {"prompt_learner.ctx"} | text_deep(2) | image_deep(9),
    ),
    "PromptSRC": (
        *("VLPromptLearner", ["TRAINER.PROMPTSRC.PROMPT_DEPTH_VISION", 2], 4),
        {"prompt_learner.ctx"} | text_deep(9) | image_deep(2),
    ),
    "MaPLe": (
        *("MultiModalPromptLearner", ["TRAINER.MAPLE.PROMPT_DEPTH", 3], 2),
        coupled(
            *(f"compound_prompt_projections.{k}.{x}" for k in (0, 1) for x in ("weight", "bias"))
        ),
    ),
    "MMRL": (
        *("MultiModalRepresentationLearner", ["TRAINER.MMRL.REP_LAYERS", [11, 12]], 0),
        {"image_encoder.proj_rep"}
        | represented(
            f"_r2{side}proj.{layer}.{x}"
            for side in "tv"
            for layer in (0, 1)
            for x in ("weight", "bias")
        ),
    ),
    "MMRLPlusPlus": (
        *("MultiModalRepresentationLearner", ["TRAINER.MMRLPLUSPLUS.REP_LAYERS", [1, 12]], 0),
        {"image_encoder.A", "image_encoder.B"}
        | represented()
        | {
            f"representation_learner.srra_r2{side}proj.{x}"
            for side in "tv"
            for x in (
                "weight",
                *(f"srra.{k}.{name}" for k in (0, 1) for name in ("A", "B", "bias")),
            )
        },
    ),
    "CoPrompt": (
        *("MultiModalPromptLearner", ["TRAINER.COPROMPT.PROMPT_DEPTH", 3], 2),
        coupled(
            *(f"compound_prompt_projections.{k}.{x}" for k in (0, 1) for x in ("weight", "bias"))
        )
        | {f"adapter_{tower}.fc.{k}.weight" for tower in ("image", "text") for k in (0, 2)},
    ),
    "MPL": (
        *("MultiModalPromptLearner", ["TRAINER.MPL.PROMPT_DEPTH", 3], 2),
        coupled(
            *(
                f"txt2img_proj.{a}.{k}.{x}"
                for a in (0, 1)
                for k in (0, 1)
                for x in ("weight", "bias")
            )
        ),
    ),
}


def frozen(method: str) -> dict[str, torch.Tensor]:
    """Weights of CLIP by their names in the whole model of the published code."""
    found = {}
    for key, value in recorded_clip().items():
        if to_upstream.LAYOUTS[method].second_clip:
            found[f"model_distill.{key}"] = value
        name = key.removeprefix("visual.")
        if name != key:
            found[f"image_encoder.{name}"] = value
            if method == "PromptSRC":
                found[f"prompt_learner.ZS_image_encoder.{name}"] = value
        elif key == "logit_scale":
            found |= {} if to_upstream.LAYOUTS[method].embedded_texts else {key: value}
        elif key != "token_embedding.weight":
            found[f"text_encoder.{key}"] = value
    if to_upstream.LAYOUTS[method].embedded_texts:
        ids = tokenize([f"a photo of a {name.replace('_', ' ')}." for name in CLASSNAMES])
        found["prompt_embeddings"] = recorded_clip()["token_embedding.weight"][ids]
    return found


def run(*words: object) -> int:
    return run_command(
        to_upstream.build_parser(), to_upstream.convert, [str(word) for word in words]
    )


@pytest.fixture
def trained(make_cfg, tmp_path):
    """Function that gives a trainer whose run folder holds an epoch, and its config."""

    def build(method: str, *pairs: object):
        cfg = make_cfg(method, "DATASET.NUM_SHOTS", 2, "TEST.NO_TEST", True, *pairs)
        trainer = build_trainer(cfg)
        with torch.no_grad():
            for parameter in trainer.model.learner.parameters():
                parameter.normal_(std=0.1)
        trainer.save_model(0, cfg.OUTPUT_DIR)
        return trainer, cfg

    return build


@pytest.mark.parametrize("method", [name for name in METHODS if not LAYOUTS[name].file])
def test_keys_and_way_back(trained, tmp_path, method):
    folder, pairs, n_ctx, learned = METHODS[method]
    trainer, cfg = trained(method, *pairs)
    out = tmp_path / "upstream"
    assert run(cfg.OUTPUT_DIR, out) == 0
    assert [p.name for p in out.iterdir()] == [folder]
    assert (out / folder / "checkpoint").read_text() == "model.pth.tar-1\n"

    checkpoint = load_checkpoint(str(out / folder / "model.pth.tar-1"))
    wanted = {"state_dict", "epoch", "optimizer", "scheduler", "val_result"}
    assert set(checkpoint) == wanted and checkpoint["epoch"] == 1
    state, whole = checkpoint["state_dict"], LAYOUTS[method].whole
    start = "prompt_learner." if whole else ""
    buffers = {f"{start}token_prefix", f"{start}token_suffix"} if n_ctx else set()
    kept = frozen(method) if whole else {}
    assert set(state) == learned | buffers | set(kept)
    for key, value in kept.items():
        assert torch.equal(state[key].float(), value), key
    if n_ctx:
        template = dict.fromkeys(("IVLP", "MaPLe", "CoPrompt"), "of a {}.")
        template["MPL"] = "a photo of a {}."
        tails = [template.get(method, "{}.").format(n.replace("_", " ")) for n in CLASSNAMES]
        words = tokenize([" ".join(["X"] * n_ctx + [tail]) for tail in tails])
        embedded = recorded_clip()["token_embedding.weight"][words]
        assert torch.equal(state[f"{start}token_prefix"], embedded[:, :1])
        assert torch.equal(state[f"{start}token_suffix"], embedded[:, 1 + n_ctx :])

    trainer.model.learner.requires_grad_(False)
    if method.startswith("MMRL"):  # what it was trained on is not in the published file
        trainer.model.learner.features = "both"
    images = torch.randn(2, 3, 32, 32)
    expected = trainer.model_inference(images)
    for parameter in trainer.model.learner.parameters():
        parameter.zero_()
    trainer.set_model_mode("eval")
    trainer.load_model(str(out), epoch=1)
    assert torch.equal(trainer.model_inference(images), expected)


@pytest.mark.parametrize("method", [name for name in METHODS if LAYOUTS[name].file])
def test_files_with_a_content_of_their_own(trained, tmp_path, method):
    file, pairs, _, keys = METHODS[method]
    trainer, cfg = trained(method, *pairs)
    out = tmp_path / "upstream"
    assert run(cfg.OUTPUT_DIR, out) == 0
    assert [p.name for p in out.iterdir()] == [file]
    content = torch.load(out / file, weights_only=True)
    assert content["weights"].keys() == keys
    assert content["metadata"] == {
        **{"r": 2, "alpha": 1, "encoder": "both", "position": "half-up"},
        "params": ["q", "k", "v"],
    }
    # text blocks first, each with what was chosen
    for number, width in ((0, 64), (5, 64), (6, 128), (11, 128)):
        layer = content["weights"][f"layer_{number}"]
        assert {name: pair["w_lora_A"].shape for name, pair in layer.items()} == dict.fromkeys(
            ("q_proj", "k_proj", "v_proj"), (2, width)
        )

    images = torch.randn(2, 3, 32, 32)
    expected = trainer.model_inference(images).detach()
    for parameter in trainer.model.learner.parameters():
        parameter.data.zero_()
    trainer.set_model_mode("eval")
    trainer.load_model(str(out / file))
    with torch.no_grad():
        assert torch.equal(trainer.model_inference(images), expected)

    for key, value, message in (
        ("metadata", {**content["metadata"], "r": 4}, "with r 4, this run has 2: set .*CLIPLORA.R"),
        ("weights", {"layer_0": content["weights"]["layer_0"]}, r"text\.7\.q\.down is missing"),
        ("weights", 3, "is damaged"),
    ):
        torch.save({**content, key: value}, out / file)
        with pytest.raises(ValueError, match=message):
            trainer.load_model(str(out / file))
    assert run(cfg.OUTPUT_DIR, out) != 0, "the file is there already"


@pytest.mark.parametrize(("method", "precision"), [("CoOp", "fp16"), ("MaPLe", "amp")])
def test_types_of_frozen_weights(trained, tmp_path, method, precision):
    node = method.upper()
    _, cfg = trained(method, f"TRAINER.{node}.PREC", precision)
    assert run(cfg.OUTPUT_DIR, tmp_path / "out") == 0
    (path,) = (tmp_path / "out").rglob("model.pth.tar-1")
    state = load_checkpoint(str(path))["state_dict"]
    half = {key for key, value in state.items() if value.dtype == torch.float16}
    assert half == ({"token_prefix", "token_suffix"} if precision == "fp16" else set())


def test_promptsrc_keeps_its_teacher_in_half_precision(trained, tmp_path):
    _, cfg = trained("PromptSRC")
    assert run(cfg.OUTPUT_DIR, tmp_path / "out") == 0
    (path,) = (tmp_path / "out").rglob("model.pth.tar-1")
    state = load_checkpoint(str(path))["state_dict"]
    stored = build_model(recorded_clip()).visual.state_dict()
    for key, value in stored.items():
        assert state[f"prompt_learner.ZS_image_encoder.{key}"].dtype == value.dtype
        assert state[f"image_encoder.{key}"].dtype == torch.float32


def test_coop_can_be_resumed(make_cfg, tmp_path):
    """Optimiser and schedule go on after two epochs, the warm-up in upstream's form."""
    schedule = ["OPTIM.LR_SCHEDULER", "cosine", "OPTIM.WARMUP_EPOCH", 1, "OPTIM.MAX_EPOCH", 3]
    schedule += ["OPTIM.WARMUP_TYPE", "constant", "TRAIN.CHECKPOINT_FREQ", 2]
    cfg = make_cfg("CoOp", "DATASET.NUM_SHOTS", 2, "TEST.NO_TEST", True, *schedule)
    trainer = build_trainer(cfg)
    trainer.train()
    assert run(cfg.OUTPUT_DIR, tmp_path / "out", "--load-epoch", 2) == 0
    folder = tmp_path / "out" / "prompt_learner"
    # what upstream reads: an object that goes on from where the schedule was
    raw = torch.load(folder / "model.pth.tar-2", weights_only=False)
    successor = raw["scheduler"]["successor"]
    assert type(successor).__name__ == "CosineAnnealingLR" and successor.T_max == 3
    assert raw["scheduler"]["last_epoch"] == 1 and raw["scheduler"]["verbose"] is False

    fresh = build_trainer(cfg).model.learner
    for name, value in (("token_prefix", (5, 1, 64)), ("token_suffix", (5, 60, 64))):
        fresh.register_buffer(name, torch.zeros(value))
    optim = build_optimizer(fresh, cfg.OPTIM)
    sched = build_lr_scheduler(optim, cfg.OPTIM)
    assert resume_from_checkpoint(str(folder), fresh, optim, sched) == 2
    assert sched.get_last_lr() == raw["scheduler"]["_last_lr"]
    assert sched.get_last_lr() == pytest.approx([0.75 * cfg.OPTIM.LR])  # cos(pi / 3)
    stored = torch.load(f"{cfg.OUTPUT_DIR}/prompt_learner/model.pth.tar-2", weights_only=True)
    momentum = stored["optimizer"]["state"][0]["momentum_buffer"]
    assert torch.equal(optim.state[fresh.ctx]["momentum_buffer"], momentum)
    assert torch.equal(fresh.ctx, stored["state_dict"]["ctx"])


def test_what_cannot_be_written_gets_one_line(trained, tmp_path, tiny_run, capsys):
    def error(*words: object) -> str:
        capsys.readouterr()
        assert run(*words) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and line.count("\n") == 1
        return line

    out = tmp_path / "out"
    assert "'MMLoP' is not in" in error(tiny_run, out)
    assert "no/such/run does not exist" in error("no/such/run", out)
    _, cfg = trained("CoOp")
    assert "prompt_learner exists: name another folder" in error(cfg.OUTPUT_DIR, cfg.OUTPUT_DIR)
    foreign = tmp_path / "foreign"
    assert run(cfg.OUTPUT_DIR, foreign) == 0
    assert "was not written by this toolbox" in error(foreign, out)
    state = recorded_clip() | {"quick_gelu": torch.tensor(False)}
    torch.save(state, tmp_path / "gelu.pt")
    assert "quick_gelu" in error(cfg.OUTPUT_DIR, out, "--backbone", tmp_path / "gelu.pt")
    assert not out.exists()
