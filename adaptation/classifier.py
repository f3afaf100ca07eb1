"""A frozen CLIP with a prompt learner: images in, logits and features out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.changes import LayerPrompts, n_samples
from clip.model import CLIP
from clip.plain import PlainEncoders
from clip.weights import convert_weights

from .learner import PromptLearner
from .savings.chunks import encode_text_in_chunks
from .savings.memory import MemoryBound, image_bytes, text_bytes
from .savings.teacher import TeacherCache
from .templates import TEACHER_TEMPLATES
from .texts import MAX_SEQUENCES, class_prompts, encode_templates

#: what PREC may say, and the type of automatic mixed precision it means
PRECISIONS = {"fp32": None, "amp": torch.float16, "bf16": torch.bfloat16, "fp16": None}


#: copies of the text features that a training step holds: raw, normalised, corrected, gradients
FEATURE_COPIES = 8


def _no_teacher() -> Prediction:
    raise RuntimeError("this is the frozen CLIP's own prediction: it has no teacher")


@dataclass(frozen=True)
class Prediction:
    """What one forward pass gives; features have unit norm, everything is float32.

    ``image_features`` are ``(B, embed_dim)``, ``text_features`` ``(C, embed_dim)``, or
    ``(B, C, embed_dim)`` where they depend on the image, and ``logits`` ``(B, C)``, scaled.
    ``frozen()`` gives what the frozen CLIP, the teacher, says of the same images, without
    gradients; it is computed once, when it is first asked for.
    """

    image_features: Tensor
    text_features: Tensor
    logits: Tensor
    frozen: Callable[[], Prediction] = _no_teacher


class PromptedCLIP(nn.Module):
    """CLIP plus learner. CLIP is frozen and stays in evaluation mode; only the learner trains.

    Args:
        clip: any CLIP; its parameters are frozen here.
        learner: makes the prompts.
        classnames: the classes to tell apart.
        precision: ``fp32``; ``amp`` and ``bf16`` (automatic mixed precision in float16 and
            bfloat16); ``fp16`` (CLIP's weights in half precision, as OpenAI ships them). In all but
            ``fp32``, weights of ``clip`` are converted here: encode with the methods of this class,
            which set up what goes with it.
        teacher_templates: what the frozen text features are averaged over.
        fast: whether CLIP's own encoders are used, or the plain ones (``clip.plain``), with which
            the text is encoded anew for every batch and nothing is kept on disk.
        memory_gb: what a training step or a test batch may hold beside the weights, in 10^9 bytes,
            by the estimates of ``adaptation.savings.memory``; 0 for no bound. A step may use half
            of it for the images and half for the text, which is encoded in parts, twice, if need
            be; a batch without gradients is cut into parts.
        cache_mb: what frozen features may take on disk, in 10^6 bytes (``TeacherCache``); 0
            computes them each time.

    Normalisation, logits and losses are float32 in every precision.
    """

    def __init__(
        self,
        clip: CLIP,
        learner: PromptLearner,
        classnames: Sequence[str],
        precision: str = "fp32",
        teacher_templates: Sequence[str] = TEACHER_TEMPLATES,
        fast: bool = True,
        memory_gb: float = 0.0,
        cache_mb: int = 0,
    ) -> None:
        super().__init__()
        self.memory = MemoryBound(memory_gb)
        self.teacher_templates = tuple(teacher_templates)
        clip = clip.eval().requires_grad_(False).float()
        self.clip, self.learner = clip, learner
        self.autocast_dtype = PRECISIONS[precision]
        if precision == "fp16":
            convert_weights(clip)
        elif self.autocast_dtype is not None:
            # once, where autocast converts frozen weights in every call
            convert_weights(clip, self.autocast_dtype, convolutions=False)
        #: in place of CLIP's own encoders
        self.plain = None if fast else PlainEncoders(clip)
        self.teacher_cache = TeacherCache(clip, precision, cache_mb if fast else 0)
        self.set_classes(classnames)

    def set_classes(self, classnames: Sequence[str]) -> None:
        """Classify among ``classnames`` from now on.

        Raises:
            ValueError: no name, a name too long, or a learner bound to another number of classes.
        """
        n_inserted = 0
        prompts = self.learner.text_prompts()
        if prompts:
            first = prompts.get(0, ())
            first = first if isinstance(first, tuple | list) else (first,)
            n_inserted = sum(prompt.length - prompt.drop for prompt in first)
        self.text = class_prompts(self.clip, classnames, self.learner.template, n_inserted)
        self.classnames = list(classnames)
        #: features that depend on no prompt, by name; shared by models that share a CLIP
        self._fixed_text: dict[str, Tensor] = {}
        self._kept_text: tuple[object, Tensor] | None = None

    def class_constants(self) -> tuple[object, ...]:
        """What was made for the present classes; another class list has other objects."""
        return self.text, self._fixed_text

    def share_frozen(self, other: PromptedCLIP) -> None:
        """Use another model's CLIP, class tokens and frozen text features in place of own ones.

        Args:
            other: of the same CLIP and precision.

        Raises:
            ValueError: the models classify among other classes, or with other texts.
        """
        if (
            self.classnames != other.classnames
            or self.teacher_templates != other.teacher_templates
            or not torch.equal(self.text.ids, other.text.ids)
        ):
            raise ValueError("models with different classes or texts cannot share what is frozen")
        self.clip, self.text, self._fixed_text = other.clip, other.text, other._fixed_text
        self.plain, self.teacher_cache.model = other.plain, other.clip

    @property
    def encoders(self) -> CLIP | PlainEncoders:
        """What encodes texts and images."""
        return self.plain or self.clip

    def train(self, mode: bool = True) -> PromptedCLIP:
        """Set the learner's mode; the frozen CLIP stays in evaluation mode (batch norm)."""
        super().train(mode)
        self.clip.eval()
        return self

    def _autocast(self, device: torch.device):
        if self.autocast_dtype is None:
            return nullcontext()
        return torch.autocast(device.type, dtype=self.autocast_dtype)

    def forward(self, image: Tensor) -> Tensor:
        """Logits ``(B, C)`` of normalised images ``(B, 3, side, side)``."""
        if torch.is_grad_enabled() or not self.memory:
            return self.predict(image).logits
        each = image_bytes(self.clip, self.learner.image_prompts())
        if self.learner.image_conditioned:
            each += self._features_bytes()
        parts = image.split(self.memory.fitting(each, "an image"))
        return torch.cat([self.predict(part).logits for part in parts])

    def _features_bytes(self) -> int:
        return FEATURE_COPIES * len(self.text) * self.clip.text_projection.shape[1] * 4

    def predict(self, image: Tensor, views: Sequence[str] | None = None) -> Prediction:
        """Prompted features and logits of a batch.

        Args:
            image: ``(B, 3, side, side)``.
            views: a loader's names of the ``B`` views, by which frozen features are looked up.
        """
        raw = self.encode_image(image)
        image_features = F.normalize(raw, dim=-1)
        if self.learner.image_conditioned:
            text_features = self.conditioned_text_features(image_features)
        else:
            text_features = self.text_features()
        return self.finish(
            raw, image_features, text_features, lambda: self.frozen_image_features(image, views)
        )

    def finish(
        self,
        raw: Tensor,
        image_features: Tensor,
        text_features: Tensor,
        frozen_image_features: Callable[[], Tensor],
    ) -> Prediction:
        """Logits of encoded images and texts, with all that a loss may ask for.

        Args:
            raw: ``(B, embed_dim)`` image features, not normalised.
            image_features: the same, unit norm.
            text_features: unit norm, as in :class:`Prediction`.
            frozen_image_features: gives those of the frozen CLIP.
        """
        logits = self.learner.own_logits(raw)
        if logits is None:
            logits = self.logits(image_features, text_features)

        @functools.cache
        @torch.no_grad()
        def frozen() -> Prediction:
            features, text = frozen_image_features(), self.frozen_text_features()
            return Prediction(features, text, self.logits(features, text))

        return Prediction(image_features, text_features, logits, frozen)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scaled cosine similarities ``(B, C)`` of unit-norm features."""
        scaled = self.clip.logit_scale.exp() * image_features
        if text_features.dim() == 3:
            return torch.einsum("be,bce->bc", scaled, text_features)
        return scaled @ text_features.t()

    def encode_image(self, image: Tensor) -> Tensor:
        """Prompted image features ``(B, embed_dim)``, not normalised."""
        prompts = self.learner.image_prompts()  # in float32, as the text prompts
        return self._raw_image(self.learner.change_image(image), prompts)

    def _raw_image(self, image: Tensor, prompts: LayerPrompts | None) -> Tensor:
        if self.memory and torch.is_grad_enabled():
            kept = bool(prompts) or image.requires_grad
            needed = len(image) * image_bytes(self.clip, prompts, kept)
            self.memory.fitting(needed, f"a training step of {len(image)} images", share=0.5)
        with self._autocast(image.device):
            return self.encoders.encode_image(image, prompts).float()

    def image_features(self, image: Tensor) -> Tensor:
        """Prompted image features ``(B, embed_dim)``, unit norm."""
        return F.normalize(self.encode_image(image), dim=-1)

    def text_features(self) -> Tensor:
        """Prompted text features ``(C, embed_dim)``, unit norm.

        Without gradients (evaluation) they are computed once and kept until a parameter of the
        learner changes, the class list changes, or ``forget_text`` is called. The plain encoders
        compute them each time, as does a CLIP that somebody changed (``CLIP.changed_part``).
        """
        if torch.is_grad_enabled() or self.plain or self.clip.changed_part():
            return self._encode_text(self.learner.text_prompts())
        state = tuple((id(p), p._version) for p in self.learner.parameters())
        if self._kept_text is None or self._kept_text[0] != state:
            self._kept_text = (state, self._encode_text(self.learner.text_prompts()))
        return self._kept_text[1]

    def forget_text(self) -> None:
        """Encode the prompted text anew; needed after a write to ``parameter.data`` only."""
        self._kept_text = None

    def conditioned_text_features(self, image_features: Tensor) -> Tensor:
        """Text features ``(B, C, embed_dim)`` that depend on the image, unit norm.

        Without gradients the batch is cut into parts, so that memory stays bounded.
        """
        part = len(image_features)
        if not torch.is_grad_enabled():
            part = max(1, MAX_SEQUENCES // len(self.text))
        return torch.cat(
            [
                self._encode_text(self.learner.text_prompts_for(features))
                for features in image_features.split(part)
            ]
        )

    def _encode_text(self, prompts: LayerPrompts | None) -> Tensor:
        features = self._hand_written_text() if prompts is None else self._unit_text(prompts)
        return self.learner.correct_text(features, self.frozen_text_features)

    @torch.no_grad()
    def _hand_written_text(self) -> Tensor:
        """Features of the template without prompts, computed once per class list."""
        if "plain" not in self._fixed_text:
            self._fixed_text["plain"] = self._unit_text(None)
        return self._fixed_text["plain"]

    def _unit_text(self, prompts: LayerPrompts | None) -> Tensor:
        with self._autocast(self.text.device):
            features = encode_text_in_chunks(
                self.encoders, self.text, prompts, self._texts_at_once(prompts)
            )
        return F.normalize(features.float(), dim=-1)

    def _texts_at_once(self, prompts: LayerPrompts | None, share: float = 0.5) -> int:
        training = torch.is_grad_enabled()
        most = 0 if training else MAX_SEQUENCES
        if not self.memory:
            return most
        each = text_bytes(self.clip, self.text, prompts, kept=training)
        features = n_samples(prompts) * self._features_bytes()
        fitting = self.memory.fitting(each, "the text", share, features)
        return min(fitting, most or fitting)

    @torch.no_grad()
    def frozen_text_features(self) -> Tensor:
        """The frozen CLIP's text features over the teacher templates ``(C, embed_dim)``.

        Raw features are averaged, then brought to unit norm; computed once per class list, or
        read from the teacher's cache.
        """

        def encode() -> Tensor:
            # it may be the first step that asks, which holds its own features already
            size = self._texts_at_once(None, share=0.25)
            with self._autocast(self.text.device):
                return encode_templates(
                    *(self.clip, self.classnames, self.teacher_templates),
                    unit=False,
                    encoders=self.encoders,
                    size=size,
                )

        if "frozen" not in self._fixed_text:
            self._fixed_text["frozen"] = self.teacher_cache.text_features(
                self.classnames, self.teacher_templates, encode
            )
        return self._fixed_text["frozen"]

    @torch.no_grad()
    def encode_frozen_image(self, image: Tensor) -> Tensor:
        """The frozen CLIP's image features ``(B, embed_dim)``, not normalised."""
        return self._raw_image(image, None)

    @torch.no_grad()
    def frozen_image_features(self, image: Tensor, views: Sequence[str] | None = None) -> Tensor:
        """The frozen CLIP's image features ``(B, embed_dim)``, unit norm.

        Args:
            image: ``(B, 3, side, side)``.
            views: names of the images' views; features of those that came before are looked up.
        """

        def encode(image: Tensor) -> Tensor:
            return F.normalize(self.encode_frozen_image(image), dim=-1)

        if views is None:
            return encode(image)
        return self.teacher_cache.image_features(views, image, encode)
