"""Weights of open_clip: what their names mean, and how they become a CLIP state dict.

``open_clip:ARCHITECTURE/TAG`` names published weights, which open_clip downloads on first use.
``open_clip:ARCHITECTURE=FILE`` and ``open_clip:ARCHITECTURE/TAG=FILE`` name a local file with
weights of this architecture (trained as the tag says). ARCHITECTURE is one of open_clip's names, or
the path of a JSON file with a configuration in open_clip's format. The path of a file that
open_clip publishes is enough where its ``open_clip_config.json`` lies beside it.

open_clip is imported only when such a name is used, since the import takes seconds.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from support.documents import parse_json
from support.download import CACHE_VARIABLE
from support.files import as_text, read_bytes
from support.hints import closest, did_you_mean

from .model import CLIP, EXTRA_ENTRIES
from .weights import architecture

PREFIX = "open_clip:"
#: start of the names of the files that open_clip publishes, and the configuration beside them
PUBLISHED, CONFIG_FILE = "open_clip", "open_clip_config.json"

# Settings of an open_clip configuration that the conversion takes into account. Any other setting
# must have open_clip's default.
_MODEL = {"embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "custom_text"}
_MODEL |= {"init_logit_scale", "nonscalar_logit_scale"}  # the scale itself is among the weights
_VISION = {"layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size"}
_TEXT = {"context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"}

# Keys, or starts of keys, of models that are not supported.
_FOREIGN = {
    "visual.trunk.": "an image tower of timm",
    "visual.attn_pool": "attentional pooling",
    "text_decoder.": "a text decoder (CoCa)",
    "text.transformer.embeddings.": "a text tower of Hugging Face",
    "text.transformer.encoder.": "a text tower of Hugging Face",
    "text.cls_emb": "a class token in the text",
    "logit_bias": "the bias of a sigmoid loss (SigLIP)",
    "vision_model.": "the layout of Hugging Face's transformers",
}


def is_name(name: str) -> bool:
    """Return whether this names weights of open_clip."""
    return name.startswith(PREFIX)


@dataclasses.dataclass(frozen=True)
class Source:
    """Weights of open_clip with their architecture and preprocessing.

    Args:
        name: the architecture, for messages.
        config: open_clip's configuration of the model.
        quick_gelu: whether the weights were trained with QuickGELU, or with GELU.
        preprocess: open_clip's settings of the images' preparation, with ``mean`` and ``std`` if
            they are known.
        published: open_clip's entry with the addresses, for weights to be downloaded.
        file: the local file otherwise.
    """

    name: str
    config: Mapping[str, Any]
    quick_gelu: bool
    preprocess: Mapping[str, Any]
    published: Mapping[str, Any] | None = None
    file: Path | None = None

    def fetch(self, root: str | Path | None = None) -> Path:
        """Return the path of the file; have open_clip download it if necessary.

        Args:
            root: folder for downloads; by default the environment variable ``CLIP_CACHE``, else
                where open_clip and huggingface_hub keep their files.

        Raises:
            RuntimeError: the download failed.
        """
        if self.file is not None:
            return self.file
        assert self.published is not None  # one of the two is
        import open_clip

        folder = root or os.environ.get(CACHE_VARIABLE) or None
        # at a lower level it reports every attempt
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
        try:
            return Path(open_clip.download_pretrained(self.published, cache_dir=folder))
        except Exception as error:  # several libraries with errors of their own
            where = self.published.get("hf_hub") or self.published.get("url")
            offline = "connection" in str(error).lower()
            why = "the connection failed" if offline else str(error)
            raise RuntimeError(
                f"open_clip could not download {self.name} ({where}): {why}. Download the file "
                f"elsewhere and name it as {PREFIX}{self.name}=FILE"
            ) from error

    def arguments(self) -> dict[str, Any]:
        """Translate the configuration to constructor arguments of :class:`CLIP`.

        Raises:
            ValueError: the architecture has parts that :class:`CLIP` lacks; the text names them.
        """
        if problems := _unsupported(self.config):
            raise ValueError(
                f"{self.name} of open_clip is not supported: {', '.join(_first(problems))}. Only "
                "models with a plain ViT or ResNet and CLIP's own text encoder are"
            )
        vision, text = _tower("vision_cfg", self.config), _tower("text_cfg", self.config)
        resnet = isinstance(vision["layers"], list | tuple)
        units = vision["width"] * 32 if resnet else vision["width"]
        return {
            "embed_dim": self.config["embed_dim"],
            "image_resolution": vision["image_size"],
            "vision_layers": tuple(vision["layers"]) if resnet else vision["layers"],
            "vision_width": vision["width"],
            "vision_patch_size": None if resnet else vision["patch_size"],
            "context_length": text["context_length"],
            "vocab_size": text["vocab_size"],
            "transformer_width": text["width"],
            "transformer_heads": text["heads"],
            "transformer_layers": text["layers"],
            "vision_heads": units // vision["head_width"],
            "vision_mlp_width": None if resnet else int(vision["width"] * vision["mlp_ratio"]),
            "transformer_mlp_width": int(text["width"] * text["mlp_ratio"]),
            "quick_gelu": self.quick_gelu,
        }

    def convert(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Convert a state dict of open_clip to OpenAI's keys and ``EXTRA_ENTRIES``.

        Args:
            weights: of this architecture; values are kept as they are.

        Raises:
            ValueError: weights of another architecture, or an architecture that is not supported.
        """
        arguments = self.arguments()
        if any(name in weights for name in EXTRA_ENTRIES):
            raise ValueError("the file says what architecture it has: give its path alone")
        refuse_foreign(weights)
        # where the configuration asks for a text tower of its own, its entries have a prefix
        converted = {key.removeprefix("text."): value for key, value in weights.items()}
        if "logit_scale" in converted:
            converted["logit_scale"] = converted["logit_scale"].reshape(())
        converted |= {
            name: torch.tensor(arguments[name])
            for name in ("quick_gelu", "vision_heads", "transformer_heads")
        }
        for name in ("mean", "std"):
            if name in self.preprocess:
                converted[f"image_{name}"] = torch.tensor(self.preprocess[name]).float()
        found = architecture(converted)
        problems = [
            f"{key} is {found[key]} instead of {value}"
            for key, value in arguments.items()
            if found[key] != value
        ]
        if not problems:
            with torch.device("meta"):
                expected = CLIP(**arguments).state_dict().keys()
            # a batch norm's count of batches is not needed, and old files lack it
            problems = [f"{key} is missing" for key in expected if key not in converted]
            problems += [
                f"{key} is not part of it"
                for key in converted
                if key not in expected and key not in EXTRA_ENTRIES
            ]
        if problems:
            raise ValueError(
                f"the weights are not those of {self.name}: {', '.join(_first(problems))}"
                f"{_those_that_fit(converted)}"
            )
        _warn_of_preparation(self.name, self.preprocess)
        return converted


