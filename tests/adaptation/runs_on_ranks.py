"""Short runs of every method, in one process or shared by several that ``torchrun`` starts.

``python -m tests.adaptation.runs_on_ranks OUT DATA_ROOT`` leaves ``OUT/<case>.pt`` for each run.
"""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import torch

import train
from adaptation.savings import rank_texts
from dassl.config import CfgNode
from dassl.engine import TRAINER_REGISTRY, build_trainer
from dassl.utils import ranks, set_random_seed
from support.ending import REQUEST, ToldToEnd
from tests.compat.upstream_trainer import UpstreamCoOp
from tests.trainers.test_contract import METHODS, node

ROOT = Path(__file__).parents[2]
SOURCE_NAMES = ("pen", "cat", "dog", "lorry", "axe", "fir", "newt", "rose")


@TRAINER_REGISTRY.register()
class OwnCoOp(UpstreamCoOp):
    """A trainer as published code has them, that says what its loss is."""

    splits_batches = True

    @staticmethod
    def extend_cfg(cfg):
        cfg.TRAINER.UPSTREAMCOOP = CfgNode({"N_CTX": 4, "CTX_INIT": "", "PREC": "fp32"})


@TRAINER_REGISTRY.register()
class Drawing(OwnCoOp):
    """A trainer whose steps draw as many random numbers as there are images."""

    def forward_backward(self, batch):
        torch.rand(len(batch["label"]))
        return super().forward_backward(batch)


WITHOUT_L1 = ["TRAINER.MMLOP.TEXT_LOSS_WEIGHT", "0.0", "TRAINER.MMLOP.IMAGE_LOSS_WEIGHT", "0.0"]

#: name -> method and config pairs that differ from those below
CASES: dict[str, tuple[str, list[str]]] = {method: (method, []) for method in METHODS} | {
    "zero-shot": ("ZeroshotCLIP", []),
    # it takes no steps, so that it is not among METHODS
    "a cache": ("TipAdapter", []),
    "batches of one image": (
        "CoCoOp",
        ["DATASET.NUM_SHOTS", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "1"],
    ),
    "one batch, incomplete": (
        "CoOp",
        ["DATASET.NUM_SHOTS", "1", "DATALOADER.TRAIN_X.BATCH_SIZE", "16"],
    ),
    "scaled and clipped": ("MMLoP", [f"{node('MMLoP')}.PREC", "amp", "OPTIM.CLIP_GRAD_NORM", "1"]),
    "chosen and clipped": (
        "PromptSRC",
        ["TEST.FINAL_MODEL", "best_val", "OPTIM.CLIP_GRAD_NORM", "0.1", "OPTIM.MAX_EPOCH", "2"],
    ),
    "workers and pixels": (
        "MaPLe",
        ["DATALOADER.NUM_WORKERS", "1", "DATALOADER.CACHE", "fast"],
    ),
    "texts not shared out": ("MMLoP", []),
    "contexts of every class": ("CoOp", ["TRAINER.COOP.CSC", "True", "TRAINER.COOP.CTX_INIT", ""]),
    "told to end": ("MMLoP", ["OPTIM.MAX_EPOCH", "2", *WITHOUT_L1]),
    "mapped anew": ("LoRVP", ["TRAINER.LORVP.HEAD", "ilm", "OPTIM.MAX_EPOCH", "2"]),
    "trainer of one's own": ("OwnCoOp", []),
    # the sentences of these images, not of the toolbox's own
    "CoPrompt": ("CoPrompt", ["TRAINER.COPROMPT.SENTENCES", "gpt_file"]),
    # AdamW divides a gradient by its size, however near rounding that is: noise of 1e-7 in the
    # frozen weights moves the maps of one process by up to 4e-2 with it, and 2 processes differ by
    # 4e-6 without it
    "MMRL": ("MMRL", ["OPTIM.NAME", "sgd"]),
    "MMRLPlusPlus": ("MMRLPlusPlus", ["OPTIM.NAME", "sgd"]),
    # dropout is refused
    "CLIPLoRA": ("CLIPLoRA", ["TRAINER.CLIPLORA.DROPOUT", "0.0"]),
    # two stages, and a short batch at the end of an epoch
    "TwoStageFS": ("TwoStageFS", ["OPTIM.MAX_ITERATIONS", "9", "DATALOADER.DROP_LAST", "False"]),
}


