"""The shipped files of the methods, under upstream's names, against the values of upstream's files.

One row per file of the CoOp, MaPLe, PromptSRC and MPL repositories. Those that several of them hold
alike are listed once.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

import datasets
import trainers
from dassl.config import CfgNode, data_sets_of_file, get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import config_node

CONFIGS = Path(__file__).parents[1] / "configs"
ALIASES = yaml.safe_load((CONFIGS / "aliases.yaml").read_text())
WORDS = "a photo of a"


def row(backbone: str, batch: int, epochs: int, lr: float, print_freq: int = 20, **own: object):
    """What a file sets: common keys, and those of the trainer's node."""
    common = {
        "MODEL.BACKBONE.NAME": backbone,
        "DATALOADER.TRAIN_X.BATCH_SIZE": batch,
        "OPTIM.MAX_EPOCH": epochs,
        "OPTIM.LR": lr,
        "TRAIN.PRINT_FREQ": print_freq,
    }
    return common, {"PREC": "fp16"} | own


def coop(backbone: str, epochs: int, **own: object):
    return row(backbone, 32, epochs, 0.002, 5, **{"N_CTX": 16, "CTX_INIT": "", "CSC": False} | own)


def cocoop(n_ctx: int, words: str = ""):
    return row("ViT-B/16", 1, 10, 0.002, N_CTX=n_ctx, CTX_INIT=words)


def vit(epochs: int, lr: float, **own: object):
    return row("ViT-B/16", 4, epochs, lr, **own)


def both(vision: int, text: int, depth: int, **own: object):
    """Prompts in both encoders; without tokens there is no depth."""
    tokens = {"N_CTX_VISION": vision, "N_CTX_TEXT": text}
    depths = {"PROMPT_DEPTH_VISION": depth if vision else 0, "PROMPT_DEPTH_TEXT": depth}
    return {**tokens, **depths, "CTX_INIT": WORDS, **own}


V1 = {"N_CTX": 4, "CTX_INIT": WORDS}
MPL = {"N_CTX": 1, "N_ADD_OP": 2, "N_RM_OP": 1, "CTX_INIT": WORDS}


def kgcoop(backbone: str):
    return row(backbone, 128, 100, 0.002, N_CTX=4, CSC=False, CTX_INIT=WORDS, W=8.0)


def prograd(backbone: str, epochs: int, share: float = 1.0):
    own = {"N_CTX": 16, "CSC": False, "CTX_INIT": True, "T": 1.0, "LAMBDA": share}
    return row(backbone, 32, epochs, 0.002, 5, **own)


def per_step(iterations: int, test_batch: int, **own: object):
    """AdamW with a rate for every step, whose number goes by the shots."""
    common, own = row("ViT-B/16", 32, 10, 2e-4, PREC="amp", **own)
    optim = {
        **{"NAME": "adamw", "WEIGHT_DECAY": 1e-2, "ADAM_BETA1": 0.9, "ADAM_BETA2": 0.999},
        **{"ADAM_EPS": 1e-8, "MIN_LR": 1e-6, "SCHEDULE_PER": "batch", "WARMUP_EPOCH": -1},
        **{"MAX_ITERATIONS": iterations, "ITERATIONS_PER_SHOT": True},
    }
    common |= {f"OPTIM.{key}": value for key, value in optim.items()}
    common |= {"DATALOADER.DROP_LAST": False, "DATALOADER.TEST.BATCH_SIZE": test_batch}
    return common, own


def mma(batch: int, epochs: int, start: int):
    common, own = row("ViT-B/16", batch, epochs, 0.0015, PREC="amp", TEXT_CTX_INIT=WORDS)
    adapters = {"START": start, "END": 12, "DIM": 32, "SCALE": 0.001}
    own |= {f"ADAPTER_{key}": value for key, value in adapters.items()}
    return {**common, "OPTIM.WARMUP_EPOCH": 0}, own


def taskres(backbone: str):
    """Its scripts give the rate, the epochs, and the scale of Flowers."""

    def of(rate: float, scale: float, epochs: int):
        common, own = row(backbone, 256, epochs, rate, RESIDUAL_SCALE=scale)
        adam = {"OPTIM.NAME": "adam", "DATALOADER.TEST.BATCH_SIZE": 500}
        return {**common, **adam}, {**own, "ENHANCED_BASE": "", "KEEP_UNDERSCORES": True}

    settings = {"": (0.002, 0.5), "_lr2e-4": (0.0002, 0.5), "_scale1": (0.002, 1.0)}
    return {
        f"{name}{length}": of(*values, epochs)
        for name, values in settings.items()
        for length, epochs in (("", 200), ("_ep100", 100))
    }


