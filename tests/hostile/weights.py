"""Readers of weights and tensors: checkpoints of runs, CLIP's weights, caches of features."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from safetensors.torch import save as as_safetensors

from support.command_line import ROOT
from tests.clip.archives import save_torchscript

from .judging import CANARY
from .mutations import (
    Payload,
    Random,
    as_json,
    as_yaml,
    changed_bytes,
    changed_safetensors,
    changed_tree,
    odd_text,
    odd_value,
    write_hostile,
)


def odd_tensor(rng: Random) -> Any:
    """Return a tensor, or what stands for one, that was not expected."""
    kind = rng.randrange(14)
    shape = rng.choice(((), (0,), (1,), (4, 32), (4, 2), (3, 0, 5), (1, 1, 1, 1), (2, 3, 4)))
    if kind == 0:
        return torch.full(shape, rng.choice((float("nan"), float("inf"), -1e38)))
    if kind == 1:
        return torch.zeros(shape, dtype=rng.choice((torch.int64, torch.bool, torch.complex64)))
    if kind == 2:
        return torch.zeros(shape, dtype=rng.choice((torch.float16, torch.float64, torch.bfloat16)))
    if kind == 3:  # a small file for many values
        return torch.zeros(1).expand(
            rng.choice(((10**10,), (10**6, 10**6), (4, 64), (49408, 10**6)))
        )
    if kind == 4:
        return torch.sparse_coo_tensor(torch.zeros(2, 1).long(), torch.ones(1), (10**9, 10**9))
    if kind == 5:
        return torch.zeros(shape, device="meta")
    if kind == 6:
        return torch.nn.Parameter(torch.zeros(shape))
    if kind == 7:
        return np.zeros(shape)
    if kind == 8:
        return torch.eye(4).to_sparse_csr()
    if kind == 9:
        return torch.quantize_per_tensor(torch.zeros(4, 4), 0.1, 0, torch.qint8)
    if kind == 10:
        return {"a": torch.zeros(shape)}
    return odd_value(rng)


def saved(tree: Any, legacy: bool = False) -> bytes:
    """Return what ``torch.save`` writes of a tree."""
    file = io.BytesIO()
    torch.save(tree, file, _use_new_zipfile_serialization=not legacy)
    return file.getvalue()


@functools.cache
def inflated(data: bytes, zeros: int = 1 << 29) -> bytes:
    """Return an archive of ``torch.save`` whose largest part is zeros, compressed to little."""
    out = io.BytesIO()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as archive,
        zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as bomb,
    ):
        largest = max(archive.infolist(), key=lambda part: part.file_size)
        for part in archive.infolist():
            if part is not largest:
                bomb.writestr(part.filename, archive.read(part))
                continue
            with bomb.open(part.filename, "w", force_zip64=True) as file:
                for _ in range(zeros >> 24):
                    file.write(bytes(1 << 24))
    return out.getvalue()


class _TorchFile:
    """Hostile files of ``torch.save`` around one valid tree."""

    def __init__(self, tree: Any, own_file: bytes | None = None) -> None:
        self.tree, self.valid = tree, own_file or saved(tree)

    def write(self, rng: Random | None, path: Path, canary: Path) -> None:
        if rng is None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.valid)
            return

        def change() -> bytes:
            if rng.random() < 0.02:
                return inflated(self.valid)
            tree = self.tree
            if rng.random() < 0.3:
                payload = Payload(canary, rng.randrange(4))
                tree = changed_tree(rng, tree, lambda _: payload)
            else:
                tree = changed_tree(
                    rng, tree, lambda r: (odd_tensor, odd_value)[r.random() < 0.4](r)
                )
            try:
                return saved(tree, legacy=rng.random() < 0.2)
            except Exception:  # not every odd value can be written
                return changed_bytes(rng, self.valid)

        write_hostile(rng, path, self.valid, change, canary)


def own_images(root: Path) -> Path:
    """Write a data set of a user's own images below a data root, and return its folder."""
    from PIL import Image

    rng = np.random.default_rng(0)
    for name in ("cat", "golden_retriever", "tree"):
        for number in range(6):
            path = root / "own" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (36, 40, 3)).astype(np.uint8)).save(path)
    return root / "own"


