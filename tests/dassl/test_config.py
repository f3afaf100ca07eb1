from __future__ import annotations

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from yacs.config import CfgNode as YacsNode

from dassl.config import clean_cfg, data_sets_of_file, get_cfg_default, values_of_file

EXPECTED = """
VERSION: 1
OUTPUT_DIR: ./output
RESUME: ''
SEED: -1
USE_CUDA: true
VERBOSE: true
INPUT: {SIZE: [224, 224], INTERPOLATION: bilinear, TRANSFORMS: [], NO_TRANSFORM: false,
  SEEDED_VIEWS: false,
  PIXEL_MEAN: [0.485, 0.456, 0.406], PIXEL_STD: [0.229, 0.224, 0.225], CROP_PADDING: 4,
  RRCROP_SCALE: [0.08, 1.0], CUTOUT_N: 1, CUTOUT_LEN: 16, GN_MEAN: 0.0, GN_STD: 0.15,
  RANDAUGMENT_N: 2, RANDAUGMENT_M: 10, COLORJITTER_B: 0.4, COLORJITTER_C: 0.4,
  COLORJITTER_S: 0.4, COLORJITTER_H: 0.1, RGS_P: 0.2, GB_P: 0.5, GB_K: 21}
DATASET: {ROOT: '', NAME: '', SOURCE_DOMAINS: [], TARGET_DOMAINS: [], NUM_LABELED: -1,
  NUM_SHOTS: -1, VAL_PERCENT: 0.1, STL10_FOLD: -1, CIFAR_C_TYPE: '', CIFAR_C_LEVEL: 1,
  ALL_AS_UNLABELED: false}
DATALOADER:
  NUM_WORKERS: 4
  K_TRANSFORMS: 1
  RETURN_IMG0: false
  TRAIN_X: {SAMPLER: RandomSampler, BATCH_SIZE: 32, N_DOMAIN: 0, N_INS: 16}
  TRAIN_U: {SAME_AS_X: true, SAMPLER: RandomSampler, BATCH_SIZE: 32, N_DOMAIN: 0, N_INS: 16}
  TEST: {SAMPLER: SequentialSampler, BATCH_SIZE: 32}
MODEL:
  INIT_WEIGHTS: ''
  BACKBONE: {NAME: '', PRETRAINED: true}
  HEAD: {NAME: '', HIDDEN_LAYERS: [], ACTIVATION: relu, BN: true, DROPOUT: 0.0}
OPTIM: {NAME: adam, LR: 0.0003, WEIGHT_DECAY: 0.0005, MOMENTUM: 0.9, SGD_DAMPNING: 0,
  SGD_NESTEROV: false, RMSPROP_ALPHA: 0.99, ADAM_BETA1: 0.9, ADAM_BETA2: 0.999,
  STAGED_LR: false, NEW_LAYERS: [], BASE_LR_MULT: 0.1, LR_SCHEDULER: single_step,
  STEPSIZE: [-1], GAMMA: 0.1, MAX_EPOCH: 10, WARMUP_EPOCH: -1, WARMUP_TYPE: linear,
  WARMUP_CONS_LR: 0.00001, WARMUP_MIN_LR: 0.00001, WARMUP_RECOUNT: true}
TRAIN: {CHECKPOINT_FREQ: 0, PRINT_FREQ: 10, COUNT_ITER: train_x}
TEST: {EVALUATOR: Classification, PER_CLASS_RESULT: false, COMPUTE_CMAT: false, NO_TEST: false,
  SPLIT: test, FINAL_MODEL: last_step}
TRAINER:
  NAME: ''
  MCD: {N_STEP_F: 4}
  MME: {LMDA: 0.1}
  CDAC: {CLASS_LR_MULTI: 10, RAMPUP_COEF: 30, RAMPUP_ITRS: 1000, TOPK_MATCH: 5, P_THRESH: 0.95,
    STRONG_TRANSFORMS: []}
  SE: {EMA_ALPHA: 0.999, CONF_THRE: 0.95, RAMPUP: 300}
  M3SDA: {LMDA: 0.5, N_STEP_F: 4}
  DAEL: {WEIGHT_U: 0.5, CONF_THRE: 0.95, STRONG_TRANSFORMS: []}
  DAELDG: {WEIGHT_U: 0.5, CONF_THRE: 0.95, STRONG_TRANSFORMS: []}
  CROSSGRAD: {EPS_F: 1.0, EPS_D: 1.0, ALPHA_F: 0.5, ALPHA_D: 0.5}
  DDAIG: {G_ARCH: '', LMDA: 0.3, CLAMP: false, CLAMP_MIN: -1.0, CLAMP_MAX: 1.0, WARMUP: 0,
    ALPHA: 0.5}
  DOMAINMIX: {TYPE: crossdomain, ALPHA: 1.0, BETA: 1.0}
  ENTMIN: {LMDA: 0.001}
  MEANTEACHER: {WEIGHT_U: 1.0, EMA_ALPHA: 0.999, RAMPUP: 5}
  MIXMATCH: {WEIGHT_U: 100.0, TEMP: 2.0, MIXUP_BETA: 0.75, RAMPUP: 20000}
  FIXMATCH: {WEIGHT_U: 1.0, CONF_THRE: 0.95, STRONG_TRANSFORMS: []}
"""


