from __future__ import annotations

import os
import resource
import warnings
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from torch import nn

from dassl.config import get_cfg_default
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    SettingError,
    load_checkpoint,
    load_pretrained_weights,
    resume_from_checkpoint,
    save_checkpoint,
)
from dassl.utils.checkpoint import model_to_test


def trained(epochs: int = 2):
    """Small model after some epochs, with optimiser and warm-up schedule."""
    torch.manual_seed(0)
    node = get_cfg_default().OPTIM
    node.merge_from_list(["NAME", "sgd", "LR", 0.1, "LR_SCHEDULER", "cosine", "WARMUP_EPOCH", 1])
    model = nn.Linear(3, 2)
    optim = build_optimizer(model, node)
    sched = build_lr_scheduler(optim, node)
    for _ in range(epochs):
        optim.zero_grad()
        model(torch.ones(1, 3)).square().sum().backward()
        optim.step()
        sched.step()
    return model, optim, sched


def state_of(model, optim, sched, epoch: int = 2, **more):
    return {
        "state_dict": model.state_dict(),
        "epoch": epoch,
        "optimizer": optim.state_dict(),
        "scheduler": sched.state_dict(),
        "val_result": None,
        **more,
    }


def test_layout_and_content(tmp_path, capsys):
    parts = trained()
    save_checkpoint(state_of(*parts), str(tmp_path / "run" / "m"))
    folder = tmp_path / "run" / "m"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint", "model.pth.tar-2"]
    assert (folder / "checkpoint").read_text() == "model.pth.tar-2\n"
    assert f"Checkpoint saved to {folder}/model.pth.tar-2" in capsys.readouterr().out
    stored = torch.load(folder / "model.pth.tar-2", weights_only=True)
    assert stored["epoch"] == 2 and isinstance(stored["state_dict"], OrderedDict)


def test_best_and_named_files(tmp_path):
    parts = trained()
    save_checkpoint(state_of(*parts), str(tmp_path), is_best=True, model_name="mine")
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint", "mine", "model-best.pth.tar"}
    assert (tmp_path / "checkpoint").read_text() == "mine\n"
    best = load_checkpoint(str(tmp_path / "model-best.pth.tar"))
    torch.testing.assert_close(best["state_dict"]["weight"], parts[0].weight.data)


def test_the_prefix_of_data_parallel_is_removed(tmp_path):
    state = {"state_dict": {"module.a.module.b": torch.ones(1)}, "epoch": 1}
    save_checkpoint(state, str(tmp_path))
    assert list(load_checkpoint(str(tmp_path / "model.pth.tar-1"))["state_dict"]) == ["a.module.b"]
    assert list(state["state_dict"]) == ["module.a.module.b"]


def test_a_failed_save_keeps_the_old_file(tmp_path):
    parts = trained()
    save_checkpoint(state_of(*parts), str(tmp_path))
    before = (tmp_path / "model.pth.tar-2").read_bytes()
    with pytest.raises(Exception, match="pickle"):
        save_checkpoint(state_of(*parts, bad=lambda: 0), str(tmp_path))
    assert (tmp_path / "model.pth.tar-2").read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "model.pth.tar-2"]


def test_resume_restores_weights_optimiser_and_rate(tmp_path):
    model, optim, sched = trained(3)
    save_checkpoint(state_of(model, optim, sched, epoch=3), str(tmp_path))
    model2, optim2, sched2 = trained(0)
    assert resume_from_checkpoint(str(tmp_path), model2, optim2, sched2) == 3
    for _ in range(3):
        for m, o, s in ((model, optim, sched), (model2, optim2, sched2)):
            o.zero_grad()
            m(torch.ones(1, 3)).square().sum().backward()
            o.step()
            s.step()
        assert torch.equal(model.weight, model2.weight)
        assert optim.param_groups[0]["lr"] == optim2.param_groups[0]["lr"]


def test_resume_is_strict(tmp_path):
    save_checkpoint(state_of(*trained()), str(tmp_path))
    with pytest.raises(RuntimeError, match="size mismatch"):
        resume_from_checkpoint(str(tmp_path), nn.Linear(4, 2))