@functools.cache
def small_weights() -> dict[str, torch.Tensor]:
    """Return the state dict of a random CLIP of two blocks, with OpenAI's vocabulary."""
    from clip.model import CLIP

    torch.manual_seed(0)
    return {
        key: value.contiguous()
        for key, value in CLIP(32, 32, 2, 64, 16, 77, 49408, 64, 1, 2).state_dict().items()
    }


def small_model() -> Any:
    """Build the CLIP of :func:`small_weights` in float32."""
    from clip.weights import build_model

    return build_model(small_weights()).float()


def run_words(root: Path, output: Path, *pairs: str) -> list[str]:
    """Return a command line of train.py for a small run on :func:`own_images`."""
    words = ["--trainer", "CoOp", "--root", str(root), "--output-dir", str(output)]
    words += ["--config-file", str(ROOT / "configs/trainers/CoOp/tiny.yaml"), "--seed", "1"]
    words += ["DATASET.NAME", "ImageFolder", "DATASET.IMAGEFOLDER.FOLDER", "own"]
    return [*words, "DATASET.NUM_SHOTS", "2", "USE_CUDA", "False", *pairs]


def small_trainer(folder: Path) -> Any:
    """Build an untrained CoOp on a small CLIP and :func:`own_images`, and save it."""
    import train
    from dassl.engine import build_trainer

    own_images(folder / "data")
    backbone = folder / "clip.pt"
    torch.save({key: value.half() for key, value in small_weights().items()}, backbone)
    words = run_words(folder / "data", folder / "run", "MODEL.BACKBONE.NAME", str(backbone))
    trainer = build_trainer(train.setup_cfg(train.build_parser().parse_args(words)))
    trainer.save_model(0, str(folder / "run"))
    return trainer


class RunCheckpoint:
    """Checkpoint of a run, loaded for prediction (predict.py)."""

    def __init__(self, folder: Path) -> None:
        small_trainer(folder)
        self.image = str(folder / "data/own/cat/0.png")
        file = folder / "run/prompt_learner/model.pth.tar-1"
        self.file = _TorchFile(torch.load(file, weights_only=True), file.read_bytes())

    def write(self, rng: Random | None, target: Path) -> None:
        path = target / "prompt_learner/model.pth.tar-1"
        if rng is not None and rng.random() < 0.15:  # the config is YAML within the file
            import yaml

            tree = dict(self.file.tree, meta=dict(self.file.tree["meta"]))
            config = changed_tree(rng, yaml.safe_load(tree["meta"]["config"]))
            text = as_yaml(rng, config, target.parent / CANARY)
            tree["meta"]["config"] = text.decode("utf-8", "replace")
            path.parent.mkdir()
            path.write_bytes(saved(tree))
            return
        self.file.write(rng, path, target.parent / CANARY)

    def read(self, target: Path) -> None:
        from trainers import Predictor

        predictor = Predictor.load(target, device="cpu")
        labels = predictor.predict([self.image])[0]
        assert abs(sum(label.probability for label in labels) - 1) < 1e-3, labels
        for label in labels:
            print(label.name.encode("utf-8", "backslashreplace"))