#: what this engine has beyond upstream's, by section
BEYOND_UPSTREAM = {
    "": {"DEVICE": ""},
    "INPUT": {"EXIF": False},
    "DATALOADER": {
        "CACHE": "exact",
        "CACHE_MB": 10000,
        "TRANSFORM_DEVICE": "cpu",
        "DROP_LAST": True,
    },
    "OPTIM": {
        "ADAM_EPS": 1e-8,
        "SCHEDULE_PER": "epoch",
        "MIN_LR": 0.0,
        "MAX_ITERATIONS": 0,
        "ITERATIONS_PER_SHOT": False,
    },
    "TRAIN": {"SAVE_MINUTES": 5.0, "TRACKERS": "tensorboard"},
    "TEST": {"KEEP_PREDICTIONS": "auto", "BASE_AND_NEW": False},
}


def as_plain(node):
    if isinstance(node, dict):
        return {key: as_plain(value) for key, value in node.items()}
    return list(node) if isinstance(node, tuple) else node


def test_defaults():
    found, expected = as_plain(get_cfg_default()), yaml.safe_load(EXPECTED)
    for section, keys in BEYOND_UPSTREAM.items():
        there = found[section] if section else found
        assert {key: there.pop(key) for key in keys} == keys
    assert found == expected


def test_defaults_keep_the_types_that_decide_what_may_be_merged():
    cfg = get_cfg_default()
    assert isinstance(cfg, YacsNode)
    assert type(cfg.OPTIM.WARMUP_CONS_LR) is float
    assert type(cfg.INPUT.SIZE) is tuple and type(cfg.INPUT.PIXEL_MEAN) is list


def test_each_call_gives_an_independent_tree():
    first = get_cfg_default()
    first.OPTIM.LR = 7.0
    first.INPUT.PIXEL_MEAN.append(1.0)
    assert get_cfg_default().OPTIM.LR == 0.0003
    assert len(get_cfg_default().INPUT.PIXEL_MEAN) == 3


@settings(deadline=None)
@given(value=st.integers(-(10**6), 10**6))
def test_an_integer_is_accepted_for_a_float_key(value):
    cfg = get_cfg_default()
    cfg.merge_from_list(["OPTIM.LR", str(value)])
    assert cfg.OPTIM.LR == value and type(cfg.OPTIM.LR) is float


@settings(deadline=None)
@given(text=st.text(min_size=1).filter(lambda t: t.strip() != "None"))
def test_text_for_a_string_key_is_kept_as_text(text):
    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.ROOT", text])
    assert type(cfg.DATASET.ROOT) is str
    # A quoted literal loses its quotes, everything else stays as typed.
    if text[0] not in "'\"rRuUbB" and "'" not in text and '"' not in text:
        assert cfg.DATASET.ROOT == text


def test_digits_are_a_legal_folder_name():
    cfg = get_cfg_default()
    cfg.merge_from_list(["DATASET.ROOT", "2024", "DATASET.NAME", "None"])
    assert cfg.DATASET.ROOT == "2024" and cfg.DATASET.NAME is None


