"""Bundles: the probabilities of the run, without the toolbox and without PyTorch."""

from __future__ import annotations

import importlib.metadata
import json
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import predict
import serve
from clip.tokens import tokenize
from clip.weights import build_model
from support.command_line import run_command
from tests.conftest import ROOT
from tests.parity_files import recorded_clip
from tests.results.writing import write_record
from tests.trainers.test_contract import METHODS
from tools import export, inspect_run
from trainers import Predictor

pytest.importorskip("onnxruntime", reason="needs requirements-deploy.txt")
pytest.importorskip("onnxscript", reason="needs requirements-deploy.txt")

from deploy.bundle import Bundle, differences, write_bundle, write_merges
from deploy.card import text
from deploy.standalone.class_names import Tokenizer

#: kinds of learners beside the defaults of the methods
VARIANTS = {
    "a linear head": ("LoRVP", "TRAINER.LORVP.HEAD", "lp"),
    "contexts per class": ("CoOp", "TRAINER.COOP.CSC", True),
    "prompts behind the name": ("CoOp", "TRAINER.COOP.CLASS_TOKEN_POSITION", "front"),
    "other pixels": (
        *("LoRVP", "INPUT.TRANSFORMS", ["random_flip"], "INPUT.INTERPOLATION", "bilinear"),
    ),
    # layers that a small CLIP has
    "MMRL": ("MMRL", "TRAINER.MMRL.REP_LAYERS", [1, 2]),
    "MMRLPlusPlus": ("MMRLPlusPlus", "TRAINER.MMRLPLUSPLUS.REP_LAYERS", [1, 2]),
    # its second stage
    "TwoStageFS, rows": ("TwoStageFS",),
    # what trains nothing
    **{name: (name,) for name in ("TipAdapter", "ZeroshotCLIP", "ZeroshotCLIP2")},
    "MMRL, class token": (
        *("MMRL", "TRAINER.MMRL.REP_LAYERS", [1, 2], "TRAINER.MMRL.FEATURES", "class"),
    ),
}
#: methods whose text prompts fit other names, one of each kind
OTHER_NAMES = (
    *("CoOp", "MaPLe", "MMLoP", "TCP", "VPT", "CLIPLoRA", "MMA", "CLIPAdapter", "CoPrompt"),
    *("TwoStageFS", "TwoStageFS, rows", "ZeroshotCLIP"),
)


def command(*words: object) -> int:
    return run_command(export.build_parser(), export.export, [str(word) for word in words])


def pictures() -> list[Image.Image]:
    """Pictures of all modes and shapes, one of them turned by its EXIF orientation."""
    noise = np.random.default_rng(3)

    def make(*shape: int) -> Image.Image:
        return Image.fromarray(noise.integers(0, 256, shape, np.uint8))

    turned = make(50, 80, 3)
    turned.getexif()[0x0112] = 6
    deep = Image.fromarray(noise.integers(0, 65536, (40, 41), np.uint16))
    shapes = ((32, 32, 3), (33, 32, 3), (7, 90, 3), (500, 333, 3), (64, 64, 4))
    return [turned, deep, *(make(*shape) for shape in shapes), make(45, 61).convert("P")]


@pytest.mark.parametrize("kind", dict.fromkeys([*METHODS, *VARIANTS]))
def test_every_kind_of_method_predicts_as_its_run(fresh, kind, tmp_path):
    predictor = fresh(*VARIANTS.get(kind, (kind,)), rows=kind.endswith("rows"))
    other = kind in OTHER_NAMES
    notes = write_bundle(predictor, tmp_path / "bundle", tmp_path, text_encoder=other)
    bundle = Bundle(tmp_path / "bundle")
    assert bundle.labels == predictor.classnames
    assert differences(predictor, bundle, pictures())["largest"] < 1e-4
    batch = np.stack([bundle.read(picture) for picture in pictures()])
    own = predictor.probabilities(torch.from_numpy(batch))
    assert own.std(dim=0).max() > 1e-3, "what the pictures show makes no difference"
    for count in (1, 2, len(batch)):
        assert np.allclose(bundle.probabilities(batch[:count]), own[:count], atol=1e-4)
    program = torch.export.load(tmp_path / "bundle" / "image_encoder.pt2").module()
    one_by_one = notes["image_encoder"]["batch_size"] == 1
    assert one_by_one == predictor.model.learner.image_conditioned
    parts = torch.from_numpy(batch).split(1 if one_by_one else 3)
    found = torch.cat([program(image=part) for part in parts])
    if notes["classifier"]:
        found = notes["logit_scale"] * found @ torch.from_numpy(bundle.classifier).T
    assert torch.allclose(found.softmax(dim=-1), own, atol=1e-4)
    if other:
        check_other_names(predictor, bundle)
    else:
        with pytest.raises(ValueError, match="no text encoder"):
            bundle.set_classes(["cat"])