class ResumedCheckpoint:
    """Checkpoint and its text file, with which a run goes on (train.py)."""

    def __init__(self, folder: Path) -> None:
        self.trainer = small_trainer(folder)
        file = folder / "run/prompt_learner/model.pth.tar-1"
        self.file = _TorchFile(torch.load(file, weights_only=True), file.read_bytes())
        self.state = self.trainer.model.learner.state_dict()

    def write(self, rng: Random | None, target: Path) -> None:
        folder, canary = target / "prompt_learner", target.parent / CANARY
        pointer = b"model.pth.tar-1\n"
        if rng is not None and rng.random() < 0.2:
            self.file.write(None, folder / "model.pth.tar-1", canary)
            write_hostile(
                rng,
                folder / "checkpoint",
                pointer,
                lambda: odd_text(rng).encode("utf-8", "surrogatepass") + b"\n",
                canary,
            )
            return
        self.file.write(rng, folder / "model.pth.tar-1", canary)
        (folder / "checkpoint").write_bytes(pointer)

    def read(self, target: Path) -> None:
        from adaptation.trainer import Losses
        from dassl.optim import build_lr_scheduler, build_optimizer

        trainer = self.trainer
        learner, optim = trainer.model.learner, trainer.cfg.OPTIM
        name = trainer.model_name
        trainer.optim = trainer._optims[name] = build_optimizer(learner, optim)
        trainer.sched = trainer._scheds[name] = build_lr_scheduler(trainer.optim, optim)
        before = {key: value.clone() for key, value in learner.state_dict().items()}
        try:
            trainer.start_epoch = trainer.resume_model_if_exist(str(target))
            # a step, and the learning rate after it
            loss = sum(parameter.square().sum() for parameter in learner.parameters())
            trainer.step(Losses(loss, None, {}))
            trainer.update_lr()
            range(trainer.start_epoch, trainer.max_epoch)
        finally:
            learner.load_state_dict(before)


class InitialWeights:
    """Weights that a run starts from (MODEL.INIT_WEIGHTS)."""

    def __init__(self, folder: Path) -> None:
        from torch import nn

        torch.manual_seed(0)
        self.model = nn.Sequential(nn.Linear(4, 32), nn.BatchNorm1d(32), nn.Linear(32, 2))
        self.start = {key: value.clone() for key, value in self.model.state_dict().items()}
        self.file = _TorchFile({"state_dict": dict(self.start), "epoch": 3})

    def write(self, rng: Random | None, target: Path) -> None:
        self.file.write(rng, target / "weights.pth", target.parent / CANARY)

    def read(self, target: Path) -> None:
        from dassl.utils import load_pretrained_weights

        self.model.load_state_dict(self.start)
        load_pretrained_weights(self.model, str(target / "weights.pth"))
        assert self.model(torch.zeros(3, 4)).isfinite().all()


class PublishedCache:
    """Tip-Adapter's keys, or the values beside them, as the published code writes them."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(0)
        keys = torch.nn.functional.normalize(torch.randn(16, 6), dim=0).half()
        values = torch.eye(3).repeat_interleave(2, dim=0).half()
        self.files = {"keys": _TorchFile(keys), "values": _TorchFile(values)}

    def write(self, rng: Random | None, target: Path) -> None:
        victim = rng.choice(list(self.files)) if rng else ""
        for name, file in self.files.items():
            path = target / f"{name}_2shots.pt"
            file.write(rng if name == victim else None, path, target.parent / CANARY)

    def read(self, target: Path) -> None:
        from adaptation.published_caches import read_cache

        files = (target / f"{name}_2shots.pt" for name in self.files)
        keys, labels = read_cache(*files, embed_dim=16, n_classes=3, in_columns=True)
        near = (torch.ones(1, 16) @ keys.T).exp()
        assert torch.zeros(1, 3).index_add(1, labels, near).isfinite().all()


def use_clip(path: Path) -> None:
    """Load a CLIP and encode an image and a text with it."""
    from adaptation.texts import class_prompts
    from clip.loading import load_state_dict
    from clip.weights import build_model

    model = build_model(load_state_dict(path)).float()
    side = model.visual.input_resolution
    with torch.no_grad():
        image = model.encode_image(torch.zeros(1, 3, side, side))
        text = model.encode_text(class_prompts(model, ["cat"], "a {}.").ids)
        assert (image @ text.T).isfinite().all()


class ClipStateDict:
    """CLIP's weights as ``torch.save`` writes them."""

    def __init__(self, folder: Path) -> None:
        self.weights = {key: value.half() for key, value in small_weights().items()}
        self.file = _TorchFile(self.weights)

    def write(self, rng: Random | None, target: Path) -> None:
        self.file.write(rng, target / "clip.pt", target.parent / CANARY)

    def read(self, target: Path) -> None:
        use_clip(target / "clip.pt")


