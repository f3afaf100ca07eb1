"""A frozen CLIP with a prompt learner: images in, logits and features out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.changes import Changes, LayerChanges
from clip.encoders import Encoders
from clip.model import CLIP
from clip.weights import convert_weights

from .learner import Prediction, PromptLearner
from .savings.chunks import encode_text_in_chunks
from .savings.memory import MemoryBound, image_bytes, text_bytes
from .savings.teacher import TeacherCache
from .templates import TEACHER_TEMPLATES
from .texts import MAX_SEQUENCES, class_prompts, encode_templates

#: what PREC may say, and the type of automatic mixed precision it means
PRECISIONS = {"fp32": None, "amp": torch.float16, "bf16": torch.bfloat16, "fp16": None}


#: copies of the text features that a training step holds: raw, normalised, corrected, gradients
FEATURE_COPIES = 8


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
        self.encoders = Encoders(clip, fast)
        self.teacher_cache = TeacherCache(clip, precision, cache_mb if fast else 0)
        self.set_classes(classnames)

    def set_classes(self, classnames: Sequence[str]) -> None:
        """Classify among ``classnames`` from now on.

        Raises:
            ValueError: no name, a name too long, or a learner bound to another number of classes.
        """
        at_the_input = Changes.of(self.learner.text_changes())[0].prompts
        n_inserted = sum(prompt.growth for prompt in at_the_input)
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
        self.encoders, self.teacher_cache.model = other.encoders, other.clip

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
        bytes_each = image_bytes(self.clip, self.learner.image_changes())
        if self.learner.image_conditioned:
            bytes_each += self._features_bytes()
        parts = image.split(self.memory.how_many_fit(bytes_each, "an image"))
        return torch.cat([self.predict(part).logits for part in parts])

    def _features_bytes(self) -> int:
        return FEATURE_COPIES * len(self.text) * self.clip.text_projection.shape[1] * 4

    def predict(self, image: Tensor, views: Sequence[str] | None = None) -> Prediction:
        """What the learner says of a batch.

        Args:
            image: ``(B, 3, side, side)``.
            views: a loader's names of the ``B`` views, by which frozen features are looked up.
        """
        prediction = self.learner(self, image)
        return self.with_teacher(prediction, lambda: self.frozen_image_features(image, views))

    def with_teacher(
        self, prediction: Prediction, frozen_image_features: Callable[[], Tensor]
    ) -> Prediction:
        """Return a prediction that gives the frozen CLIP's when a loss asks for it.

        Args:
            prediction: of the learner.
            frozen_image_features: gives those of the same images, ``(B, embed_dim)``, unit norm.
        """

        @functools.cache
        @torch.no_grad()
        def frozen() -> Prediction:
            features, text = frozen_image_features(), self.frozen_text_features()
            return Prediction(features, text, self.logits(features, text))

        return replace(prediction, frozen=frozen)

    # --- the steps of a learner's forward: see ``Steps`` ----------------------------------------

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Scaled cosine similarities ``(B, C)`` of unit-norm features."""
        scaled = self.clip.logit_scale.exp() * image_features
        if text_features.dim() == 3:
            return torch.einsum("be,bce->bc", scaled, text_features)
        return scaled @ text_features.t()

    def encode_image(self, image: Tensor, changes: LayerChanges | None = None) -> Tensor:
        """Image features ``(B, embed_dim)``, not normalised."""
        if self.memory and torch.is_grad_enabled():
            trained = bool(changes) or image.requires_grad
            needed = len(image) * image_bytes(self.clip, changes, for_backward=trained)
            self.memory.how_many_fit(needed, f"a training step of {len(image)} images", share=0.5)
        with self._autocast(image.device):
            return self.encoders.encode_image(image, changes).float()

    def encode_text(self, changes: LayerChanges | None = None) -> Tensor:
        """Text features ``(C, embed_dim)``, or ``(B, C, embed_dim)``, not normalised.

        Without changes they are computed once per class list.
        """
        if changes:
            return self._encode_text(Changes.of(changes))
        if "plain" not in self._fixed_text:
            with torch.no_grad():
                self._fixed_text["plain"] = self._encode_text(Changes.of(None))
        return self._fixed_text["plain"]

    def _encode_text(self, changes: Changes) -> Tensor:
        with self._autocast(self.text.device):
            features = encode_text_in_chunks(
                self.encoders, self.text, changes, self._texts_at_once(changes)
            )
        return features.float()

    def _texts_at_once(self, changes: Changes, share: float = 0.5) -> int:
        training = torch.is_grad_enabled()
        limit = 0 if training else MAX_SEQUENCES
        if not self.memory:
            return limit
        bytes_each = text_bytes(self.clip, self.text, changes, for_backward=training)
        in_use = (changes.batch_size or 1) * self._features_bytes()
        n_texts = self.memory.how_many_fit(bytes_each, "the text", share=share, in_use=in_use)
        return min(n_texts, limit or n_texts)

    def text_features(self) -> Tensor:
        """The learner's text features ``(C, embed_dim)``, unit norm.

        Without gradients (evaluation) they are computed once and kept until a parameter of the
        learner changes, the class list changes, or ``forget_text`` is called. The plain encoders
        compute them each time, as does a CLIP that somebody changed (``CLIP.changed_part``).
        """
        if torch.is_grad_enabled() or not self.encoders.fast or self.clip.changed_part():
            return self.learner.text_features(self)
        state = tuple((id(p), p._version) for p in self.learner.parameters())
        if self._kept_text is None or self._kept_text[0] != state:
            self._kept_text = (state, self.learner.text_features(self))
        return self._kept_text[1]

    def forget_text(self) -> None:
        """Encode the prompted text anew; needed after a write to ``parameter.data`` only."""
        self._kept_text = None

    # --- features by themselves -----------------------------------------------------------------

    def image_features(self, image: Tensor) -> Tensor:
        """The learner's image features ``(B, embed_dim)``, unit norm."""
        return self.learner.image_features(self, image)

    @torch.no_grad()
    def frozen_text_features(self) -> Tensor:
        """The frozen CLIP's text features over the teacher templates ``(C, embed_dim)``.

        Raw features are averaged, then brought to unit norm; computed once per class list, or
        read from the teacher's cache.
        """

        def encode() -> Tensor:
            # it may be the first step that asks, which holds its own features already
            size = self._texts_at_once(Changes.of(None), share=0.25)
            with self._autocast(self.text.device):
                return encode_templates(
                    self.encoders, self.classnames, self.teacher_templates, unit=False, size=size
                )

        if "frozen" not in self._fixed_text:
            self._fixed_text["frozen"] = self.teacher_cache.text_features(
                self.classnames, self.teacher_templates, encode
            )
        return self._fixed_text["frozen"]

    @torch.no_grad()
    def frozen_image_features(self, image: Tensor, views: Sequence[str] | None = None) -> Tensor:
        """The frozen CLIP's image features ``(B, embed_dim)``, unit norm.

        Args:
            image: ``(B, 3, side, side)``.
            views: names of the images' views; features of those that came before are looked up.
        """

        def encode(image: Tensor) -> Tensor:
            return F.normalize(self.encode_image(image), dim=-1)

        if views is None:
            return encode(image)
        return self.teacher_cache.image_features(views, image, encode)
