"""Class names in hand-written templates, as token ids and as features of the frozen CLIP."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from adaptation.savings.chunks import encode_text_in_chunks
from clip.encoders import Encoders
from clip.model import CLIP
from clip.packing import PackedText
from clip.tokens import tokenize
from dassl.utils import hides_bars


def class_prompts(
    clip: CLIP,
    classnames: Sequence[str],
    template: str,
    n_inserted: int = 0,
    keep_underscores: bool = False,
) -> PackedText:
    """Tokenise ``template`` filled with every class name.

    Args:
        clip: model whose context length and device are used.
        classnames: at least one.
        template: text with one ``{}``.
        n_inserted: number of tokens that a learner will insert.
        keep_underscores: leave underscores in the names, which are otherwise read as spaces.

    Raises:
        ValueError: no class, a class name too long for the context, or a CLIP of another
            vocabulary.
    """
    if not len(classnames):
        raise ValueError("the list of class names is empty: the data set has no class to classify")
    length = clip.context_length
    names = classnames if keep_underscores else [name.replace("_", " ") for name in classnames]
    texts = [template.format(name) for name in names]
    try:
        ids = torch.cat([tokenize(text, context_length=length) for text in texts])
        fits = int(ids.argmax(dim=-1).max()) + n_inserted < length
    except RuntimeError:
        fits = False
    if not fits:
        ids = tokenize(texts, context_length=4096, truncate=True)
        sizes = (ids.argmax(dim=-1) + 1 + n_inserted).tolist()
        worst = max(range(len(sizes)), key=sizes.__getitem__)
        raise ValueError(
            f"class name {classnames[worst]!r} is too long: its prompt has {sizes[worst]} tokens "
            f"with {n_inserted} learned ones, the context of this CLIP holds {length}. "
            "Shorten the name or use fewer context tokens"
        )
    table = clip.token_embedding.weight
    if int(ids.max()) >= len(table):
        raise ValueError(
            f"this CLIP knows {len(table):,} tokens, and the texts need {int(ids.max()) + 1:,}: it "
            "is not one with CLIP's vocabulary, or its weights are damaged"
        )
    return PackedText(ids.to(table.device))


#: texts encoded at once without gradients
MAX_SEQUENCES = 4096


def average_templates(
    encoders: Encoders,
    classnames: Sequence[str],
    templates: Sequence[str],
    unit: bool,
    size: int = MAX_SEQUENCES,
    keep_underscores: bool = False,
) -> Tensor:
    """Compute text features averaged over templates.

    Args:
        encoders: of the frozen model.
        classnames: ``C`` names.
        templates: texts with one ``{}``.
        unit: whether to bring every feature to unit norm before the average (CLIP's zero-shot
            ensemble), or to average the raw ones (PromptSRC's teacher).
        size: number of texts to encode at once.
        keep_underscores: leave underscores in the names, which are otherwise read as spaces.

    Returns:
        ``(C, embed_dim)`` float32, not normalised.
    """
    total: Tensor = torch.zeros(())
    # a progress bar, since a thousand classes and 60 templates take a while
    hidden = len(templates) == 1 or hides_bars()
    for template in tqdm(templates, desc="templates", leave=False, disable=hidden):
        text = class_prompts(encoders.clip, classnames, template, keep_underscores=keep_underscores)
        features = encode_text_in_chunks(encoders, text, size=size).float()  # (C, embed_dim)
        total = total + (F.normalize(features, dim=-1) if unit else features)
    return total / len(templates)


def encode_templates(
    encoders: Encoders,
    classnames: Sequence[str],
    templates: Sequence[str],
    unit: bool,
    size: int = MAX_SEQUENCES,
    keep_underscores: bool = False,
) -> Tensor:
    """Compute text features averaged over templates, and brought to unit norm.

    Args:
        encoders, classnames, templates, unit, size, keep_underscores: of
            :func:`average_templates`.

    Returns:
        ``(C, embed_dim)`` float32, unit norm.
    """
    average = average_templates(encoders, classnames, templates, unit, size, keep_underscores)
    return F.normalize(average, dim=-1)
