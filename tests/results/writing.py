"""Run folders with logs as the engine writes them, and with records as train.py does."""

from __future__ import annotations

from pathlib import Path

from dassl.config import values_of_file
from results.record import identity_in, write
from support.command_line import ROOT

ARGUMENTS = """***************
** Arguments **
***************
backbone: None
config_file: configs/trainers/{trainer}/{config}.yaml
dataset_config_file: configs/datasets/{dataset}.yaml
eval_only: {eval_only}
head: None
load_epoch: None
model_dir: {model_dir}
no_train: False
opts: ['DATASET.NUM_SHOTS', '16']
output_dir: {folder}
resume: None
root: data
seed: 1
trainer: {trainer}
************
** Config **
************
DATALOADER:
  NUM_WORKERS: 8
  TEST:
    BATCH_SIZE: 100
    SAMPLER: SequentialSampler
DATASET:
  NAME: {dataset}
  NUM_SHOTS: 16
INPUT:
  PIXEL_MEAN: [0.48145466, 0.4578275, 0.40821073]
  TRANSFORMS: ('random_resized_crop', 'random_flip', 'normalize')
MODEL:
  BACKBONE:
    NAME: {backbone}
    PRETRAINED: True
  HEAD:
    NAME: {empty}
  INIT_WEIGHTS: {empty}
OPTIM:
  CLIP_GRAD_NORM: {optim[CLIP_GRAD_NORM]}
  LR: {optim[LR]}
  MAX_EPOCH: {optim[MAX_EPOCH]}
  NAME: sgd
OUTPUT_DIR: {folder}
TRAINER:
{node}  NAME: {trainer}
USE_CUDA: True
VERBOSE: True
VERSION: 1
Collecting env info ...
** System info **
PyTorch version: 2.11.0
Is debug build: False

Loading trainer: {trainer}
Loading dataset: {dataset}
---------  ------
Dataset    {dataset}
# classes  5
---------  ------
Loading CLIP (backbone: {backbone})
"""
TRAINING = """No checkpoint found, train from scratch
epoch [1/1] batch [5/5] time 0.109 (0.190) data 0.007 (0.009) loss 2.1850 (2.2732) acc 50.0000 \
(53.7500) lr 1.0000e-02 eta 0:00:18
Checkpoint saved to {folder}/prompt_learner/model.pth.tar-1
Finish training
Deploy the last-epoch model
"""
RESULT = """Evaluate on the *test* set
=> result
* total: 701
* correct: 655
* accuracy: {accuracy:.2f}%
* error: {error:.2f}%
* macro_f1: 50.00%
"""
# What the logs of the methods' shipped settings show, as far as published figures ask for it.
NODES = {
    "CoOp": "CTX_INIT: a photo of a|N_CTX: 4|CSC: False|CLASS_TOKEN_POSITION: end",
    "MaPLe": "N_CTX: 2|PROMPT_DEPTH: 9",
    "MMLoP": "N_CTX: 4|PROMPT_DEPTH: 9|RANK: 1|LOW_RANK: True|SHARED_U: True|CONSISTENCY: True|"
    "DRIFT_CORRECTION: True|LOGIT_LOSS: symmetric|TEXT_PROMPT: replace|INIT_STD: 0.05|"
    "TEXT_LOSS_WEIGHT: 25.0|IMAGE_LOSS_WEIGHT: 10.0|LOGIT_LOSS_WEIGHT: 1.0",
    "ZeroshotCLIP": "",
}


def write_run(
    folder: Path,
    accuracy: float,
    trainer: str,
    dataset: str,
    *,
    config: str = "vit_b16",
    backbone: str = "ViT-B/16",
    parameters: int | None = 2048,
    node: str | None = None,
    optim: dict[str, object] | None = None,
    model_dir: str = "",
    tests: bool = False,
) -> None:
    """Write the log of one run.

    Args:
        folder: the run's.
        accuracy: its result in percent.
        trainer: registry name; ZeroshotCLIP only tests.
        dataset: its config file's name.
        config: the trainer's config file.
        backbone: as in the configuration.
        parameters: the number in the log; None for none.
        node: the trainer's settings, parted by ``|``; those of ``NODES`` when None.
        optim: settings of the optimiser other than those of a run of 30 epochs.
        model_dir: folder of the weights of a test.
        tests: whether the run only tests.
    """
    tests = tests or trainer == "ZeroshotCLIP"
    settings = NODES.get(trainer, "") if node is None else node
    lines = "".join(f"    {line}\n" for line in settings.split("|") if line)
    text = ARGUMENTS.format(
        trainer=trainer,
        config=config,
        dataset=dataset,
        eval_only=tests,
        model_dir=model_dir,
        folder=folder,
        backbone=backbone,
        empty="",
        optim={"CLIP_GRAD_NORM": 0.0, "LR": 0.0025, "MAX_EPOCH": 30} | (optim or {}),
        node=f"  {trainer.upper()}:\n{lines}" if lines else "",
    )
    if parameters is not None and trainer != "ZeroshotCLIP":
        text += f"Trainable parameters: {parameters:,}\n"
    text += "Loading evaluator: Classification\n"
    text += "" if tests else TRAINING.format(folder=folder)
    text += RESULT.format(accuracy=accuracy, error=100 - accuracy)
    text += "" if tests else "Elapsed: 0:00:16\n"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text(text, encoding="utf-8")