def test_a_disk_that_is_full(tmp_path):
    """A limit on the size of files stands for it."""
    state = state_of(*trained())
    save_checkpoint(state, str(tmp_path), model_name="model.pth.tar-1")
    kept = (tmp_path / "model.pth.tar-1").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        with pytest.raises(SettingError, match=r"cannot write .*model\.pth\.tar-2 .* bytes free"):
            save_checkpoint(state, str(tmp_path), model_name="model.pth.tar-2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint", "model.pth.tar-1"]
    assert (tmp_path / "model.pth.tar-1").read_bytes() == kept


def test_nothing_to_resume_and_a_lost_file_are_told_apart(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume"):
        resume_from_checkpoint(str(tmp_path), nn.Linear(1, 1))
    (tmp_path / "checkpoint").write_text("model.pth.tar-9\n")
    with pytest.raises(FileNotFoundError, match=r"model\.pth\.tar-9"):
        resume_from_checkpoint(str(tmp_path), nn.Linear(1, 1))


@pytest.mark.parametrize(
    ("files", "pointer", "found"),
    [
        (["model.pth.tar-2", "model.pth.tar-10"], None, "model.pth.tar-10"),
        (["model.pth.tar-2", "model.pth.tar-10"], "model.pth.tar-2", "model.pth.tar-2"),
        (["model.pth.tar-2", "model.pth.tar-10"], "model.pth.tar-30", "model.pth.tar-10"),
        (["model.pth.tar-2", "model-best.pth.tar"], "model.pth.tar-2", "model-best.pth.tar"),
        (["model.pth.tar-2", "model.pth.tar-7.tmp1"], None, "model.pth.tar-2"),
        (["notes.txt"], None, None),
        ([], None, None),
    ],
)
def test_the_model_that_a_run_is_tested_with(tmp_path, files, pointer, found):
    for file in files:
        (tmp_path / file).touch()
    if pointer is not None:
        (tmp_path / "checkpoint").write_text(f"{pointer}\n")
    path = model_to_test(str(tmp_path))
    assert path == (None if found is None else str(tmp_path / found))
    assert model_to_test(str(tmp_path / "none")) is None


def test_bad_paths():
    with pytest.raises(ValueError, match="None"):
        load_checkpoint(None)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_checkpoint("nowhere/model.pth.tar-1")


@pytest.mark.parametrize("damage", ["empty", "half", "text", "other values"])
def test_a_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / "model.pth.tar-2"
    save_checkpoint(state_of(*trained()), str(tmp_path))
    data = path.read_bytes()
    values = trained()[0].weight.detach().numpy().tobytes()
    assert data.count(values) == 1
    contents = {"empty": b"", "half": data[: len(data) // 2], "text": b"hello\n"}
    contents["other values"] = data.replace(values, bytes(255 - byte for byte in values))
    path.write_bytes(contents[damage])
    with pytest.raises(ValueError, match=r"model\.pth\.tar-2.*copy it again") as caught:
        load_checkpoint(str(path))
    assert "remove" not in str(caught.value)


def test_a_whole_module_is_no_checkpoint(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "model.pth.tar-1")
    with pytest.raises(ValueError, match=r"pickled objects \(torch\.nn\.modules\.linear\.Linear"):
        load_checkpoint(str(tmp_path / "model.pth.tar-1"))


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_weights_to_start_from_under_any_usual_key(tmp_path, key):
    source, target = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save({"epoch": 3, key: source.state_dict()}, tmp_path / "a.pth")
    load_pretrained_weights(target, str(tmp_path / "a.pth"))
    assert torch.equal(target.weight, source.weight)


def test_weights_to_start_from_under_another_key(tmp_path):
    torch.save({"epoch": 3, "net": nn.Linear(2, 2).state_dict()}, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=r"a\.pth: no state dict.* keys are epoch, net"):
        load_pretrained_weights(nn.Linear(2, 2), str(tmp_path / "a.pth"))


def test_a_file_of_upstream_with_pickled_objects_is_read_as_data(tmp_path):
    """Upstream stores the inner scheduler as an object, which drags the optimiser along."""
    model, optim, sched = trained(3)
    scheduler = {k: v for k, v in vars(sched).items() if k != "optimizer"}
    assert isinstance(scheduler["successor"], torch.optim.lr_scheduler.LRScheduler)
    state = state_of(model, optim, sched, epoch=3)
    torch.save({**state, "scheduler": scheduler}, tmp_path / "model.pth.tar-3")
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "model.pth.tar-3", weights_only=True)
    (tmp_path / "checkpoint").write_text("model.pth.tar-3\n")

    loaded = load_checkpoint(str(tmp_path / "model.pth.tar-3"))
    assert torch.equal(loaded["state_dict"]["weight"], model.weight)
    model2, optim2, sched2 = trained(0)
    assert resume_from_checkpoint(str(tmp_path), model2, optim2, sched2) == 3
    sched.step()
    sched2.step()
    assert optim2.param_groups[0]["lr"] == optim.param_groups[0]["lr"]


def test_numpy_results_of_upstream_do_not_stop_loading(tmp_path):
    model, optim, sched = trained()
    path = tmp_path / "model.pth.tar-2"
    torch.save({**state_of(model, optim, sched), "val_result": np.float64(81.5)}, path)
    loaded = load_checkpoint(str(path))
    assert torch.equal(loaded["state_dict"]["weight"], model.weight)
    assert loaded["val_result"] is None


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.mkdir, (self.target,)


def test_code_in_a_file_is_not_run(tmp_path):
    target = str(tmp_path / "made_by_attack")
    state = {"state_dict": {"weight": torch.ones(1)}, "epoch": 1, "x": Attack(target)}
    torch.save(state, tmp_path / "model.pth.tar-1")
    with pytest.raises(ValueError, match=r"model\.pth\.tar-1.*mkdir"):
        load_checkpoint(str(tmp_path / "model.pth.tar-1"))
    assert not os.path.exists(target)


@pytest.mark.parametrize("wrap", [True, False])
def test_matching_weights_are_loaded_and_the_others_named(tmp_path, capsys, wrap):
    source = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 2)})
    target = nn.ModuleDict({"a": nn.Linear(2, 2), "b": nn.Linear(2, 3)})
    old_b = target["b"].weight.clone()
    state = {f"module.{k}": v for k, v in source.state_dict().items()}
    torch.save({"state_dict": state} if wrap else state, tmp_path / "w.pth")
    load_pretrained_weights(target, str(tmp_path / "w.pth"))
    assert torch.equal(target["a"].weight, source["a"].weight)
    assert torch.equal(target["b"].weight, old_b)
    out = capsys.readouterr().out
    assert "b.weight" in out and "a.weight" not in out