def prototypes(backbone: str, **own: object):
    common, own = row(backbone, 256, 300, 0.1, PASSES=20, KEEP_UNDERSCORES=True, **own)
    return {**common, "OPTIM.WEIGHT_DECAY": 0.0}, own


def mmrl(batch: int, epochs: int, lr: float = 0.001, **own: object):
    common, own = row("ViT-B/16", batch, epochs, lr, **{"REG_WEIGHT": 1.0} | own)
    common |= {"OPTIM.NAME": "adamw", "INPUT.RRCROP_SCALE": (0.5, 1.0)}
    sizes = {"ALPHA": 0.7, "REP_LAYERS": [6, 7, 8, 9, 10, 11, 12], "N_REP_TOKENS": 5}
    own |= {"PREC": "amp", "REP_DIM": 512, **sizes}
    return {**common, "DATALOADER.TEST.BATCH_SIZE": 250}, own


def mmrl_transferred(**own: object):
    common, own = mmrl(32, 1, **own)
    return {**common, "OPTIM.WARMUP_EPOCH": -1}, own


def coprompt(n_ctx: int, depth: int, weight: float):
    common, own = vit(8, 0.0035, N_CTX=n_ctx, PROMPT_DEPTH=depth, CTX_INIT=WORDS, W=weight)
    views = {"DATALOADER.K_TRANSFORMS": 2, "INPUT.TRANSFORMS": ("randaugment", "normalize")}
    return {**common, **views}, {**own, "DISTILL": "cosine"}


def tcp(epochs: int):
    common, own = row("ViT-B/16", 32, epochs, 0.002, N_CTX=4, CTX_INIT="", BLOCK=8, W=8.0)
    adam = {"OPTIM.NAME": "adam", "OPTIM.ADAM_EPS": 1e-3, "DATALOADER.TEST.BATCH_SIZE": 500}
    return {**common, **adam}, own


#: end of a file's name -> upper ends of the search for beta and alpha, first alpha
SEARCHES = {
    "": (7.0, 3.0, 1.17),
    "_imagenet": (7.0, 3.0, 1.17),
    "_ucf101": (7.0, 3.0, 3.0),
    "_caltech101": (12.0, 5.0, 3.0),
    "_eurosat": (12.0, 10.0, 2.0),
    "_sun397": (12.0, 10.0, 1.17),
    "_dtd": (13.0, 13.0, 2.0),
    "_food101": (10.0, 10.0, 1.17),
    "_stanford_cars": (20.0, 10.0, 3.0),
    "_fgvc_aircraft": (30.0, 30.0, 5.0),
    "_oxford_flowers": (50.0, 50.0, 10.0),
}
HALF_CROPS = {"INPUT.RRCROP_SCALE": (0.5, 1.0), "DATASET.REFILL": True}


def tip(backbone: str, trained: bool):
    """Its files, of which ImageNet's here searches nothing: there are no validation images."""

    def of(end: str, beta: float, alpha: float, first: float):
        # without steps there is neither an optimiser nor a rate
        common, own = row(backbone, 256, 1, 0.0003, INIT_BETA=1.0, INIT_ALPHA=first)
        common |= HALF_CROPS | {"DATASET.VAL_SHOTS": "all"}
        own |= {"SEARCH_SCALE": (beta, alpha), "SEARCH_STEP": (200, 20), "AUGMENT_EPOCH": 10}
        own |= {"SCALE": 100.0, "SEARCH": end != "_imagenet", "SELECT_ON": "val"}
        if trained:
            adamw = {"NAME": "adamw", "LR": 0.001, "WEIGHT_DECAY": 0.01, "ADAM_EPS": 1e-4}
            adamw |= {"SCHEDULE_PER": "batch", "WARMUP_EPOCH": 0}
            common |= {f"OPTIM.{key}": value for key, value in adamw.items()}
            common["OPTIM.MAX_EPOCH"] = 100 if end == "_eurosat" else 20
            common["TEST.FINAL_MODEL"] = "last_step" if end == "_imagenet" else "best_val"
        return common, own

    return {end: of(end, *values) for end, values in SEARCHES.items()}


