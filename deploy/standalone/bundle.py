"""The classifier of this folder, for programs of your own; needs onnxruntime, numpy and Pillow.

bundle = Bundle()
probabilities = bundle.probabilities(np.stack([bundle.read("cat.jpg"), bundle.read("dog.jpg")]))
"""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image

#: version of the files' layout
FORMAT = 1
#: EXIF orientation -> transposition that turns the picture upright
TURNS = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}


class Bundle:
    """A classifier of pictures.

    Args:
        folder: of the bundle; by default that of this file.
        options: ``onnxruntime.SessionOptions``, e.g. with a number of threads.

    Raises:
        FileNotFoundError: the folder is no bundle.
        ValueError: it has another layout than this file reads.
    """

    def __init__(self, folder=None, options=None):
        self.folder = Path(folder or Path(__file__).parent)
        self.notes = json.loads((self.folder / "bundle.json").read_text("utf-8"))
        if self.notes["format"] != FORMAT:
            raise ValueError(f"{folder} has layout {self.notes['format']}, not {FORMAT}")
        encoder, self.options = self.notes["image_encoder"], options
        self.labels, self.batch_size = list(self.notes["labels"]), encoder["batch_size"]
        self.session = self.load(encoder["file"])
        self.classifier = None  # without one, the encoder classifies
        if self.notes["classifier"]:
            self.classifier = np.load(self.folder / self.notes["classifier"])

    def load(self, file):
        """Load an ONNX file of the bundle."""
        wanted = ("CUDAExecutionProvider", "CPUExecutionProvider")
        providers = [name for name in wanted if name in onnxruntime.get_available_providers()]
        path = str(self.folder / file)
        return onnxruntime.InferenceSession(path, self.options, providers=providers)

    def set_classes(self, names):
        """Classify among other names from now on, with the text encoder.

        Raises:
            ValueError: the bundle has no text encoder, or a name is too long for it.
        """
        if not self.notes["text_encoder"]:
            raise ValueError(f"no text encoder in {self.folder}: its classes are fixed")
        script = runpy.run_path(str(self.folder / "class_names.py"))
        self.classifier = script["class_features"](self, names)
        self.labels = list(names)

    def read(self, picture):
        """Read a file, or take an opened picture, as the model sees it: (3, height, width)."""
        if not isinstance(picture, Image.Image):
            with Image.open(picture) as opened:
                return self.read(opened)
        how, picture = self.notes["preprocessing"], to_rgb(picture)
        short, (width, height) = how["resize"], picture.size
        longer = int(short * max(width, height) / min(width, height))
        size = (short, longer) if width <= height else (longer, short)
        if size != picture.size:
            picture = picture.resize(size, Image.Resampling[how["interpolation"].upper()])
        high, wide = how["crop"]
        left, top = round((size[0] - wide) / 2), round((size[1] - high) / 2)
        pixels = np.asarray(picture.crop((left, top, left + wide, top + high)), np.float32) / 255
        mean, std = np.array(how["mean"], np.float32), np.array(how["std"], np.float32)
        return ((pixels - mean) / std).transpose(2, 0, 1)

    def probabilities(self, batch):
        """Compute probabilities (B, C), float32, of pictures (B, 3, height, width)."""
        step = self.batch_size or len(batch)
        parts = [batch[i : i + step] for i in range(0, len(batch), step)]
        y = np.concatenate([self.session.run(None, {"image": part})[0] for part in parts])
        if self.classifier is not None:
            y = np.float32(self.notes["logit_scale"]) * y @ self.classifier.T
        y = np.exp(y - y.max(axis=1, keepdims=True))
        return y / y.sum(axis=1, keepdims=True)


def to_rgb(picture):
    """Turn a photo upright and make it RGB: 16-bit grey scaled to 8, transparency on white.

    Raises:
        ValueError: its pixels are floating-point numbers or exceed 16 bits.
    """
    picture.load()
    try:
        orientation = picture.getexif().get(0x0112)
    except Exception:  # damaged EXIF raises nearly anything, and the pixels are sound
        orientation = None
    turn = None if picture.format == "TIFF" else TURNS.get(orientation)  # Pillow turns a TIFF
    picture = picture if turn is None else picture.transpose(Image.Transpose(turn))
    if picture.mode == "F":
        raise ValueError("its pixels are floating-point numbers; save it with 8 or 16 bits")
    if picture.mode == "I" or picture.mode.startswith("I;16"):
        grey = np.asarray(picture, np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise ValueError("its grey values exceed 16 bits; save it with 8 or 16 bits")
        picture = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    if "A" in picture.getbands() or "transparency" in picture.info:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return picture.convert("RGB")