def find(name: str) -> Source:
    """Find the weights that a name ``open_clip:...`` stands for; download and read nothing.

    Raises:
        ValueError: an architecture or a tag that open_clip does not have, or that is not
            supported.
        FileNotFoundError: there is no such local file.
    """
    spec, has_file, file = name.removeprefix(PREFIX).partition("=")
    if spec.endswith(".json"):
        source = _from_config(Path(spec).expanduser())
    else:
        source = _from_names(spec, bool(has_file))
    source.arguments()  # refuses what is not supported before anything is loaded
    if has_file:
        path = Path(file).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"no such checkpoint file: {path.absolute()} (in {name!r})")
        source = dataclasses.replace(source, file=path, published=None)
    if source.file is None and source.published is None:
        raise ValueError(f"{name!r} names no weights: add =FILE with the path of a local file")
    return source


def published_source(path: Path) -> Source | None:
    """Return the source of a file published by open_clip if its configuration lies beside it."""
    config = path.with_name(CONFIG_FILE)
    if not path.name.startswith(PUBLISHED) or not config.is_file():
        return None
    return dataclasses.replace(_from_config(config), file=path)


def refuse_foreign(weights: Mapping[str, Tensor]) -> None:
    """Check that weights have no parts of models that are not supported.

    Raises:
        ValueError: they have some; the text names them.
    """
    parts = {
        what: None
        for key, what in _FOREIGN.items()
        if any(entry.startswith(key) for entry in weights)
    }
    if parts:
        raise ValueError(
            f"the file holds {', '.join(parts)}, which is not supported: only the weights of plain "
            "ViT and ResNet CLIPs are"
        )


