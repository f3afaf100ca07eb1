"""A small random CLIP in a checkpoint file, and a small data set of images, for all tests."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import adaptation.predictor
import adaptation.trainer
from clip.loading import load_state_dict
from dassl.config import get_cfg_default
from dassl.data.datasets import DATASET_REGISTRY, Datum
from datasets.fewshot import FewShotDataset
from tests.parity_files import recorded_clip

ROOT = Path(__file__).resolve().parent.parent
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
#: files of single tests that take twenty seconds or more
LONG = {
    "test_device.py",
    "test_end_to_end.py",
    "test_first_steps.py",
    "test_ranks.py",
    "test_recipe.py",
}
CLASSNAMES = ("cat", "golden_retriever", "forget-me-not", "axolotl", "tree")


def asked_for(config: pytest.Config, marker: str) -> bool:
    """Whether ``-m`` names a marker other than to leave it out."""
    return marker in config.getoption("-m").replace(f"not {marker}", "")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test that is marked so in a process of its own.

    What earlier tests took and gave back would serve allocations that are to fail or to be seen.
    """
    if "OWN_PROCESS" in os.environ or not pyfuncitem.get_closest_marker("own_process"):
        return None
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, pyfuncitem.nodeid],
        cwd=ROOT,
        env={**os.environ, "OWN_PROCESS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout
    return True


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs, also from processes that tests start, unless the tests for them are meant.

    What takes a GPU where there is one would otherwise not have the numbers of the CPU.
    """
    if not asked_for(config, "gpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    # a shell that starts the tests in the background has them, and what they start, ignore Ctrl-C
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # float32 is float32 in comparisons
    torch.backends.cudnn.allow_tf32 = False


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` or ``pipeline`` need a request, the former a CUDA device as well.

    The longest tests come first: at the end one process would wait for another.
    """
    items.sort(key=lambda item: item.path.name not in LONG)
    if not asked_for(config, "pipeline"):
        for item in items:
            if item.get_closest_marker("pipeline"):
                item.add_marker(pytest.mark.skip(reason="done when -m names it"))
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device, and -m gpu"))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Tests run side by side; more threads than cores would slow all of them down."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def clip_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep files that expand on first use out of the user's cache folder."""
    os.environ["CLIP_CACHE"] = str(tmp_path_factory.mktemp("clip-cache"))


@pytest.fixture(scope="session", autouse=True)
def image_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep cached images out of the user's cache folder."""
    os.environ["DASSL_CACHE"] = str(tmp_path_factory.mktemp("image-cache"))


@DATASET_REGISTRY.register()
class TestImages(FewShotDataset):
    """Images of noise in five classes, listed per split in folders ``<split>/<class>/``."""

    __test__ = False
    dataset_dir = "test-images"
    image_dir = ""

    def read_annotations(self):
        def read(split: str) -> list[Datum]:
            return [
                Datum(impath=str(path), label=label, classname=name)
                for label, name in enumerate(CLASSNAMES)
                for path in sorted(Path(self.dataset_dir, split, name).iterdir())
            ]

        return read("train"), read("val"), read("test")


@pytest.fixture(scope="session")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data root that holds ``TestImages``: every class has a colour of its own under the noise."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for split, count in (("train", 8), ("val", 4), ("test", 6)):
        for label, name in enumerate(CLASSNAMES):
            folder = root / "test-images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                base = np.full((40, 36, 3), 40 * label) + rng.integers(0, 60, (40, 36, 3))
                Image.fromarray(base.astype(np.uint8)).save(folder / f"{i}.png")
    about = {
        name.replace("_", " "): [f"the {name} is {kind}" for kind in ("small", "green", "odd")]
        for name in CLASSNAMES
    }
    (root / "gpt_file").mkdir()
    (root / "gpt_file" / "testimages_prompt.json").write_text(json.dumps(about), encoding="utf-8")
    return root


def save_clip(path: Path, vision: str) -> str:
    torch.save(recorded_clip(vision), path)
    return str(path)


@pytest.fixture(scope="session")
def vit_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Checkpoint file of the recorded random CLIP with a ViT."""
    return save_clip(tmp_path_factory.mktemp("clip") / "vit.pt", "vit")


@pytest.fixture(scope="session")
def rn_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Checkpoint file of the recorded random CLIP with a ResNet."""
    return save_clip(tmp_path_factory.mktemp("clip") / "rn.pt", "rn")


@pytest.fixture(scope="session")
def tiny_run(data_root: Path, clip_cache, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run: MMLoP on the embedded CLIP, one epoch on ``TestImages``."""
    import train
    from dassl.engine import build_trainer

    run = tmp_path_factory.mktemp("runs") / "tiny"
    words = ["--trainer", "MMLoP", "--root", str(data_root), "--output-dir", str(run)]
    words += ["--config-file", str(ROOT / "configs/trainers/MMLoP/tiny.yaml"), "--seed", "1"]
    words += ["DATASET.NAME", "TestImages", "DATASET.NUM_SHOTS", "4", "OPTIM.MAX_EPOCH", "1"]
    words += ["TEST.NO_TEST", "True", "USE_CUDA", "False"]
    build_trainer(train.setup_cfg(train.build_parser().parse_args(words))).train()
    return run


@pytest.fixture(scope="session")
def read_once(vit_file: str, rn_file: str):
    """Reading of weights that reads the recorded CLIPs once, which takes as long as building them.

    Models are built of copies. Any other file is read whenever it is asked for.
    """
    known: dict[str, dict[str, torch.Tensor]] = {}

    def load(name_or_path, root=None, before_reading=None):
        name = str(name_or_path)
        if name not in (vit_file, rn_file):
            return load_state_dict(name_or_path, root, before_reading)
        if before_reading is not None:
            before_reading(Path(name))
        if name not in known:
            known[name] = load_state_dict(name)
        return dict(known[name])

    return load


@pytest.fixture()
def make_cfg(data_root: Path, vit_file: str, tmp_path: Path, read_once, monkeypatch):
    """Function that gives the config of a small run: trainer name, then config pairs."""
    for module in (adaptation.trainer, adaptation.predictor):
        monkeypatch.setattr(module, "load_state_dict", read_once)
    import datasets
    import trainers

    def make(trainer: str, *pairs: object):
        cfg = get_cfg_default()
        trainers.extend_cfg(cfg)
        datasets.extend_cfg(cfg)
        cfg.merge_from_file(str(ROOT / "configs" / "base.yaml"))
        for node in cfg.TRAINER.values():
            if isinstance(node, type(cfg)) and "PREC" in node:
                node.PREC = "fp32"
                if "DROPOUT" in node:  # steps that are compared draw nothing
                    node.DROPOUT = 0.0
                # views of each image, to save time
                for key in {"PASSES", "AUGMENT_EPOCH"} & {*node}:
                    node[key] = 2
                if "N_ITERS_FRAC" in node:  # a second stage has tests of its own
                    node.N_ITERS_FRAC = 1.0
        cfg.merge_from_list(
            ["DATASET.NAME", "TestImages", "DATASET.ROOT", str(data_root)]
            + ["MODEL.BACKBONE.NAME", vit_file, "INPUT.SIZE", (32, 32)]
            + ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 4]
            + ["OPTIM.MAX_EPOCH", 1, "OPTIM.LR", 0.01, "OUTPUT_DIR", str(tmp_path / "run")]
            + ["TRAINER.NAME", trainer, "VERBOSE", False, "SEED", 1, "USE_CUDA", False]
            + list(pairs)
        )
        return cfg

    return make


@pytest.fixture()
def method_with_a_node_of_its_own(monkeypatch) -> str:
    """Registry name of a method whose config node is not that name in capitals."""
    from dassl.config import CfgNode
    from dassl.engine import TRAINER_REGISTRY
    from trainers.coop import CoOp

    class OwnNode(CoOp):
        node = "KG"

        @staticmethod
        def extend_cfg(cfg: CfgNode) -> None:
            CoOp.extend_cfg(cfg)
            cfg.TRAINER.KG = cfg.TRAINER.COOP.clone()
            cfg.TRAINER.KG.WEIGHT = 8.0

    monkeypatch.setitem(TRAINER_REGISTRY._obj_map, "OwnNode", OwnNode)
    return "OwnNode"


@pytest.fixture(scope="module")
def browser():
    """A browser for the tests of a page."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright: setup.sh dev")
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"no browser: install one of {', '.join(BROWSERS)} (apt-get install chromium)")
    with api.sync_playwright() as playwright:
        # as root, which containers are, it has no sandbox
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()