def check_other_names(predictor: Predictor, bundle: Bundle) -> None:
    names = ["a tram", "forget-me-not", "golden_retriever", "golden retriever"]
    predictor.model.set_classes(names)
    predictor.classnames = names
    bundle.set_classes(names)
    assert differences(predictor, bundle, pictures())["largest"] < 1e-4
    with pytest.raises(ValueError, match="too long"):
        bundle.set_classes(["word " * 80, "tram"])
    with pytest.raises(ValueError, match="twice"):
        bundle.set_classes(["tram", "tram"])


def test_a_resnet(fresh, tmp_path):
    clip = build_model(recorded_clip("rn")).float()
    side = (clip.visual.input_resolution,) * 2
    predictor = fresh("CoOp", "INPUT.SIZE", side, clip=clip)
    write_bundle(predictor, tmp_path / "bundle", tmp_path)
    bundle = Bundle(tmp_path / "bundle")
    assert differences(predictor, bundle, pictures())["largest"] < 1e-4


def test_read_is_the_transform_of_the_run(tiny_run, tiny_bundle):
    predictor, bundle = Predictor.load(tiny_run), Bundle(tiny_bundle)
    for picture in pictures():
        assert np.abs(predictor.read(picture).numpy() - bundle.read(picture)).max() < 1e-6


@pytest.mark.parametrize(
    "kind",
    [
        *("CoCoOp", "a linear head", "contexts per class", "prompts behind the name", "MMRL"),
        *("ZeroshotCLIP2", "TaskRes", "TipAdapter", "LPPlusPlus", "CLAP", "ZSLP"),
    ],
)
def test_no_text_encoder_where_names_are_fixed(fresh, kind, tmp_path):
    predictor = fresh(*VARIANTS.get(kind, (kind,)))
    with pytest.raises(ValueError, match=f"--text-encoder: {predictor.cfg.TRAINER.NAME}: "):
        write_bundle(predictor, tmp_path / "bundle", tmp_path, text_encoder=True)
    assert not list(tmp_path.glob("bundle*"))


@pytest.mark.parametrize(
    "text",
    [
        *("cat", "golden retriever", "it's 42 o'clock!!", "über café", "忘れな草 勿忘草", "½ ² x٣"),
        *(
            " a  b\tc",
            "rock 'n' roll",
            "don’t “quote”",
            "&amp;lt;",
            "🙂🙂 ok",
            "ﬁsh ＡＢ Ⅷ",
            "100%",
        ),
    ],
)
def test_texts_are_read_as_by_clip(merges, text):
    (row,) = tokenize(text).tolist()
    assert merges.encode(text) == row[: row.index(max(row)) + 1]