def test_weights_that_do_not_fit_at_all_warn(tmp_path):
    torch.save(nn.Linear(5, 5).state_dict(), tmp_path / "w.pth")
    with pytest.warns(UserWarning, match=r"No weight of .*w\.pth matches"):
        load_pretrained_weights(nn.Linear(2, 2), str(tmp_path / "w.pth"))


def test_text_of_python_2_is_read(tmp_path):
    torch.save({"epoch": 1}, tmp_path / "new.pth")
    # {"<e acute as one byte>": 1} as Python 2's protocol writes it
    pickled = b"\x80\x02}U\x01\xe9K\x01s."
    with zipfile.ZipFile(tmp_path / "new.pth") as old:
        with zipfile.ZipFile(tmp_path / "old.pth", "w") as copy:
            for name in old.namelist():
                copy.writestr(name, pickled if name.endswith("data.pkl") else old.read(name))
    assert load_checkpoint(str(tmp_path / "old.pth")) == {"\xe9": 1}


def test_a_changed_schedule_is_named_when_resuming(tmp_path):
    model, optim, sched = trained()
    save_checkpoint(state_of(model, optim, sched), str(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        resume_from_checkpoint(str(tmp_path), *trained(0))
    other = trained(0)
    other[2].successor.T_max = 50.0
    with pytest.warns(UserWarning, match=r"T_max 10\.0 \(configured: 50\.0\)"):
        resume_from_checkpoint(str(tmp_path), *other)
    assert other[2].successor.T_max == 10.0


def test_an_object_made_without_its_constructor_is_read_as_nothing(tmp_path):
    path = tmp_path / "model.pth.tar-1"
    torch.save({"state_dict": {}, "epoch": 1, "made_by": torch.__version__}, path)
    assert load_checkpoint(str(path))["made_by"] is None
