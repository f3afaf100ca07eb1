"""A half-written file among the data sets: it is named, and the other data sets go on."""

from __future__ import annotations

import sys

import pytest

import datasets
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, build_dataset
from datasets.preparation import inspection
from tests.datasets.miniatures import BY_STEM

REGISTERED = """
from dassl.data.datasets import DATASET_REGISTRY
from datasets.fewshot import FewShotDataset

@DATASET_REGISTRY.register()
class {name}(FewShotDataset):
    @staticmethod
    def extend_cfg(cfg):
        cfg.DATASET.HALF = {default}
"""


@pytest.fixture
def register(tmp_path, monkeypatch):
    """Function that has ``half.py`` of some content imported as a file of ``datasets/``."""
    folder = tmp_path / "files"
    folder.mkdir()
    monkeypatch.setattr(datasets, "__path__", [*datasets.__path__, str(folder)])
    for table in ("_obj_map", "_left_out", "_claimed_twice"):
        monkeypatch.setattr(DATASET_REGISTRY, table, dict(getattr(DATASET_REGISTRY, table)))

    def register(content: str) -> None:
        (folder / "half.py").write_text(content)
        datasets.register_all()
        datasets.extend_cfg(get_cfg_default())

    yield register
    sys.modules.pop("datasets.half", None)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("x = (\n", "SyntaxError: '(' was never closed (half.py, line 1)"),
        ("\nimport no_such_module\n", "half.py, line 2: ModuleNotFoundError: No module named"),
        (REGISTERED.format(name="Half", default=1) + "later", "NameError: name 'later' is not"),
        (REGISTERED.format(name="Half", default="size"), "NameError: name 'size' is not defined"),
    ],
)
def test_a_file_that_fails_stops_no_other_data_set(
    register, tree, build, dataset_cfg, capsys, content, says
):
    register(content)
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "data sets of a file are left out" in err and says in err
    tree("dtd")
    assert build("dtd").num_classes == len(BY_STEM["dtd"].classnames)
    for _ in range(2):  # nor is it imported again
        datasets.register_all()
    with pytest.raises(ValueError, match=r"^DATASET.NAME: 'Half' ") as caught:
        build_dataset(dataset_cfg("dtd", "DATASET.NAME", "Half"))
    assert says in str(caught.value) and "two files" not in str(caught.value)
    assert capsys.readouterr().err == ""


def test_two_files_with_one_name(register, tree, build, dataset_cfg, capsys):
    register(REGISTERED.format(name="Food101", default=1))
    assert "Food101 is already registered" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"two files have a dataset 'Food101': .*half\.py"):
        build_dataset(dataset_cfg("food101"))
    tree("dtd")
    build("dtd")


def test_the_command_names_it_and_goes_on(register, tree, command, tmp_path):
    tree("dtd")
    inspection.dataset_class.cache_clear()
    register(REGISTERED.format(name="Food101", default=1))
    status, out, err = command("food101", "dtd", "--check", "--root", str(tmp_path))
    out = " ".join(out.split())
    assert status == 1 and err == ""
    assert "food101 cannot be used: two files have a dataset 'Food101'" in out
    assert "dtd incomplete" in out