def lppp(backbone: str, chosen: str):
    own = {"ALPHA_EVERY": 10, "ALPHA_INIT": 250.0, "ACCUMULATE_ALPHA_GRAD": True, "BIAS": True}
    common, own = row(backbone, 32, 300, 1.0, **own)
    constant = {"WEIGHT_DECAY": 0.0, "LR_SCHEDULER": "single_step", "WARMUP_EPOCH": 0}
    common |= HALF_CROPS | {f"OPTIM.{key}": value for key, value in constant.items()}
    return {**common, "DATASET.VAL_SHOTS": "same", "TEST.FINAL_MODEL": chosen}, own


BACKBONES = (("rn50", "RN50"), ("vit_b16", "ViT-B/16"))
RANKS = {"BETA": 0.9, "PROJ_LORA_DIM": 64, "RES_LORA_DIM": 4}

UPSTREAM = {
    "TCP": {"vit_b16_ep50": tcp(50), "vit_b16_ep25": tcp(25)},
    **{
        trainer: {
            f"{name}{end}": values
            for name, backbone in BACKBONES
            for end, values in tip(backbone, trained).items()
        }
        for trainer, trained in (("TipAdapter", False), ("TipAdapterF", True))
    },
    "LPPlusPlus": {
        f"{name}{end}": lppp(backbone, chosen)
        for name, backbone in BACKBONES
        for end, chosen in (("", "best_val"), ("_imagenet", "last_step"))
    },
    # arguments of a script, without files
    "CLIPLoRA": {
        "vit_b16": per_step(
            *(500, 256),
            **{"ENCODER": "both", "POSITION": "all", "PARAMS": ("q", "k", "v"), "R": 2},
            **{"ALPHA": 1.0, "DROPOUT": 0.25},
        )
    },
    "TwoStageFS": {
        "vit_b16": per_step(
            *(300, 32),
            **{"N_ITERS_FRAC": 0.6, "LN_MODALITY": "both"},
            **{"LN_VISION_START": 0, "LN_TEXT_START": 0},
        )
    },
    # the last one is of the paper, for which there is no file
    "MMA": {
        "vit_b16_ep5": mma(16, 5, 5),
        "vit_b16_ep5_imnet": mma(128, 5, 5),
        "vit_b16_ep1_start9": mma(128, 1, 9),
    },
    "MMRL": {
        "vit_b16": mmrl(4, 10),
        "vit_b16_imagenet": mmrl(32, 5),
        "vit_b16_few_shot": mmrl(32, 50, REG_WEIGHT=0.5, FEATURES="both"),
        "vit_b16_cross_datasets": mmrl_transferred(REG_WEIGHT=0.2),
    },
    "MMRLPlusPlus": {
        "vit_b16": mmrl(4, 10, **RANKS),
        "vit_b16_imagenet": mmrl(32, 5, **RANKS),
        "vit_b16_few_shot": mmrl(32, 100, 0.002, FEATURES="both", **RANKS),
        # the weight is that of the table in its train.py, which wins over the file's 0.2
        "vit_b16_cross_datasets": mmrl_transferred(REG_WEIGHT=0.1, **RANKS),
        "vit_b16_cross_datasets_own_beta": mmrl_transferred(REG_WEIGHT=0.1, **RANKS),
    },
    "CoPrompt": {
        "coprompt": coprompt(2, 9, 1.0),
        # nothing is published: ImageNet's of the table
        "vit_b16_cross_datasets": coprompt(4, 12, 8.0),
    },
    "ZSLP": {"rn50": prototypes("RN50"), "vit_b16": prototypes("ViT-B/16")},
    "CLAP": {
        "rn50": prototypes("RN50", CONSTRAINT="l2"),
        "vit_b16": prototypes("ViT-B/16", CONSTRAINT="l2"),
    },
    "TaskRes": {
        f"{name}{setting}": values
        for name, backbone in BACKBONES
        for setting, values in taskres(backbone).items()
    },
    # the readme says to take CoOp's
    "CLIPAdapter": {
        f"{name}_ep50": row(backbone, 32, 50, 0.002, 5, PREC="fp32", RATIO=0.2, REDUCTION=4)
        for name, backbone in BACKBONES
    },
    "KgCoOp": {
        "vit_b16_ep100_ctxv1": kgcoop("ViT-B/16"),
        "rn50_ep100": kgcoop("RN50"),
    },
    # upstream's are those of ResNet-50; its readme has the smaller share
    "ProGrad": {
        f"{name}{setting}": prograd(backbone, *values)
        for name, backbone in BACKBONES
        for setting, values in (
            ("", (200,)),
            ("_ep50", (50,)),
            ("_ep100", (100,)),
            ("_lambda08", (200, 0.8)),
        )
    },
    "CoOp": {
        "rn50": coop("RN50", 200),
        "rn101": coop("RN101", 200),
        "vit_b16": coop("ViT-B/16", 200),
        "vit_b32": coop("ViT-B/32", 200),
        "rn50_ep100": coop("RN50", 100),
        "vit_b16_ep100": coop("ViT-B/16", 100),
        "rn50_ep50": coop("RN50", 50),
        "rn101_ep50": coop("RN101", 50),
        "vit_b16_ep50": coop("ViT-B/16", 50),
        "vit_b32_ep50": coop("ViT-B/32", 50),
        "rn50_ctxv1": coop("RN50", 200, **V1),
        "rn50_ep50_ctxv1": coop("RN50", 50, **V1),
        "vit_b16_ctxv1": coop("ViT-B/16", 200, **V1),
        "vit_b16_ep100_ctxv1": coop("ViT-B/16", 100, **V1),
        "vit_b16_ep50_ctxv1": coop("ViT-B/16", 50, **V1),
    },
    "CoCoOp": {
        "vit_b16_c4_ep10_batch1_ctxv1": cocoop(4, WORDS),
        "vit_b16_c4_ep10_batch1": cocoop(4),
        "vit_b16_c8_ep10_batch1": cocoop(8),
        "vit_b16_c16_ep10_batch1": cocoop(16),
    },
    "MaPLe": {
        "vit_b16_c2_ep5_batch4_2ctx": vit(5, 0.0035, N_CTX=2, PROMPT_DEPTH=9, CTX_INIT=WORDS),
        # PromptSRC's file of the same name
        "vit_b16_c2_ep2_batch4_2ctx": vit(2, 0.0035, N_CTX=2, PROMPT_DEPTH=9, CTX_INIT=WORDS),
        "vit_b16_c2_ep5_batch4_2ctx_cross_datasets": vit(
            2, 0.0026, N_CTX=2, PROMPT_DEPTH=3, CTX_INIT=WORDS
        ),
    },
    "IVLP": {
        "vit_b16_c2_ep5_batch4_2+2ctx": vit(5, 0.0035, **both(2, 2, 12)),
        "vit_b16_c2_ep5_batch4_4ctx_language_only": vit(5, 0.0025, **both(0, 4, 12)),
        "vit_b16_c2_ep20_batch4_4+4ctx": vit(20, 0.0025, **both(4, 4, 9)),
    },
    "VPT": {
        "vit_b16_c2_ep5_batch4_4": vit(5, 0.0025, N_CTX_VISION=8, PROMPT_DEPTH_VISION=12),
    },
    "PromptSRC": {
        "vit_b16_c2_ep20_batch4_4+4ctx": vit(20, 0.0025, **both(4, 4, 9, GPA_MEAN=15, GPA_STD=1)),
        "vit_b16_c2_ep20_batch4_4+4ctx_cross_datasets": vit(
            20, 0.0025, **both(4, 4, 3, GPA_MEAN=6, GPA_STD=10)
        ),
        "vit_b16_c2_ep50_batch4_4+4ctx_few_shot": vit(
            50, 0.0025, **both(4, 4, 9, GPA_MEAN=30, GPA_STD=30)
        ),
        # the same file with other lines commented out
        "vit_b16_c4_ep50_batch4_4+4ctx_few_shot_gpa45": vit(
            50, 0.0025, **both(4, 4, 9, GPA_MEAN=45, GPA_STD=5)
        ),
    },
    "MPL": {
        "vit_b4_c1_add2_rm1": vit(5, 0.0035, PROMPT_DEPTH=9, **MPL),
        "vit_b4_c1_add2_rm1_cross_datasets": vit(2, 0.0026, PROMPT_DEPTH=3, **MPL),
    },
}
FILES = [(trainer, name) for trainer, rows in UPSTREAM.items() for name in rows]