def check_unnamed(weights: Mapping[str, Tensor], path: Path) -> None:
    """Check that weights without a stated architecture can be OpenAI's.

    The weights do not show their activation and number of heads. OpenAI's were stored in half
    precision, so weights that were not get a warning.

    Args:
        weights: with OpenAI's keys and without ``EXTRA_ENTRIES``.
        path: path of their file.

    Raises:
        ValueError: they cannot be OpenAI's.
    """
    refuse_foreign(weights)
    ask = (
        f"name the architecture, as in --backbone {PREFIX}ARCHITECTURE={path}, since the file does "
        "not say whether it wants GELU or QuickGELU, nor how many heads it has"
    )
    if path.name.startswith(PUBLISHED) or "text.text_projection" in weights:
        raise ValueError(f"a file of open_clip: {ask}{_those_that_fit(weights)}")
    found = architecture(weights)
    for tower, width in (
        ("vision", found["vision_width"]),
        ("transformer", found["transformer_width"]),
    ):
        hidden = found[f"{tower}_mlp_width"]
        if hidden is not None and hidden != 4 * width:
            raise ValueError(
                f"{hidden} hidden units in blocks of width {width}, which no CLIP of OpenAI has: "
                f"{ask}{_those_that_fit(weights)}"
            )
    projection = weights["text_projection"]
    if not torch.equal(projection.half().to(projection.dtype), projection):
        warnings.warn(
            f"{path} does not say what activation and heads it was trained with; taken as OpenAI's "
            f"(QuickGELU, 64 units per head). If it is from open_clip, {ask}",
            stacklevel=3,
        )


def _from_config(path: Path) -> Source:
    """Read a configuration file: a model's configuration, alone or with preprocessing."""
    if not path.is_file():
        raise FileNotFoundError(f"no such configuration file: {path.absolute()}")
    text = read_bytes(path)
    try:
        content = parse_json(as_text(text))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    config = content.get("model_cfg", content) if isinstance(content, dict) else None
    kinds = {"embed_dim": int, "vision_cfg": dict, "text_cfg": dict}
    if not isinstance(config, dict) or any(
        not isinstance(config.get(key), kind) for key, kind in kinds.items()
    ):
        raise ValueError(f"{path} is no configuration of open_clip: it needs {', '.join(kinds)}")
    preprocess = content.get("preprocess_cfg", {})
    if not isinstance(preprocess, dict):
        raise ValueError(f"{path}: preprocess_cfg is {preprocess!r:.80}, not a group of settings")
    for name in ("mean", "std"):
        values = preprocess.get(name, [0.0] * 3)
        numbers = (
            [value for value in values if type(value) in (int, float)]
            if isinstance(values, list)
            else []
        )
        if len(numbers) != 3 or len(values) != 3:
            raise ValueError(f"{path}: {name} is {values!r:.80}, not three numbers")
    return Source(str(path), config, bool(config.get("quick_gelu", False)), preprocess)


def _from_names(spec: str, has_file: bool) -> Source:
    """Find the source of ``ARCHITECTURE`` or ``ARCHITECTURE/TAG``."""
    import open_clip

    # open_clip, too, reads the slash of OpenAI's names as a dash
    if spec.replace("/", "-") in open_clip.list_models():
        name, tag = spec.replace("/", "-"), ""
    else:
        name, _, tag = spec.rpartition("/") if "/" in spec else (spec, "", "")
        name = name.replace("/", "-")
    if name not in open_clip.list_models():
        raise ValueError(
            f"open_clip has no architecture {name!r}"
            f"{_hint(name, open_clip.list_models())} Its names are those of "
            "open_clip.list_models(); or give the path of a configuration file (.json)"
        )
    config = open_clip.get_model_config(name)
    source = Source(name, config, bool(config.get("quick_gelu", False)), {})
    if not tag and has_file:
        return source
    source.arguments()
    tags = open_clip.list_pretrained_tags_by_model(name)
    published = open_clip.get_pretrained_cfg(name, tag)
    if not published:
        wrong = f"open_clip has no {name} {tag!r}" if tag else f"{PREFIX}{name} names no weights"
        raise ValueError(
            f"{wrong}{_hint(tag, tags)} Its tags: {', '.join(tags) or 'none'}; or name a local "
            f"file, {PREFIX}{name}=FILE"
        )
    # the tag states the activation, also for an architecture without "-quickgelu" in its name
    quick_gelu = bool(published.get("quick_gelu", False))
    return Source(f"{name}/{tag}", config, quick_gelu, published, published)


