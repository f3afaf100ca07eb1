"""configs/methods/: what is there, and what is said of a file that cannot be."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

import trainers  # noqa: F401  registers them
from dassl.engine import TRAINER_REGISTRY
from protocols import ELEVEN, PROTOCOLS
from scripts import methods
from scripts.all import parse
from scripts.planning import plan
from scripts.sweep.plan import plan as plan_sweep

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("name", methods.method_names())
def test_shipped_files(name):
    """Their trainers are registered; the checks of what they name are those of reading them."""
    method = methods.read_method(name)
    assert method.trainer in TRAINER_REGISTRY.registered_names()
    assert method.trains == (method.trainer != "ZeroshotCLIP")


def test_every_trainer_has_scripts():
    of_scripts = {methods.read_method(name).trainer for name in methods.method_names()}
    for path in ROOT.glob("configs/trainers/*"):
        assert path.name in of_scripts, f"add configs/methods/<scripts>.yaml for {path.name}"


@pytest.mark.parametrize("name", methods.method_names())
def test_another_backbone_has_the_files_of_the_same_settings(name):
    """CFG=rn50 takes, for every protocol, data set and number of shots, the file's counterpart."""
    method = methods.read_method(name)
    if "rn50" not in method.variants:
        return
    own = [p for p in PROTOCOLS if p.name in method.protocols]
    for protocol, dataset, shots in itertools.product(
        {p.configs for p in own}, ELEVEN, ("1", "2", "4", "8", "16")
    ):
        asked = {"protocol": protocol, "dataset": dataset, "shots": shots}
        config, _ = method.config_named("rn50", **asked)
        assert config == method.config_for(**asked).replace("vit_b16", "rn50"), asked


LINE = "configs: [{config: vit_b16}]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a mapping was expected, not None"),
        ("trainer: [", "is not valid YAML"),
        (LINE, "trainer is missing"),
        ("trainer: CoOp", "configs is missing"),
        (f"trainer: CoOps\n{LINE}", "no trainer 'CoOps'; there are: .*; did you mean CoOp?"),
        (f"trainer: CoOp\n{LINE}\ntrain: no", "no key 'train'; .*; did you mean trains?"),
        (f"trainer: CoOp\n{LINE}\ntrains: never", "trains must be yes or no, not 'never'"),
        (f"trainer: CoOp\n{LINE}\ntiny: tinny", "no file configs/trainers/CoOp/tinny.yaml; .*"),
        ("trainer: CoOp\nconfigs: [{config: vit16}]", "no file configs/trainers/CoOp/vit16.yaml"),
        ("trainer: CoOp\nconfigs: [{shots: 1}]", "config is missing in {'shots': 1}"),
        (
            "trainer: CoOp\nconfigs: [{config: vit_b16, datset: dtd}]",
            "no key 'datset'; there are: .*; did you mean dataset?",
        ),
        (
            "trainer: CoOp\nconfigs: [{config: vit_b16, dataset: [dtd, eurosta]}]",
            "no data set 'eurosta'; there are: .*; did you mean eurosat?",
        ),
        (
            "trainer: CoOp\nconfigs: [{config: vit_b16, protocol: cross}]",
            "no protocol 'cross'; there are: base2new fewshot xd",
        ),
        (
            "trainer: CoOp\nconfigs: [{config: vit_b16, shots: few}]",
            "shots must be whole numbers or all, not few",
        ),
        (
            "trainer: CoOp\nconfigs: [{config: vit_b16, protocol: [base2new, xd]}]",
            "configs has no line for protocol fewshot that fits all data sets and shots",
        ),
        (f"trainer: CoOp\n{LINE}\nprotocols: dg", "protocols must be a list of names, not 'dg'"),
        (
            f"trainer: CoOp\n{LINE}\nprotocols: [dgs]",
            "no protocol 'dgs'; there are: .*; did you mean dg?",
        ),
        (
            f"trainer: CoOp\n{LINE}\nvariants: {{few: [{{config: vit}}]}}",
            "no file configs/trainers/CoOp/vit.yaml",
        ),
    ],
)
def test_a_file_is_checked_when_it_is_read(text, message, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    (tmp_path / "configs/methods/mine.yaml").write_text(text)
    pattern = message.replace("?", r"\?").replace("{'", r"\{'").replace("1}", r"1\}")
    with pytest.raises(ValueError, match=rf"^configs/methods/mine\.yaml:? {pattern}"):
        methods.read_method("mine")


def test_a_method_that_lacks_protocols():
    """It has what trains for those that it has, and needs no config for others."""
    method, other = methods.read_method("taskres"), methods.read_method("coop")
    assert {"fewshot", "xd_train", "dg_test"} < {*method.scripts} < {*other.scripts}
    for name in ("base2new_train", "base2new_test", "base2new_test_all", "xd_test"):
        with pytest.raises(ValueError, match=rf"TaskRes has no {name}: .*dg_test$"):
            plan("taskres", name, ["digits", "1"], {})
    args = parse(["coop taskres", "digits", "1"])
    for protocol in ("base2new", "xd"):
        with pytest.raises(ValueError, match=rf"TaskRes has no PROTOCOL {protocol}: .* fewshot dg"):
            plan_sweep(args, {"PROTOCOL": protocol, "SOURCE": "shapes"})
    assert len(plan_sweep(args, {"PROTOCOL": "fewshot", "SHOTS": "1"})) == 2


def test_a_method_or_data_set_without_its_file_says_which(tmp_path, monkeypatch):
    """One of one's own, of which the folder of scripts or the code is there already."""
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    (tmp_path / "scripts/dreams").mkdir(parents=True)
    (tmp_path / "configs/trainers/Sleep").mkdir()
    for name, folder in (("dreams", "scripts/dreams"), ("sleep", "configs/trainers/Sleep")):
        with pytest.raises(ValueError, match=rf"{folder}/ is there, but no .*/{name}\.yaml.*coop"):
            methods.find_method(name)
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets/birds.py").write_text("@DATASET_REGISTRY.register()")
    (tmp_path / "datasets/shots.py").write_text("x = 1")
    assert "no configs/datasets/birds.yaml: write one like" in methods.lacks_config("birds")
    assert methods.lacks_config("shots") == methods.lacks_config("dtd") == ""