SHARED = {
    "DATALOADER.NUM_WORKERS": 8,
    "INPUT.SIZE": (224, 224),
    "INPUT.INTERPOLATION": "bicubic",
    "INPUT.PIXEL_MEAN": [0.48145466, 0.4578275, 0.40821073],
    "INPUT.PIXEL_STD": [0.26862954, 0.26130258, 0.27577711],
    "OPTIM.NAME": "sgd",
    "OPTIM.MOMENTUM": 0.9,
    "OPTIM.WEIGHT_DECAY": 5e-4,
    "OPTIM.LR_SCHEDULER": "cosine",
    "OPTIM.WARMUP_EPOCH": 1,
    "OPTIM.WARMUP_TYPE": "constant",
    "OPTIM.WARMUP_CONS_LR": 1e-5,
    "TEST.FINAL_MODEL": "last_step",
}
TRAINING = {
    "DATALOADER.TEST.BATCH_SIZE": 100,
    "INPUT.TRANSFORMS": ("random_resized_crop", "random_flip", "normalize"),
}


def read(trainer: str, name: str, data_set: str = "") -> CfgNode:
    """Defaults and a shipped file, by its name here or upstream."""
    cfg = get_cfg_default()
    trainers.extend_cfg(cfg)
    datasets.extend_cfg(cfg)
    name = ALIASES.get(trainer, {}).get(name, name)
    cfg.merge_from_file(str(CONFIGS / "trainers" / trainer / f"{name}.yaml"), data_set)
    return cfg


