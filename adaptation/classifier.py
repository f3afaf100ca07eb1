"""A frozen CLIP with a prompt learner: images in, logits and features out."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.changes import Changes, LayerChanges
from clip.encoders import Encoders
from clip.model import CLIP, with_text_projection
from clip.packing import PackedText
from clip.tokens import tokenize
from clip.weights import convert_weights

from .learner import Prediction, PromptLearner
from .savings.chunks import encode_text_in_chunks
from .savings.memory import MemoryBound, image_bytes, text_bytes
from .savings.rank_texts import encode_text_on_ranks
from .savings.teacher import TeacherCache
from .templates import TEACHER_TEMPLATES
from .texts import MAX_SEQUENCES, average_templates, class_prompts, encode_templates

#: values of PREC, and the type of automatic mixed precision that each means
PRECISIONS = {"fp32": None, "amp": torch.float16, "bf16": torch.bfloat16, "fp16": None}

#: copies of the text features that a training step holds: raw, normalised, corrected, gradients
FEATURE_COPIES = 8


def pair_of_views(image: Tensor) -> tuple[Tensor, Tensor]:
    """Return the views of a batch for the learner and for the frozen CLIP; one may be both."""
    return (image, image) if image.dim() == 4 else (image[:, 0], image[:, 1])


class PromptedCLIP(nn.Module):
    """CLIP plus learner. CLIP is frozen and stays in evaluation mode; only the learner trains.

    Normalisation, logits and losses are float32 in every precision.

    Args:
        clip: any CLIP; its parameters are frozen here.
        learner: makes the prompts.
        classnames: the classes to tell apart.
        precision: ``fp32``; ``amp`` and ``bf16`` (automatic mixed precision in float16 and
            bfloat16); ``fp16`` (CLIP's weights in half precision, as OpenAI ships them). In all but
            ``fp32``, weights of ``clip`` are converted here, so encode with the methods of this
            class, which turn on autocast where it is needed.
        teacher_templates: templates that the frozen text features are averaged over.
        fast: whether to use CLIP's fast encoders. With the plain ones (``clip.plain``), text is
            encoded anew for every batch and no features are kept on disk.
        memory_gb: memory that a training step or a test batch may take in addition to the weights,
            in 10^9 bytes, by the estimates of ``adaptation.savings.memory``; 0 for no bound. A step
            may use half of it for images and half for text, which is encoded in parts, twice, if
            necessary; a batch without gradients is split.
        cache_mb: disk space for frozen features, in 10^6 bytes (``TeacherCache``); 0 computes them
            each time.
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
        self.precision, self.autocast_dtype = precision, PRECISIONS[precision]
        if precision == "fp16":
            convert_weights(clip)
        elif self.autocast_dtype is not None:
            # once, since autocast would convert the frozen weights in every call
            convert_weights(clip, self.autocast_dtype, convolutions=False)
        self.encoders = Encoders(clip, fast)
        self.teacher_cache = TeacherCache(clip, precision, cache_mb if fast else 0)
        #: classes that the learner was trained with; none where that was another data set
        self.trained_classes = list(classnames)
        self.set_classes(classnames)

    def set_classes(self, classnames: Sequence[str]) -> None:
        """Classify among ``classnames`` from now on.

        Raises:
            ValueError: the list is empty or a name is too long.
        """
        at_the_input = Changes.of(self.learner.text_changes()).at_input
        n_inserted = sum(prompt.growth for prompt in at_the_input)
        self.text = class_prompts(
            self.clip,
            classnames,
            self.learner.template,
            n_inserted,
            self.learner.keep_underscores,
        )
        self.classnames = list(classnames)
        #: text features that depend on no prompt, by name; shared by models that share a CLIP
        self._fixed_text: dict[str, Tensor] = {}
        self._kept_text: tuple[object, Tensor] | None = None

    def class_constants(self) -> tuple[object, ...]:
        """Return the objects made for the present classes; another class list gets new ones."""
        return self.text, self._fixed_text

    def share_frozen(self, other: PromptedCLIP) -> None:
        """Use another model's CLIP, class tokens and frozen text features.

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
        """Compute the logits ``(B, C)`` of normalised images ``(B, 3, side, side)``."""
        if torch.is_grad_enabled() or not self.memory:
            return self.predict(image).logits
        bytes_each = image_bytes(self.clip, self.learner.image_changes())
        if self.learner.image_conditioned:
            bytes_each += self.features_bytes()
        parts = image.split(self.memory.how_many_fit(bytes_each, "an image"))
        return torch.cat([self.predict(part).logits for part in parts])

    def features_bytes(self) -> int:
        """Return the bytes that a step takes for text features, each time they are encoded."""
        return FEATURE_COPIES * len(self.text) * self.clip.text_projection.shape[1] * 4

    def predict(self, image: Tensor, views: Sequence[str] | None = None) -> Prediction:
        """Classify a batch with the learner.

        Args:
            image: ``(B, 3, side, side)``, or ``(B, 2, 3, side, side)``, two views of every image:
                the learner's, and the frozen CLIP's.
            views: a loader's names of the ``B`` views, to look up frozen features by.
        """
        seen, taught = pair_of_views(image)
        prediction = self.learner(self, seen)
        return self.with_teacher(prediction, lambda: self.frozen_image_features(taught, views))

    def with_teacher(
        self, prediction: Prediction, frozen_image_features: Callable[[], Tensor]
    ) -> Prediction:
        """Return the prediction with the frozen CLIP's as ``frozen()``, computed on first use.

        Args:
            prediction: of the learner.
            frozen_image_features: computes the frozen CLIP's features of the same images,
                ``(B, embed_dim)``, unit norm.
        """

        @functools.cache
        @torch.no_grad()
        def frozen() -> Prediction:
            features, text = frozen_image_features(), self.frozen_text_features()
            return Prediction(features, text, self.logits(features, text))

        return replace(prediction, frozen=frozen)

    # --- the steps of a learner's forward: see ``Steps`` ----------------------------------------

    @property
    def logit_scale(self) -> Tensor | float:
        """Factor of the cosines of features: the learner's, or CLIP's own."""
        own = self.learner.logit_scale
        return self.clip.logit_scale.exp() if own is None else own

    @property
    def seen_classes(self) -> bool:
        """Whether the present classes are those of the training, in their order."""
        return self.trained_classes == self.classnames

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Compute scaled cosine similarities ``(B, C)`` of unit-norm features."""
        scaled = self.logit_scale * image_features
        if text_features.dim() == 3:
            return torch.einsum("be,bce->bc", scaled, text_features)
        return scaled @ text_features.t()

    def encode_image(
        self, image: Tensor, changes: LayerChanges | None = None, n_rows: int | None = None
    ) -> Tensor:
        """Encode images to ``(B, embed_dim)``, not normalised, or to rows of the last block."""
        if self.memory and torch.is_grad_enabled():
            trained = bool(changes) or image.requires_grad
            needed = len(image) * image_bytes(self.clip, changes, for_backward=trained)
            self.memory.how_many_fit(needed, f"a training step of {len(image)} images", share=0.5)
        with self._autocast(image.device):
            return self.encoders.encode_image(image, changes, n_rows).float()

    def project_image(self, rows: Tensor) -> Tensor:
        """Project rows of a ViT's last block ``(..., width)`` to ``(..., embed_dim)``."""
        projection: Tensor = self.clip.visual.proj  # type: ignore[assignment]  # a ViT's
        return rows.float() @ projection.float()

    def encode_text(self, changes: LayerChanges | None = None) -> Tensor:
        """Encode the class list to ``(C, embed_dim)`` or ``(B, C, embed_dim)``, not normalised.

        Without changes it is encoded once.
        """
        if changes:
            return self._encode_text(Changes.of(changes))
        if "plain" not in self._fixed_text:
            with torch.no_grad():
                self._fixed_text["plain"] = self._encode_text(Changes.of(None))
        return self._fixed_text["plain"]

    def _encode_text(self, changes: Changes) -> Tensor:
        def encode(text: PackedText, changes: Changes) -> Tensor:
            size = self.texts_at_once(changes)
            with self._autocast(text.device):
                return encode_text_in_chunks(self.encoders, text, changes, size).float()

        return encode_text_on_ranks(encode, self.text, changes)

    def texts_at_once(
        self, changes: Changes, share: float = 0.5, text: PackedText | None = None
    ) -> int:
        """Return how many texts to encode at a time; 0 for all of them.

        Args:
            changes: of the text encoder.
            share: part of the memory bound that they may take.
            text: the texts, where they are not those of the classes.
        """
        training = torch.is_grad_enabled()
        limit = 0 if training else MAX_SEQUENCES
        if not self.memory:
            return limit
        text = self.text if text is None else text
        bytes_each = text_bytes(self.clip, text, changes, for_backward=training)
        in_use = (changes.batch_size or 1) * self.features_bytes()
        n_texts = self.memory.how_many_fit(bytes_each, "the text", share=share, in_use=in_use)
        return min(n_texts, limit or n_texts)

    def text_features(self) -> Tensor:
        """Return the learner's text features ``(C, embed_dim)``, unit norm.

        Without gradients (evaluation) they are computed once and kept until a parameter of the
        learner changes, the class list changes, or ``forget_text`` is called. The plain encoders,
        and a CLIP that somebody changed (``CLIP.changed_part``), compute them each time.
        """
        if torch.is_grad_enabled() or not self.encoders.fast or self.clip.changed_part():
            return self.learner.text_features(self)
        parameters = self.learner.parameters()
        state = tuple((id(parameter), parameter._version) for parameter in parameters)
        if self._kept_text is None or self._kept_text[0] != state:
            self._kept_text = (state, self.learner.text_features(self))
        return self._kept_text[1]

    def forget_text(self) -> None:
        """Encode the prompted text anew at the next use.

        Needed only after writes that PyTorch does not count, as those to ``parameter.data``.
        """
        self._kept_text = None

    # --- features by themselves, and from them on -----------------------------------------------

    def image_features(self, image: Tensor) -> Tensor:
        """Return the learner's image features ``(B, embed_dim)``, unit norm."""
        return self.learner.image_features(self, image)

    def classify(self, raw: Tensor) -> Prediction:
        """Classify images by their features, with a learner that can (``FeatureLearner``).

        Args:
            raw: ``(B, embed_dim)`` float32, of ``raw_image_features``.
        """
        learner: Any = self.learner
        prediction = learner.classify(self, raw)
        return self.with_teacher(prediction, lambda: F.normalize(raw, dim=-1))

    @torch.no_grad()
    def raw_image_features(self, image: Tensor) -> Tensor:
        """Return the frozen CLIP's image features ``(B, embed_dim)``, float32, not normalised.

        Args:
            image: ``(B, 3, side, side)``; with a memory bound, encoded in parts.
        """
        if not self.memory:
            return self.encode_image(image)
        parts = image.split(self.memory.how_many_fit(image_bytes(self.clip), "an image"))
        return torch.cat([self.encode_image(part) for part in parts])

    @torch.no_grad()
    def frozen_text_features(self) -> Tensor:
        """Return the frozen CLIP's text features over the teacher templates ``(C, embed_dim)``.

        Raw features are averaged, then brought to unit norm; computed once per class list, or
        read from the teacher's cache.
        """

        keep = self.learner.keep_underscores

        def encode() -> Tensor:
            # a smaller share, since the step that asks for them already holds its own features
            size = self.texts_at_once(Changes.of(None), share=0.25)
            with self._autocast(self.text.device):
                return encode_templates(
                    self.encoders, self.classnames, self.teacher_templates, False, size, keep
                )

        if "frozen" not in self._fixed_text:
            self._fixed_text["frozen"] = self.teacher_cache.text_features(
                self.classnames, self.teacher_templates, encode, keep_underscores=keep
            )
        return self._fixed_text["frozen"]

    @torch.no_grad()
    def raw_text_features(self, projection: Tensor | None = None, unit: bool = False) -> Tensor:
        """Compute raw text features over the teacher templates: see ``Steps``."""
        kept = f"raw, unit {unit}"
        if projection is None and kept in self._fixed_text:
            return self._fixed_text[kept]
        encoders = self.encoders
        if projection is not None:
            encoders = Encoders(with_text_projection(self.clip, projection), encoders.fast)
        size = self.texts_at_once(Changes.of(None))
        keep = self.learner.keep_underscores
        with self._autocast(self.text.device):
            found = average_templates(
                encoders, self.classnames, self.teacher_templates, unit, size, keep
            )
        if projection is None:
            self._fixed_text[kept] = found
        return found

    @torch.no_grad()
    def frozen_sentence_features(self, sentences: Sequence[Sequence[str]]) -> Tensor:
        """Return the frozen CLIP's features of sentences about the classes, each of unit norm.

        Args:
            sentences: ``S`` of every class, of at most the context's tokens.

        Returns:
            ``(S, C, embed_dim)``; computed once per class list, or read from the teacher's cache.
        """
        texts = [text for of_class in sentences for text in of_class]

        def encode() -> Tensor:
            ids = tokenize(texts, self.clip.context_length).to(self.text.device)
            packed, nothing = PackedText(ids), Changes.of(None)
            size = self.texts_at_once(nothing, share=0.25, text=packed)
            with self._autocast(self.text.device):
                features = encode_text_in_chunks(self.encoders, packed, nothing, size)
            return F.normalize(features.float(), dim=-1)

        if "sentences" not in self._fixed_text:
            found = self.teacher_cache.text_features(texts, ("the whole text",), encode)
            by_class = found.unflatten(0, (len(sentences), -1))  # (C, S, embed_dim)
            self._fixed_text["sentences"] = by_class.transpose(0, 1).contiguous()
        return self._fixed_text["sentences"]

    @torch.no_grad()
    def frozen_image_features(self, image: Tensor, views: Sequence[str] | None = None) -> Tensor:
        """Return the frozen CLIP's image features ``(B, embed_dim)``, unit norm.

        Args:
            image: ``(B, 3, side, side)``.
            views: names of the images' views; features of views seen before are looked up.
        """

        def encode(image: Tensor) -> Tensor:
            return F.normalize(self.encode_image(image), dim=-1)

        if views is None:
            return encode(image)
        return self.teacher_cache.image_features(views, image, encode)
