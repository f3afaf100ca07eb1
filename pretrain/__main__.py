"""Pre-train the tiny CLIP that the repository ships, on images that it renders.

``python -m pretrain`` makes the shipped ``clip/weights/tiny-2.safetensors``. The same seed,
number of threads and PyTorch build give the same file on the same processor; elsewhere the last
bits differ. docs/embedded.md says how long it took.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from tqdm import tqdm

from clip.model import CLIP
from clip.packing import PackedText
from clip.preprocessing import MEAN, STD
from clip.tiny import FOLDER, pack
from clip.tokens import tokenize
from pretrain.captions import caption, matches, vocabulary
from pretrain.images import N_VALUES, NONE, Attribute, render_collection
from support.command_line import add_traceback, output_file, positive, run_command

ARCHITECTURE = {
    "embed_dim": 64,
    "image_resolution": 32,
    "vision_layers": 12,
    "vision_width": 128,
    "vision_patch_size": 8,
    "context_length": 77,
    "transformer_width": 64,
    "transformer_heads": 1,
    "transformer_layers": 12,
}
VOCABULARY = 49408
#: command-line values that decide what comes out; the file's metadata repeat them
SETTINGS = ("steps", "batch", "images", "warmup", "lr", "seed", "threads")


class CaptionTokenizer:
    """Tokenizer of captions, whose ids are numbered anew over the vocabulary of pre-training.

    The model trains with a token table of these few rows; order is kept, so the end-of-text token
    still has the largest id.
    """

    def __init__(self) -> None:
        self.ids = tokenize(vocabulary()).unique()
        self._row = torch.full((VOCABULARY,), -1)
        self._row[self.ids] = torch.arange(len(self.ids))
        self._words: dict[str, list[int]] = {}
        start, end = tokenize("")[0, :2]
        self._start, self._end = int(self._row[start]), int(self._row[end])

    def _encode(self, word: str) -> list[int]:
        """Return the ids of one word; byte-pair encoding never looks across a blank."""
        if word not in self._words:
            ids = tokenize(word)[0]
            self._words[word] = self._row[ids[1 : int(ids.argmax())]].tolist()
            if -1 in self._words[word]:
                raise ValueError(f"the word {word!r} of a caption is not in the vocabulary")
        return self._words[word]

    def __call__(self, texts: list[str]) -> Tensor:
        """Encode texts as ``(len(texts), longest)`` ids, zero padded."""
        rows = [
            [self._start, *(i for word in text.split() for i in self._encode(word)), self._end]
            for text in texts
        ]
        longest = max(map(len, rows))
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows])


def augment(images: np.ndarray, kinds: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Crop at random, mirror shapes (not digits and letters), and normalise.

    Args:
        images: ``(B, side, side, 3)`` uint8.
        kinds: ``(B,)``, 0 for shapes.
        rng: random generator.

    Returns:
        ``(B, 3, side, side)``.
    """
    n = len(images)
    x = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    scale = np.sqrt(rng.uniform(0.55, 1, n))
    scale[rng.random(n) < 0.35] = 1
    shift_x, shift_y = rng.uniform(-1, 1, n) * (1 - scale), rng.uniform(-1, 1, n) * (1 - scale)
    mirrored = (rng.random(n) < 0.5) & (kinds == 0)
    theta = np.zeros((n, 2, 3), np.float32)
    theta[:, 0, 0] = np.where(mirrored, -scale, scale)
    theta[:, 1, 1] = scale
    theta[:, 0, 2], theta[:, 1, 2] = shift_x, shift_y
    grid = F.affine_grid(torch.from_numpy(theta), list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    return (x - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def contrastive_loss(logits: Tensor, match: Tensor) -> Tensor:
    """Compute the cross-entropy in both directions, the target spread evenly over all true pairs.

    Args:
        logits: ``(B, B)``, image by caption.
        match: ``(B, B)``, 1 where the caption is true of the image.
    """
    loss = 0.0
    for dim in (0, 1):
        target = match / match.sum(dim, keepdim=True).clamp_min(1)
        loss = loss - 0.5 * (target * logits.log_softmax(dim)).sum(dim).mean()
    return loss


class AttributePrototypes(nn.Module):
    """One vector per value of every attribute, in the joint embedding; not in the shipped file.

    Images are classified by their attributes, captions by those that they name, with the same
    vectors. The contrastive loss alone learns colours first and tells digits apart very late.

    Args:
        width: of the joint embedding.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vectors = nn.ParameterList(torch.randn(n, width) / width**0.5 for n in N_VALUES)

    def forward(self, features: Tensor, attributes: Tensor, scale: Tensor) -> Tensor:
        """Compute the cross-entropy, half the sum over the attributes.

        Args:
            features: ``(B, width)``, unit norm.
            attributes: ``(B, len(Attribute))``, ``NONE`` where there is nothing to say.
            scale: factor of the cosine similarities.
        """
        losses = [
            F.cross_entropy(
                scale * features @ F.normalize(vectors, dim=-1).T, values, ignore_index=NONE
            )
            if (values != NONE).any()
            else features.sum() * 0
            for vectors, values in zip(self.vectors, attributes.T, strict=True)
        ]
        return 0.5 * torch.stack(losses).sum()


def full_state(model: CLIP, ids: Tensor) -> dict[str, Tensor]:
    """Return the state dict with the token table of the whole vocabulary, untrained rows zero."""
    state = {key: value.detach() for key, value in model.state_dict().items()}
    table = torch.zeros(VOCABULARY, state["token_embedding.weight"].shape[1])
    table[ids] = state["token_embedding.weight"]
    return {**state, "token_embedding.weight": table}


def train(args: argparse.Namespace) -> None:
    """Render, train, save."""
    torch.set_num_threads(args.threads)
    began = time.perf_counter()
    print(f"Rendering {args.images:,} images")
    images, attributes = render_collection(args.seed, args.images, args.threads)
    tokens = CaptionTokenizer()
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    model = CLIP(vocab_size=len(tokens.ids), **ARCHITECTURE).train()
    prototypes = AttributePrototypes(ARCHITECTURE["embed_dim"])
    named = dict(model.named_parameters())
    decayed = [n for n, p in named.items() if p.dim() > 1 and "embedding" not in n]
    rest = [p for n, p in named.items() if n not in (*decayed, "logit_scale")]
    # the temperature is one number that has far to go; "factor" multiplies the learning rate
    groups = [
        {"params": [named[n] for n in decayed], "weight_decay": 0.05, "factor": 1.0},
        {"params": [*rest, *prototypes.parameters()], "weight_decay": 0.0, "factor": 1.0},
        {"params": [model.logit_scale], "weight_decay": 0.0, "factor": 5.0},
    ]
    optimiser = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True)
    parameters = [*model.parameters(), *prototypes.parameters()]

    def save(path: Path, step: int) -> None:
        minutes = (time.perf_counter() - began) / 60
        print(f"Saving {path} after {step} steps and {minutes:.1f} minutes", flush=True)
        notes = {name: getattr(args, name) for name in SETTINGS}
        notes |= {"made by": "python -m pretrain", "steps done": step}
        notes |= {"token_seed": 0, "token_std": 0.02}
        pack(full_state(model, tokens.ids), tokens.ids, path, notes)

    running = 0.0
    for step in tqdm(range(args.steps), mininterval=30, disable=None):
        progress = max(0, step - args.warmup) / max(1, args.steps - args.warmup)
        rate = min(1.0, (step + 1) / args.warmup) * 0.5 * (1 + math.cos(math.pi * progress))
        for group in optimiser.param_groups:
            group["lr"] = args.lr * rate * group["factor"]
        index = rng.integers(0, args.images, args.batch)
        x = augment(images[index], attributes[index, Attribute.KIND], rng)
        texts, facts = zip(*(caption(rng, row) for row in attributes[index]), strict=True)
        stated, present = np.stack(facts), attributes[index]
        match = torch.from_numpy(matches(stated, present)).float()
        # on short sequences the plain kernel is the faster one in bfloat16
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", dtype=torch.bfloat16):
            image = model.encode_image(x)
            text = model.encode_text(PackedText(tokens(list(texts))))
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        scale = model.logit_scale.exp().clamp(max=100)
        loss = contrastive_loss(scale * image @ text.T, match)
        loss = loss + prototypes(image, torch.from_numpy(present), scale)
        loss = loss + prototypes(text, torch.from_numpy(stated), scale)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        running += float(loss.detach())
        if (step + 1) % 100 == 0:
            print(f"step {step + 1} loss {running / 100:.4f} scale {float(scale.detach()):.1f}")
            running = 0.0
        if (step + 1) % args.save_every == 0:
            save(args.out.with_suffix(".partial"), step + 1)
    save(args.out, args.steps)
    args.out.with_suffix(".partial").unlink(missing_ok=True)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="python -m pretrain", description=__doc__)
    add = parser.add_argument
    add("--out", type=output_file, default=FOLDER / "tiny-2.safetensors", help="file to write")
    add("--steps", type=positive, default=6000)
    add("--batch", type=positive, default=128, help="image-caption pairs per step")
    add("--images", type=positive, default=100_000, help="rendered images")
    add("--warmup", type=positive, default=300, help="steps of linear warm-up")
    add("--lr", type=float, default=1e-3)
    add("--seed", type=int, default=0)
    add("--threads", type=positive, default=1)
    add("--save-every", type=positive, default=500, help="steps between intermediate files")
    add_traceback(parser)
    return parser


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), train))