def value(cfg: CfgNode, key: str) -> object:
    for part in key.split("."):
        cfg = cfg[part]
    return cfg


@pytest.mark.parametrize(("trainer", "name"), FILES)
def test_values_are_upstreams(trainer, name):
    cfg = read(trainer, name)
    common, own = UPSTREAM[trainer][name]
    wanted = {**SHARED, **TRAINING, **common}
    wanted |= {f"TRAINER.{config_node(trainer)}.{key}": item for key, item in own.items()}
    assert {key: value(cfg, key) for key in wanted} == wanted


ELEVEN = (
    *("ImageNet", "Caltech101", "OxfordPets", "StanfordCars", "OxfordFlowers", "Food101"),
    *("FGVCAircraft", "SUN397", "DescribableTextures", "EuroSAT", "UCF101"),
)
VARIANTS = ("ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")
WEIGHTS = (0.5, 0.5, 0.2, 7.0, 4.0, 5.0, 6.0, 6.0, 6.0, 0.01, 3.0)
WEIGHTS_PLUS = (0.2, 3.0, 0.01, 6.0, 7.0, 1.0, 2.0, 3.0, 7.0, 0.01, 3.0)
BETAS = (0.9, 0.6, 0.7, 0.7, 0.4, 0.1, 0.9, 0.5, 0.9, 0.2, 0.9)
BETAS_OF_TARGETS = (0.9, 0.6, 0.6, 0.3, 0.4, 0.3, 0.9, 0.7, 0.5, 0.3, 0.9, 0.9, 0.7, 0.8, 0.9)
#: (trainer, file, key) -> values of the tables in the published train.py, in the order of ELEVEN
TABLES = {
    ("MMRL", "vit_b16", "REG_WEIGHT"): WEIGHTS,
    ("MMRL", "vit_b16_imagenet", "REG_WEIGHT"): WEIGHTS,
    ("MMRL", "vit_b16_few_shot", "REG_WEIGHT"): WEIGHTS,
    ("MMRL", "vit_b16", "REP_DIM"): (*9 * (512,), 2048, 512),
    ("MMRL", "vit_b16_cross_datasets", "REP_DIM"): 11 * (512,),
    ("MMRLPlusPlus", "vit_b16", "REG_WEIGHT"): WEIGHTS_PLUS,
    ("MMRLPlusPlus", "vit_b16_few_shot", "BETA"): BETAS,
    ("MMRLPlusPlus", "vit_b16_cross_datasets", "BETA"): 15 * (0.9,),
    ("MMRLPlusPlus", "vit_b16_cross_datasets_own_beta", "BETA"): BETAS_OF_TARGETS,
    ("CoPrompt", "coprompt", "PROMPT_DEPTH"): (12, 12, 12, 12, 9, 9, 9, 12, 12, 12, 12),
    ("CoPrompt", "coprompt", "N_CTX"): (4, 4, 2, 4, 4, 4, 4, 4, 2, 2, 4),
    ("CoPrompt", "coprompt", "W"): (8.0, 4.0, 0.1, 4.0, 8.0, 0.5, 2.0, 8.0, 8.0, 0.1, 2.0),
}