def _hint(name: str, names: Sequence[str]) -> str:
    """End a sentence on an unknown name, with the names that are like it."""
    same_start = [other for other in names if name and other.lower().startswith(name.lower())]
    return did_you_mean(same_start[:3] or closest(name, names, most=3), show=repr) or "."


def _first(problems: list[str]) -> list[str]:
    """Shorten a list to five entries, of which the last counts those left out."""
    return problems if len(problems) < 6 else problems[:4] + [f"and {len(problems) - 4} more"]


def _tower(part: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of one tower, with open_clip's defaults."""
    from open_clip import CLIPTextCfg, CLIPVisionCfg

    kind = CLIPVisionCfg if part == "vision_cfg" else CLIPTextCfg
    return {field.name: field.default for field in dataclasses.fields(kind)} | config[part]


def _unsupported(config: Mapping[str, Any]) -> list[str]:
    """List the settings that :class:`CLIP` does not support or that make no sense."""
    vision = _tower("vision_cfg", config)
    resnet = isinstance(vision["layers"], list | tuple)
    problems = [
        key if isinstance(value, dict) else f"{key} = {value!r}"
        for key, value in config.items()
        if key not in _MODEL and value not in (None, False)
    ]
    for part, supported in (("vision_cfg", _VISION), ("text_cfg", _TEXT)):
        default = _tower(part, {part: {}})
        for key, value in _tower(part, config).items():
            if key in supported:
                several = key in ("layers", "image_size", "patch_size")
                usable = _is_size(value) or (several and isinstance(value, list | tuple))
            else:
                usable = key in default and value == default[key]
            if not usable and not (resnet and key == "patch_size"):  # a ResNet has none
                problems.append(f"{part}.{key} = {value!r}")
    size, step = vision["image_size"], 32 if resnet else vision["patch_size"]
    if not isinstance(size, int) or not isinstance(step, int) or step < 1 or size % step:
        problems.append(f"vision_cfg.image_size = {size!r} in steps of {step!r}")
    return problems


def _is_size(value: object) -> bool:
    """Return whether this is a number that a width, a count or a ratio can be."""
    return type(value) in (int, float) and 0 < value < 1 << 31  # type: ignore[operator]


def _those_that_fit(weights: Mapping[str, Tensor]) -> str:
    """Name the architectures whose shapes the weights have, as the end of an error message."""
    import open_clip

    free = {"vision_heads", "transformer_heads", "quick_gelu"}
    try:
        found = architecture({key.removeprefix("text."): value for key, value in weights.items()})
    except ValueError:
        return ""
    names = []
    for name in open_clip.list_models():
        config = open_clip.get_model_config(name)
        if not _unsupported(config):
            arguments = Source(name, config, False, {}).arguments()
            if all(found[key] == arguments[key] for key in arguments.keys() - free):
                names.append(name)
    if not names:
        return ". No architecture of open_clip has these shapes: describe it in a .json file"
    return f". The shapes are those of {' and '.join(names)}"


def _warn_of_preparation(name: str, preprocess: Mapping[str, Any]) -> None:
    """Warn if the weights were trained on images that were resized in another way."""
    usual = {"interpolation": "bicubic", "resize_mode": "shortest"}
    others = [
        f"{key} {preprocess[key]!r}"
        for key, value in usual.items()
        if preprocess.get(key, value) != value
    ]
    if others:
        warnings.warn(
            f"{name} was trained on images prepared with {' and '.join(others)}; here the "
            "transforms of the config are used (clip.load: shorter side, bicubic, centre crop)",
            stacklevel=3,
        )