@pytest.fixture(scope="module")
def merges(tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("merges") / "merges.txt.gz"
    write_merges(path)
    return Tokenizer(path)


def test_no_more_than_three_packages_are_needed(fresh, tmp_path):
    """A bare interpreter whose path has NumPy, Pillow and ONNX Runtime, and nothing else."""
    bare, predictor = tmp_path / "bare", fresh("CoOp")
    bare.mkdir()
    for package in ("numpy", "pillow", "onnxruntime"):
        found = importlib.metadata.distribution(package)
        for top in {file.parts[0] for file in found.files or []} - {".."}:
            (bare / top).symlink_to(found.locate_file(top))
    write_bundle(predictor, tmp_path / "bundle", tmp_path, text_encoder=True)
    picture, names, script = (tmp_path / name for name in ("x.png", "n.txt", "bundle/predict.py"))
    pictures()[5].save(picture)
    names.write_text("golden_retriever\n\ntree\n")
    program = f"""
import runpy, sys
sys.path.append({str(bare)!r})
try:
    runpy.run_path({str(script)!r}, run_name="__main__")
finally:
    assert not {{"torch", "tools", "clip"}} & sys.modules.keys()
"""
    words = [sys.executable, "-I", "-S", "-c", program, str(picture), "--classes", str(names)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    path, *lines = done.stdout.splitlines()
    assert path == str(picture)
    predictor.model.set_classes(["golden_retriever", "tree"])
    predictor.classnames = ["golden_retriever", "tree"]
    (labels,) = predictor.predict([picture])
    for line, label in zip(lines, labels, strict=True):
        percent, _, name = line.split(maxsplit=2)
        assert name == label.name.replace("_", " ")
        assert float(percent) == pytest.approx(100 * label.probability, abs=0.02)
    words[-2:] = [str(names)]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f'error: cannot read image "{names}": it is damaged, not an image' in done.stderr


@pytest.fixture()
def bundled(tiny_bundle, monkeypatch, capsys) -> Callable[..., tuple[int, str, str]]:
    """The command of a bundle: status, output and errors for its words."""

    def call(*words: object) -> tuple[int, str, str]:
        script = str(tiny_bundle / "predict.py")
        monkeypatch.setattr(sys, "argv", [script, *map(str, words)])
        monkeypatch.setattr(sys, "path", [*sys.path])
        # its bundle.py is imported by name
        monkeypatch.delitem(sys.modules, "bundle", raising=False)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(script, run_name="__main__")
        return (ended.value.code, *capsys.readouterr())

    return call


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with two pictures, and with what is none."""
    folder = tmp_path_factory.mktemp("photos")
    (folder / "deep" / ".hidden").mkdir(parents=True)
    pictures()[5].save(folder / "b.PNG")
    pictures()[2].save(folder / "deep" / "a.png")
    pictures()[2].save(folder / "deep" / ".hidden" / "x.png")
    (folder / "notes.txt").write_text("no image")
    return folder


def test_the_command_of_a_bundle_prints_as_predict_py(bundled, tiny_run, photos, capsys):
    paths = [photos / "b.PNG", photos / "deep" / "a.png"]
    best = [labels[0].probability for labels in Predictor.load(tiny_run).predict(paths)]
    between = str(sum(best) / 2)
    for words in (
        [],
        ["--top-k", "2", "--csv"],
        *(["--min-probability", between, *more] for more in ([], ["--csv"])),
    ):
        status, out, err = bundled(photos, *words)
        assert (status, err) == (0, "")
        assert predict.main(["--model-dir", str(tiny_run), str(photos), *words]) == 0
        own = capsys.readouterr().out.replace(",", " ").split()
        found = out.replace(",", " ").split()
        assert ("rejected:" in own or "yes" in own) == ("--min-probability" in words)
        for one, other in zip(found, own, strict=True):
            assert one == other or float(one) == pytest.approx(float(other), abs=0.011)


def test_the_command_of_a_bundle_leaves_out_or_stops_at_what_is_no_picture(
    bundled, tiny_run, photos, tmp_path, capsys
):
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in" / "aa.png").write_bytes(b"no picture")
    status, _, err = bundled(tmp_path / "in")
    assert status == 2 and err.count("\n") == 1 and "skipped" not in err
    # the words of the toolbox's own command
    assert predict.main(["--model-dir", str(tiny_run), str(tmp_path / "in")]) == 2
    assert err == capsys.readouterr().err and "--skip-bad leaves such files out" in err
    status, out, err = bundled(tmp_path / "in", "--skip-bad", "--top-k", "1")
    assert status == 0 and "aa.png" not in out and out.count("%") == 2
    assert "skipped 1 of 3 files" in err
    (tmp_path / "in" / "aa.png").write_bytes((photos / "b.PNG").read_bytes()[:-40])
    status, _, err = bundled(tmp_path / "in")
    assert status == 2 and "the file is damaged: replace it" in err
    (tmp_path / "empty").mkdir()
    for words, part in (
        ([tmp_path / "empty"], "empty: no such image or folder, or no images in it"),
        ([tmp_path / "absent.png"], "absent.png: no such image or folder"),
        ([photos, "--top-k", 0], "--top-k is a whole number from 1 on"),
        ([photos, "--min-probability", "nan"], "--min-probability one from 0 to 1"),
        ([photos, "--classes", "a,b"], "export it with --text-encoder"),
    ):
        status, out, err = bundled(*words)
        assert (status, out) == (2, "")
        assert part in err


def test_commands_on_runs_say_that_a_folder_is_a_bundle(tiny_bundle, photos, tmp_path, capsys):
    photo, out = str(photos / "b.PNG"), str(tmp_path / "out.safetensors")
    for command in (
        lambda: predict.main(["--model-dir", str(tiny_bundle), photo]),
        lambda: serve.main(["--model-dir", str(tiny_bundle)]),
        lambda: run_command(export.build_parser(), export.export, [str(tiny_bundle), out]),
        lambda: run_command(inspect_run.build_parser(), inspect_run.run, [str(tiny_bundle)]),
    ):
        assert command() == 2
        err = capsys.readouterr().err
        assert err.startswith("error: ") and err.count("\n") == 1
        assert f"python {tiny_bundle / 'predict.py'}" in err
        assert f"serve.py --bundle {tiny_bundle}" in err


@pytest.mark.parametrize(("precision", "size"), [("fp16", 0.6), ("int8", 0.65)])
def test_smaller_precisions_tell_their_loss(fresh, data_root, tmp_path, precision, size):
    images = sorted(map(str, (data_root / "test-images" / "test").glob("*/*.png")))
    predictor = fresh("VPT")
    notes = write_bundle(
        predictor, tmp_path / "small", tmp_path, precision=precision, compare=images
    )
    found = notes["differences"]
    assert found == differences(predictor, Bundle(tmp_path / "small"), images)
    assert found["images"] == len(images)
    assert 0 < found["mean"] <= found["largest"] < 0.2
    assert "largest difference" in (tmp_path / "small" / "README.md").read_text()
    weights = sum(value.nbytes for value in predictor.model.clip.visual.parameters())
    assert (tmp_path / "small" / "image_encoder.onnx").stat().st_size < size * weights + 30_000


def test_a_bundle_tells_what_it_is_and_nothing_of_this_machine(tiny_bundle, tiny_run):
    card = (tiny_bundle / "README.md").read_text(encoding="utf-8")
    for part in (
        "# MMLoP on TestImages",
        "4 shots per class,",
        "backbone: tiny",
        "licence",
        "forget-me-not",
    ):
        assert part in card
    for path in filter(Path.is_file, tiny_bundle.iterdir()):  # not what an import leaves
        assert str(ROOT).encode() not in path.read_bytes(), path.name
        assert str(tiny_run).encode() not in path.read_bytes(), path.name


def test_images_that_are_no_pictures_are_left_out_of_a_comparison(
    tiny_run, photos, tmp_path, capsys
):
    shutil.copytree(photos, tmp_path / "in")
    (tmp_path / "in" / "aa.png").write_bytes(b"no picture")
    words = [tiny_run, "--bundle", tmp_path / "bundle", "--compare", tmp_path / "in"]
    assert command(*words, "--skip-bad") == 0
    out, err = capsys.readouterr()
    assert "compared with the run on 2 images" in out
    assert "skipped 1 of 3 files" in err and "aa.png" in err


def test_accuracy_of_the_record(tiny_bundle, tiny_run, tmp_path):
    write_record(tmp_path, 871, total=1000)
    notes = json.loads((tiny_bundle / "bundle.json").read_text(encoding="utf-8"))
    for names, other in ((["a", "b"], False), (["a", "c"], True)):
        card = text(notes, Predictor.load(tiny_run, names), tmp_path)
        assert "87.10 % on 1000 images of `test`" in card
        assert ("no accuracy was measured" in card) == other


def test_the_card_names_own_images_and_how_many_there_were(tiny_bundle, tiny_run, tmp_path):
    write_record(tmp_path, 871, total=1000)
    path = tmp_path / "result.json"
    found = json.loads(path.read_text(encoding="utf-8"))
    found["images_per_class"] = {"least": 2, "most": 3}
    found["arguments"]["dataset_config_file"] = "configs/datasets/mybirds.yaml"
    path.write_text(json.dumps(found), encoding="utf-8")
    notes = json.loads((tiny_bundle / "bundle.json").read_text(encoding="utf-8"))
    predictor = Predictor.load(tiny_run)
    predictor.cfg.DATASET.NAME = "ImageFolder"
    card = text(notes, predictor, tmp_path)
    assert card.startswith("# MMLoP on mybirds\n")
    assert "mybirds, 4 shots per class (there were 2 to 3)" in card
    predictor.cfg.DATASET.NUM_SHOTS = -1
    assert "all images per class (2 to 3)" in text(notes, predictor, tmp_path)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--precision", "int8"], "go with --bundle"),
        (["--bundle", "new", "--precision", "int8"], "--compare"),
        (["--bundle", "there"], "there exists"),
        (["--bundle", "new", "--compare", "absent.png"], "absent.png"),
        (["--bundle", "new", "--skip-bad"], "--skip-bad goes with --compare"),
        (["--bundle", "new", "--compare", "there/x.png"], "x.png"),
        (["--bundle", "new", "--compare", "there/x.png", "--skip-bad"], "no image is left"),
        (["--bundle", "new", "--load-epoch", "8"], "There is: model.pth.tar-1"),
    ],
)
def test_bad_input_writes_nothing(tiny_run, tmp_path, monkeypatch, capsys, words, part):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("there", "x").touch()
    Path("there", "x.png").touch()
    assert command(tiny_run, *words) == 2
    captured = capsys.readouterr()
    assert part in captured.err
    assert captured.err.count("error: ") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_absent_packages_get_one_line(tiny_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert command(tiny_run, "--bundle", tmp_path / "new") == 2
    assert "requirements-deploy.txt" in capsys.readouterr().err


def test_a_transform_that_is_not_known_is_refused(fresh, tmp_path):
    predictor = fresh("VPT", "INPUT.TRANSFORMS", ["instance_norm"])
    with pytest.raises(ValueError, match="InstanceNormalization"):
        write_bundle(predictor, tmp_path / "bundle", tmp_path)
    assert not list(tmp_path.glob("bundle*"))