@pytest.mark.parametrize(("trainer", "name", "key"), TABLES, ids=str)
def test_values_for_single_data_sets(trainer, name, key):
    values = TABLES[trainer, name, key]
    for data_set, wanted in zip((*ELEVEN, *VARIANTS), values, strict=False):
        assert read(trainer, name, data_set).TRAINER[trainer.upper()][key] == wanted, data_set
    if trainer == "CoPrompt":
        epochs = {data_set: read(trainer, name, data_set).OPTIM.MAX_EPOCH for data_set in ELEVEN}
        assert epochs == dict.fromkeys(ELEVEN, 8) | {"Food101": 5}


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("trainers/*/*.yaml")), ids=lambda f: f.stem)
def test_data_sets_with_settings_of_their_own_are_known(file):
    for data_set in data_sets_of_file(str(file)):
        assert data_set in DATASET_REGISTRY
        read(file.parent.name, file.stem, data_set)


def test_file_for_features():
    cfg = read("CoOp", "rn50_val")
    wanted = {
        **SHARED,
        "MODEL.BACKBONE.NAME": "RN50",
        "DATALOADER.TEST.BATCH_SIZE": 200,
        "DATALOADER.TRAIN_X.BATCH_SIZE": 200,
    }
    assert {key: value(cfg, key) for key in wanted} == wanted
    assert not {"random_resized_crop", "random_flip"} & {*cfg.INPUT.TRANSFORMS}


def test_every_file_of_these_methods_is_in_the_table():
    folders = {path.name for path in (CONFIGS / "trainers").iterdir()}
    # a method of its own with a test above, one without settings, and one for another task
    assert folders - {*UPSTREAM} == {"MMLoP", "ZeroshotCLIP", "LoRVP"}
    for trainer, rows in UPSTREAM.items():
        found = {file.stem for file in (CONFIGS / "trainers" / trainer).glob("*.yaml")}
        found = {name for name in found if not name.startswith(("tiny", "vit_b32_fewshot"))}
        listed = {ALIASES.get(trainer, {}).get(name, name) for name in rows}
        assert found - {"rn50_val"} == listed


def test_other_names_stand_for_files_and_hide_none():
    for trainer, names in ALIASES.items():
        folder = CONFIGS / "trainers" / trainer
        assert all((folder / f"{name}.yaml").is_file() for name in names.values())
        assert not any((folder / f"{alias}.yaml").exists() for alias in names)


def test_other_names_have_a_reason():
    lines = (CONFIGS / "aliases.yaml").read_text().splitlines()
    for line in lines:
        if line.startswith(" "):
            assert len(line.partition(" # ")[2]) > 5, line


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("trainers/*/vit_b32_fewshot*.yaml")), ids=str)
def test_few_shot_on_vit_b32_differs_in_the_backbone_only(file):
    trainer = file.parent.name
    cfg, base = read(trainer, file.stem), yaml.safe_load(file.read_text())["_BASE_"]
    other = read(trainer, base.removesuffix(".yaml"))
    assert (cfg.MODEL.BACKBONE.NAME, other.MODEL.BACKBONE.NAME) == ("ViT-B/32", "ViT-B/16")
    cfg.MODEL.BACKBONE.NAME = other.MODEL.BACKBONE.NAME
    assert cfg.dump() == other.dump()


@pytest.mark.parametrize(
    ("name", "epochs", "depth"),
    [("base2new", 30, 9), ("fewshot", 50, 9), ("cross_datasets", 50, 3)],
)
def test_values_of_mmlop_are_the_papers(name, epochs, depth):
    """arXiv 2602.21397v1, section 4.1 and algorithm 1."""
    cfg = read("MMLoP", f"vit_b16_{name}")
    node = cfg.TRAINER.MMLOP
    assert (cfg.OPTIM.NAME, cfg.OPTIM.LR, cfg.OPTIM.CLIP_GRAD_NORM) == ("sgd", 0.0025, 0.0)
    assert (cfg.OPTIM.MAX_EPOCH, node.PROMPT_DEPTH) == (epochs, depth)
    assert (node.N_CTX, node.RANK, node.INIT_STD, node.TEXT_PROMPT) == (4, 1, 0.05, "replace")
    assert node.LOW_RANK and node.SHARED_U and node.CONSISTENCY and node.DRIFT_CORRECTION
    weights = (node.TEXT_LOSS_WEIGHT, node.IMAGE_LOSS_WEIGHT, node.LOGIT_LOSS_WEIGHT)
    assert (*weights, node.LOGIT_LOSS) == (25.0, 10.0, 1.0, "symmetric")


@pytest.mark.parametrize("file", sorted(CONFIGS.glob("trainers/*/*.yaml")), ids=lambda f: f.stem)
def test_every_file_can_be_read(file):
    assert read(file.parent.name, file.stem).MODEL.BACKBONE.NAME
