"""A configuration tree that does not come from our defaults, as some published code brings one."""

from __future__ import annotations

import pytest
from yacs.config import CfgNode as CN

from dassl.config import optional
from dassl.data import DataManager
from dassl.data.transforms import build_transform
from dassl.engine import build_trainer
from tests.dassl import toy


@pytest.fixture
def tree(tmp_path):
    """Plain yacs nodes with the keys of upstream that such a run needs, and no others."""
    return CN(
        {
            "OUTPUT_DIR": str(tmp_path / "out"),
            "RESUME": "",
            "SEED": 1,
            "USE_CUDA": False,
            "VERBOSE": True,
            "INPUT": {
                "SIZE": (toy.SIDE, toy.SIDE),
                "INTERPOLATION": "bicubic",
                "TRANSFORMS": ("random_flip", "normalize"),
                "NO_TRANSFORM": False,
                "PIXEL_MEAN": [0.5, 0.5, 0.5],
                "PIXEL_STD": [0.2, 0.2, 0.2],
            },
            "DATASET": {
                "ROOT": str(tmp_path / "data"),
                "NAME": "ToyColours",
                "SOURCE_DOMAINS": (),
                "TARGET_DOMAINS": (),
                "NUM_SHOTS": -1,
            },
            "DATALOADER": {
                "NUM_WORKERS": 0,
                "K_TRANSFORMS": 1,
                "RETURN_IMG0": False,
                "TRAIN_X": {"SAMPLER": "RandomSampler", "BATCH_SIZE": 5, "N_DOMAIN": 0, "N_INS": 1},
                "TEST": {"SAMPLER": "SequentialSampler", "BATCH_SIZE": 4},
            },
            "MODEL": {"INIT_WEIGHTS": ""},
            "OPTIM": {
                "NAME": "sgd",
                "LR": 0.05,
                "WEIGHT_DECAY": 0.0,
                "MOMENTUM": 0.9,
                "SGD_DAMPNING": 0,
                "SGD_NESTEROV": False,
                "STAGED_LR": False,
                "LR_SCHEDULER": "cosine",
                "STEPSIZE": (-1,),
                "MAX_EPOCH": 2,
                "WARMUP_EPOCH": -1,
            },
            "TRAIN": {"CHECKPOINT_FREQ": 0, "PRINT_FREQ": 1},
            "TEST": {
                "EVALUATOR": "Classification",
                "PER_CLASS_RESULT": False,
                "COMPUTE_CMAT": False,
                "NO_TEST": False,
                "SPLIT": "test",
                "FINAL_MODEL": "last_step",
            },
            "TRAINER": {"NAME": "ToyTrainer"},
        }
    )


def test_a_run_needs_none_of_our_additions(tree, capsys):
    build_trainer(tree).train()
    out = capsys.readouterr().out
    assert "epoch [2/2] batch [2/2]" in out and "* total: 6" in out
    # Unlabelled images are there; without a node of their own they are loaded as the others.
    assert DataManager(tree).train_loader_u.batch_size == 5


def test_a_transform_needs_the_keys_of_its_own_steps_only(tree):
    tree.INPUT.COLORJITTER_B = tree.INPUT.COLORJITTER_C = tree.INPUT.COLORJITTER_S = 0.1
    tree.INPUT.COLORJITTER_H = 0.1
    names = ["colorjitter", "instance_norm", "imagenet_policy", "random_translation"]
    assert build_transform(tree, choices=names) is not None
    with pytest.raises(AttributeError, match="RGS_P"):
        build_transform(tree, choices=["randomgrayscale"])


def test_what_a_tree_says_is_taken_and_what_it_does_not_say_is_the_default(tree):
    assert optional(tree, "DATALOADER.CACHE") == "exact"
    tree.DATALOADER.CACHE = "none"
    assert optional(tree, "DATALOADER.CACHE") == "none"
    with pytest.raises(AttributeError, match="CASH"):
        optional(tree, "DATALOADER.CASH")