def base2new(
    output: Path, dataset: str, trainer: str, seeds: dict[int, tuple[float, float]], **run
) -> None:
    """Write base-to-new runs, {seed: (base, new)}; further arguments as for ``write_run``."""
    config, shots = run.get("config", "vit_b16"), run.pop("shots", 16)
    for seed, (base, new) in seeds.items():
        tail = f"{dataset}/shots_{shots}/{trainer}/{config}/seed{seed}"
        trained = output / "base2new/train_base" / tail
        write_run(trained, base, trainer, dataset, **run)
        weights = "" if trainer == "ZeroshotCLIP" else str(trained)
        folder = output / "base2new/test_new" / tail
        write_run(folder, new, trainer, dataset, model_dir=weights, tests=True, **run)


def few_shot(
    output: Path, dataset: str, trainer: str, shots: int | str, accuracies: dict[int, float], **run
) -> None:
    """Write few-shot runs, {seed: accuracy}; on ImageNet also those that transfer starts from."""
    config = run.get("config", "vit_b16")
    for seed, accuracy in accuracies.items():
        folder = output / dataset / trainer / f"{config}_{shots}shots" / f"seed{seed}"
        write_run(folder, accuracy, trainer, dataset, **run)


def transfer(
    output: Path,
    dataset: str,
    trainer: str,
    accuracies: dict[int, float],
    source: str = "imagenet",
    **run,
) -> None:
    """Write tests of models trained on a source data set, {seed: accuracy}."""
    name = f"{trainer}/{run.get('config', 'vit_b16')}_{run.pop('shots', 16)}shots"
    origin = "" if source == "imagenet" else f"from_{source}/"
    for seed, accuracy in accuracies.items():
        folder = output / "evaluation" / name / f"{origin}{dataset}/seed{seed}"
        weights = "" if trainer == "ZeroshotCLIP" else f"output/{source}/{name}/seed{seed}"
        write_run(folder, accuracy, trainer, dataset, model_dir=weights, tests=True, **run)


def write_record(
    folder: Path,
    correct: int,
    trainer: str = "CoOp",
    dataset: str = "dtd",
    *,
    seed: int = 1,
    total: int = 100_000,
    settings: dict[str, object] | None = None,
    part: str = "all",
    of: Path | None = None,
    test_images: str = "t",
    train_images: str = "",
    chosen_on: str | None = None,
    shots: int = 16,
    parameters: int = 2048,
) -> None:
    """Write the record of one run, as train.py does.

    Args:
        folder: the run's.
        correct: number of test images that it tells.
        trainer: registry name; ZeroshotCLIP learns nothing.
        dataset: its config file's name.
        seed: of the run.
        total: number of test images.
        settings: config key -> value, other than those of the other runs.
        part: base, new or all classes.
        of: run whose weights it tests.
        test_images: stands for the list of them.
        train_images: stands for what the seed draws besides.
        chosen_on: split that chose the epoch.
        shots: images of each class that it learned from.
        parameters: number of those that it trains.
    """
    config: dict[str, dict] = {}
    zero_shot = trainer == "ZeroshotCLIP"
    file = ROOT / "configs" / "datasets" / f"{dataset}.yaml"
    registered = values_of_file(str(file))["DATASET.NAME"] if file.is_file() else dataset
    given = {
        "DATASET.NAME": registered,
        "DATASET.NUM_SHOTS": shots,
        "DATASET.SUBSAMPLE_CLASSES": part,
        "MODEL.BACKBONE.NAME": "ViT-B/16",
        "OPTIM.LR": 0.002,
        "OPTIM.MAX_EPOCH": 50,
        "TRAINER.NAME": trainer,
        f"TRAINER.{trainer.upper()}.N_CTX": 4,
    } | (settings or {})
    for key, value in given.items():
        *parents, last = key.split(".")
        node = config
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    images = {"images": 10, "sha256": f"{dataset}, seed {seed} {train_images}"}
    accuracy = 100 * correct / total
    write(
        folder,
        {
            "method": trainer,
            "eval_only": of is not None,
            "seed": seed,
            "seeds_together": None,
            "shots": shots,
            "images_per_class": {"least": shots, "most": shots},
            "data": {
                "name": registered,
                "classes": {"number": 2, "sha256": f"{dataset} {part}", "names": ["a", "b"]},
                "train": images,
                "train_u": None,
                "val": None,
                "test": {"images": total, "sha256": f"{dataset} {part} {test_images}"},
            },
            "model": {
                "epoch": 50,
                "chosen_on": chosen_on,
                "val_result": None,
                "model_dir": None if of is None else str(of),
                "load_epoch": None,
                "trained": None if of is None else identity_in(of),
            },
            "result": {
                "split": "test",
                "metrics": {"accuracy": accuracy, "error_rate": 100 - accuracy},
                "total": total,
                "correct": correct,
                "per_class": [],
            },
            "not_tested": None,
            "parameters": 0 if zero_shot else parameters,
            "device": {"type": "cpu", "name": "CPU"},
            "started": "2026-01-01T00:00:00+00:00",
            "ended": "2026-01-01T00:01:00+00:00",
            "seconds": {
                "training": None if of or zero_shot else 40.0 + seed,
                **{"epochs": [], "testing": 1.0},
            },
            "memory": {"host_bytes": None, "cuda_bytes": None},
            "versions": {"library": "0"},
            "git": None,
            "environment": "",
            "config": config,
            "given": dict.fromkeys(settings or {}, "KEY VALUE"),
            "arguments": {"dataset_config_file": f"configs/datasets/{dataset}.yaml"},
        },
    )