#: what several processes find that they cannot share
REFUSED = {"random steps": ("Drawing", ["OPTIM.MAX_EPOCH", "2"])}


def run(name: str, out: Path, data_root: str) -> None:
    """Train and test; keep weights, scalars, test outputs and results."""
    method, pairs = (CASES | REFUSED)[name]
    rank_texts.LEAST_CLASSES = 100 if name == "texts not shared out" else 1
    if method == "LoRVP" and pairs:
        pairs = [*pairs, "TRAINER.LORVP.SOURCE_NAMES", str(out / "names.txt")]
    file = ROOT / f"configs/trainers/{method}/tiny.yaml"
    words = ["--trainer", method, "--root", data_root, "--seed", "1"]
    words += ["--output-dir", str(out / name), "--backbone", "tiny"]
    words += ["--config-file", str(file if file.is_file() else ROOT / "configs/tiny.yaml")]
    words += ["DATASET.NAME", "TestImages", "DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "1"]
    words += ["OPTIM.WARMUP_EPOCH", "-1", "DATALOADER.TRAIN_X.BATCH_SIZE", "5"]
    words += ["DATALOADER.TEST.BATCH_SIZE", "7", "DATALOADER.NUM_WORKERS", "0"]
    words += ["INPUT.SEEDED_VIEWS", "True", "USE_CUDA", "False", *pairs]
    cfg = train.setup_cfg(train.build_parser().parse_args(words))
    if name == "told to end":
        begin_only(cfg)
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    scalars, outputs = [], []
    process = trainer.evaluator.process

    def process_and_keep(output, label):
        outputs.append((output, label))
        process(output, label)

    trainer.evaluator.process = process_and_keep
    trainer.write_scalar = lambda tag, value, step: scalars.append((tag, value, step))
    trainer.train()
    ranks.check_agreement({"result": trainer.best_result})
    if ranks.is_main():
        kept = {
            "weights": {key: trainer._models[key].state_dict() for key in trainer._models},
            "scalars": [entry for entry in scalars if entry[0] != "train/acc"],
            "outputs": torch.cat([output for output, _ in outputs]),
            "labels": torch.cat([label for _, label in outputs]),
            "results": dict(trainer.run_notes.results),
        }
        torch.save(kept, out / f"{name}.pt")


def begin_only(cfg) -> None:
    """Have a signal come to the last process in a step; all save and end after that step."""
    set_random_seed(cfg.SEED)
    trainer = build_trainer(cfg)
    step = trainer.forward_backward

    def told(batch):
        if trainer.epoch == 1 and trainer.batch_idx == 2:
            REQUEST.number = signal.SIGTERM if ranks.rank() == ranks.world_size() - 1 else None
        return step(batch)

    trainer.forward_backward = told
    try:
        trainer.train()
    except ToldToEnd:
        ranks.check_agreement({"step": trainer.batch_idx, "epoch": trainer.epoch})
        assert (trainer.epoch, trainer.batch_idx) == (1, 2)
    else:
        raise AssertionError("the run did not end")
    finally:
        REQUEST.clear()


def main(out: str, data_root: str) -> None:
    """Do all runs."""
    torch.set_num_threads(1)
    ranks.silence_others()
    ranks.join(use_cuda=False)
    folder = Path(out)
    with ranks.main_first():
        folder.mkdir(exist_ok=True)
        (folder / "names.txt").write_text("\n".join(SOURCE_NAMES))
    for name in CASES:
        print(f"*** {name}", flush=True)
        run(name, folder, data_root)
    print("--- refused", flush=True)
    for name in REFUSED:
        try:
            run(name, folder, data_root)
        except ranks.RankError as error:
            print(f"{name}: {error}")


if __name__ == "__main__":
    import tests.conftest  # noqa: F401  registers the images

    main(*sys.argv[1:])