class ClipArchive:
    """CLIP's weights as a TorchScript archive."""

    def __init__(self, folder: Path) -> None:
        save_torchscript({k: v.half() for k, v in small_weights().items()}, folder / "archive.pt")
        self.valid = (folder / "archive.pt").read_bytes()

    def write(self, rng: Random | None, target: Path) -> None:
        path, canary = target / "clip.pt", target.parent / CANARY
        if rng is None:
            path.write_bytes(self.valid)
            return

        def change() -> bytes:
            out = io.BytesIO()
            with (
                zipfile.ZipFile(io.BytesIO(self.valid)) as archive,
                zipfile.ZipFile(out, "w") as changed,
            ):
                parts = archive.infolist()
                victim = rng.choice(parts)
                for part in parts:
                    data = archive.read(part)
                    if part is victim and rng.random() < 0.3:
                        data = pickle.dumps(Payload(canary, rng.randrange(4)), protocol=2)
                    elif part is victim:
                        data = changed_bytes(rng, data)
                    if not (part is victim and rng.random() < 0.1):
                        changed.writestr(part.filename, data)
            return out.getvalue()

        write_hostile(rng, path, self.valid, change, canary)

    def read(self, target: Path) -> None:
        use_clip(target / "clip.pt")


class ClipSafetensors:
    """CLIP's weights in safetensors, plain and with the token table of the embedded backbone."""

    def __init__(self, folder: Path) -> None:
        from clip import tiny

        weights = {key: value.contiguous() for key, value in small_weights().items()}
        ids = torch.arange(500)
        tiny.pack(weights, ids, folder / "p.safetensors", {"token_seed": 0, "token_std": 0.02})
        weights = {key: value.half() for key, value in weights.items()}
        self.files = (as_safetensors(weights), (folder / "p.safetensors").read_bytes())
        self.weights = weights

    def write(self, rng: Random | None, target: Path) -> None:
        path, canary = target / "clip.safetensors", target.parent / CANARY
        if rng is None:
            path.write_bytes(self.files[0])
            return
        valid = rng.choice(self.files)

        def change() -> bytes:
            if rng.random() < 0.6:
                return changed_safetensors(rng, valid)
            weights = dict(self.weights)
            for key in rng.sample(sorted(weights), rng.choice((1, 2))):
                odd = odd_tensor(rng)
                plain = isinstance(odd, torch.Tensor) and odd.layout == torch.strided
                if plain and odd.device.type == "cpu" and odd.numel() < 1000:
                    weights[key] = odd.contiguous()
                else:
                    del weights[key]
            try:
                return as_safetensors(weights)
            except Exception:  # not every odd value can be written
                return changed_bytes(rng, valid)

        write_hostile(rng, path, valid, change, canary)

    def read(self, target: Path) -> None:
        use_clip(target / "clip.safetensors")