def test_a_file_is_merged_with_lists_for_tuples_and_integers_for_floats(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("OPTIM:\n  LR: 1\n  WARMUP_CONS_LR: 1e-5\nINPUT:\n  SIZE: [32, 32]\n")
    cfg = get_cfg_default()
    cfg.merge_from_file(str(path))
    assert cfg.OPTIM.LR == 1.0 and cfg.INPUT.SIZE == (32, 32)
    assert cfg.OPTIM.WARMUP_CONS_LR == 1e-5


def test_nodes_added_as_plain_yacs_nodes_can_be_merged(tmp_path):
    cfg = get_cfg_default()
    cfg.TRAINER.COOP = YacsNode()
    cfg.TRAINER.COOP.N_CTX = 16
    cfg.TRAINER.COOP.SCALE = 0.5
    path = tmp_path / "c.yaml"
    path.write_text("TRAINER:\n  COOP:\n    N_CTX: 4\n")
    cfg.merge_from_file(str(path))
    cfg.merge_from_list(["TRAINER.COOP.SCALE", "2"])
    assert cfg.TRAINER.COOP.N_CTX == 4 and cfg.TRAINER.COOP.SCALE == 2.0


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("OPTIM.LRR", "OPTIM.LR"),
        ("OPTIMM.MAX_EPOCH", "OPTIM.MAX_EPOCH"),
        ("MAX_EPOCH", "OPTIM.MAX_EPOCH"),
        ("DATASET.NUM_SHOT", "DATASET.NUM_SHOTS"),
        ("OPTIM.LR.X", "OPTIM.LR"),
    ],
)
def test_an_unknown_key_names_the_nearest(key, nearest, tmp_path):
    cfg = get_cfg_default()
    with pytest.raises(KeyError) as error:
        cfg.merge_from_list([key, "1"])
    assert f"unknown config key {key}" in str(error.value)
    assert str(error.value).endswith(f"did you mean {nearest}?")


def test_an_unknown_key_in_a_file_names_the_file_and_nothing_is_merged(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("OPTIM:\n  MAX_EPOCH: 77\n  LRR: 1\n")
    cfg = get_cfg_default()
    with pytest.raises(KeyError, match="LRR") as error:
        cfg.merge_from_file(str(path))
    assert str(path) in str(error.value)
    assert cfg == get_cfg_default()


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["OPTIM.MAX_EPOCH", "many"], "OPTIM.MAX_EPOCH takes int values"),
        (["OPTIM.MAX_EPOCH", "1.5"], "not 1.5"),
        (["OPTIM.LR", "True"], "OPTIM.LR takes float values"),
        (["OPTIM", "3"], "is a group of keys"),
        (["OPTIM.LR"], "KEY VALUE pairs"),
        (["OPTIM.LR", "1e999"], "OPTIM.LR is inf: give a finite number"),
        (["OPTIM.LR", "9" * 999], "OPTIM.LR is 9+: give a finite number"),
        (["OPTIM.WEIGHT_DECAY", float("nan")], "OPTIM.WEIGHT_DECAY is nan: give a finite"),
        (["INPUT.SIZE", "['32', 32]"], r"INPUT.SIZE takes a list .* numbers, not \['32', 32\]"),
        (["INPUT.PIXEL_STD", "[None, 1, 1]"], "PIXEL_STD takes a list of finite numbers"),
        (["INPUT.RRCROP_SCALE", "[0.5, 1e999]"], "RRCROP_SCALE takes a list of finite numbers"),
    ],
)
def test_a_wrong_value_says_what_is_expected(options, text):
    with pytest.raises(ValueError, match=text):
        get_cfg_default().merge_from_list(options)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *[("INPUT.SIZE", "32"), ("INPUT.SIZE", "1.5"), ("INPUT.SIZE", "large")],
        *[("INPUT.SIZE", "['32', '32']"), ("INPUT.PIXEL_MEAN", "1"), ("OPTIM.STEPSIZE", "5")],
        *[("INPUT.RRCROP_SCALE", "0.5"), ("INPUT.TRANSFORMS", "random_flip")],
    ],
)
def test_a_value_in_place_of_a_list_says_words_that_do(key, value, tmp_path):
    cfg, file = get_cfg_default(), tmp_path / "a.yaml"
    with pytest.raises(ValueError, match=r"takes a list") as error:
        cfg.merge_from_list([key, value])
    asked, words = str(error.value).rpartition(f"{key} ")[2].strip('"'), cfg.clone()
    words.merge_from_list([key, asked])
    section, _, name = key.partition(".")
    file.write_text(f"{section}:\n  {name}: {value}\n")
    with pytest.raises(ValueError, match=r"takes a list") as error:
        cfg.merge_from_file(str(file))
    line = f"{name}{str(error.value).rpartition(name)[2]}"
    file.write_text(f"{section}:\n  {line}\n")
    cfg.merge_from_file(str(file))
    assert cfg == words
    old = get_cfg_default()[section][name]
    assert len(cfg[section][name]) == max(1, len(old))