class OpenClipConfig:
    """Configuration of open_clip beside its weights."""

    def __init__(self, folder: Path) -> None:
        self.weights = saved(small_weights())
        from clip.weights import architecture

        found = architecture(small_weights())
        vision = {"image_size": found["image_resolution"], "layers": found["vision_layers"]}
        vision |= {"width": found["vision_width"], "patch_size": found["vision_patch_size"]}
        vision |= {"head_width": found["vision_width"] // found["vision_heads"]}
        text = {"context_length": found["context_length"], "vocab_size": found["vocab_size"]}
        text |= {"width": found["transformer_width"], "heads": found["transformer_heads"]}
        text |= {"layers": found["transformer_layers"]}
        model = {"embed_dim": found["embed_dim"], "quick_gelu": True}
        model |= {"vision_cfg": vision, "text_cfg": text}
        preprocess = {"mean": [0.5, 0.5, 0.5], "std": [0.3, 0.3, 0.3], "interpolation": "bicubic"}
        self.tree = {"model_cfg": model, "preprocess_cfg": preprocess}

    def write(self, rng: Random | None, target: Path) -> None:
        (target / "weights.pt").write_bytes(self.weights)
        path, valid = target / "model.json", json.dumps(self.tree).encode()
        if rng is None:
            path.write_bytes(valid)
            return
        write_hostile(
            rng,
            path,
            valid,
            lambda: as_json(rng, changed_tree(rng, self.tree)),
            target.parent / CANARY,
        )

    def read(self, target: Path) -> None:
        from clip.loading import check_name

        name = f"open_clip:{target / 'model.json'}={target / 'weights.pt'}"
        check_name(name)
        use_clip(name)  # type: ignore[arg-type]  # names are taken as well as paths


class TeacherFeatures:
    """Cached features of the frozen CLIP; what is damaged is computed anew."""

    key: ClassVar[dict[str, Any]] = {"weights": "0" * 64, "classnames": ["cat", "dog"]}

    def __init__(self, folder: Path) -> None:
        from adaptation.savings.teacher import FeatureFiles

        self.features = {"features": torch.randn(2, 64)}
        files = FeatureFiles(100, folder / "teacher")
        files.save("text", self.key, self.features)
        (file,) = (folder / "teacher").glob("*.safetensors")
        self.name, self.valid = file.name, file.read_bytes()

    def write(self, rng: Random | None, target: Path) -> None:
        path = target / self.name
        if rng is None:
            path.write_bytes(self.valid)
            return
        canary = target.parent / CANARY
        write_hostile(rng, path, self.valid, lambda: changed_safetensors(rng, self.valid), canary)

    def read(self, target: Path) -> None:
        from adaptation.savings.teacher import FeatureFiles

        files = FeatureFiles(100, target)
        found = files.load("text", self.key)
        assert found is None or torch.equal(found["features"], self.features["features"])
        # a file that cannot be used does not keep the next run from caching
        if found is None:
            files.save("text", self.key, self.features)


class DecodedImages:
    """Cached pixels of decoded images; what is damaged is decoded anew."""

    def __init__(self, folder: Path) -> None:
        self.images = [str(path) for path in sorted(own_images(folder).rglob("*.png"))]
        self.cache = os.environ["DASSL_CACHE"]
        self._open(folder / "first")
        (file,) = (folder / "first").glob("*.pixels")
        self.name, self.valid = file.name, file.read_bytes()

    def _open(self, folder: Path) -> list[int]:
        from dassl.data.image_cache import DECODED, open_cache
        from dassl.utils import read_image

        os.environ["DASSL_CACHE"] = str(folder)
        try:
            pixels = open_cache(
                self.images,
                lambda path: np.asarray(read_image(path)),
                DECODED,
                dataset="Own",
                limit=10**8,
            )
            return [int(array.sum()) for array in map(pixels.__getitem__, range(len(pixels)))]
        finally:
            os.environ["DASSL_CACHE"] = self.cache

    def write(self, rng: Random | None, target: Path) -> None:
        path = target / self.name
        if rng is None:
            path.write_bytes(self.valid)
            return

        def change() -> bytes:  # the shapes, which stand at the end
            shapes = np.frombuffer(self.valid[-24 * len(self.images) :], "<i8").copy()
            shapes[rng.randrange(len(shapes))] = rng.choice((0, -1, 1, 3, 10**9, -(2**63), 2**62))
            return self.valid[: -24 * len(self.images)] + shapes.tobytes()

        write_hostile(rng, path, self.valid, change, target.parent / CANARY)

    def read(self, target: Path) -> None:
        from dassl.data.image_cache import CacheError

        try:
            self._open(target)
        except CacheError as error:
            print(f"Note: images are decoded each time: {error}")