@pytest.mark.parametrize("text", ["a: [1", "- 1\n- 2\n", "just words"])
def test_a_file_that_is_no_mapping_is_named(tmp_path, text):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"c\.yaml"):
        get_cfg_default().merge_from_file(str(path))


def test_an_empty_file_changes_nothing(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("# nothing\nOPTIM: {}\n")
    cfg = get_cfg_default()
    cfg.merge_from_file(str(path))
    assert cfg == get_cfg_default()


def test_merge_from_other_cfg():
    cfg = get_cfg_default()
    cfg.merge_from_other_cfg(YacsNode({"OPTIM": {"LR": 2}}))
    assert cfg.OPTIM.LR == 2.0


def test_a_frozen_tree_refuses_changes():
    cfg = get_cfg_default()
    cfg.freeze()
    with pytest.raises(AttributeError):
        cfg.OPTIM.LR = 1.0


def test_clean_cfg_keeps_the_name_and_one_node():
    cfg = get_cfg_default()
    clean_cfg(cfg, "FixMatch")
    assert list(cfg.TRAINER) == ["NAME", "FIXMATCH"]


def test_a_file_builds_on_its_base(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "root.yaml").write_text("OPTIM:\n  LR: 1\n  NAME: sgd\nSEED: 3\n")
    (tmp_path / "middle.yaml").write_text("_BASE_: root.yaml\nOPTIM:\n  LR: 0.5\n")
    (tmp_path / "sub" / "top.yaml").write_text("_BASE_: ../middle.yaml\nSEED: 4\n")
    cfg = get_cfg_default()
    cfg.merge_from_file(str(tmp_path / "sub" / "top.yaml"))
    assert (cfg.OPTIM.LR, cfg.OPTIM.NAME, cfg.SEED) == (0.5, "sgd", 4)


def test_settings_of_single_data_sets(tmp_path):
    """They win over the rest of their file and of its bases, for their data set only."""
    (tmp_path / "base.yaml").write_text(
        "OPTIM: {LR: 1}\n_DATASETS_: {Here: {OPTIM: {LR: 2, NAME: sgd}}, There: {SEED: 5}}\n"
    )
    path = tmp_path / "top.yaml"
    path.write_text("_BASE_: base.yaml\nSEED: 3\n_DATASETS_: {Here: {OPTIM: {LR: 4}}}\n")
    for name, values in {
        "Here": (4.0, "sgd", 3),
        "There": (1.0, "adam", 5),
        "Elsewhere": (1.0, "adam", 3),
    }.items():
        named, set_before = get_cfg_default(), get_cfg_default()
        named.merge_from_file(str(path), name)
        set_before.DATASET.NAME = name
        set_before.merge_from_file(str(path))
        for cfg in (named, set_before):
            assert (cfg.OPTIM.LR, cfg.OPTIM.NAME, cfg.SEED) == values
        assert values_of_file(str(path), name).get("OPTIM.LR") == values[0]
    assert data_sets_of_file(str(path)) == ["Here", "There"]
    path.write_text("_DATASETS_: {Here: 3}\n")
    with pytest.raises(ValueError, match=r"top\.yaml: _DATASETS_ must hold settings by data set"):
        get_cfg_default().merge_from_file(str(path))


def test_a_file_that_builds_on_itself(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(ValueError, match="names itself"):
        get_cfg_default().merge_from_file(str(tmp_path / "a.yaml"))


def test_a_missing_base(tmp_path):
    (tmp_path / "a.yaml").write_text("_BASE_: nowhere.yaml\n")
    with pytest.raises(FileNotFoundError, match=r"nowhere\.yaml"):
        get_cfg_default().merge_from_file(str(tmp_path / "a.yaml"))
