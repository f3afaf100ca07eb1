"""Words nearest to the learned text prompts: ``python -m tools.nearest_words RUN``.

For every learned token the vocabulary's tokens with the smallest Euclidean distance between
embeddings, as CoOp looks at its contexts (arXiv 2109.01134). A part of a word that
goes on is marked by a ``+``. Prompts of deeper blocks are compared with the same table, the input
embeddings; they live among hidden states, so their words say less. The embedded backbone was
pre-trained with a part of the vocabulary only, and only that part is searched.

Prints a table and writes a CSV: block, class (for class-specific contexts), token, rank, word,
distance.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tabulate import tabulate

from support.command_line import output_file, positive, run_command

from .command import load_run, run_parser, write_csv

if TYPE_CHECKING:
    from torch import Tensor

    from clip.simple_tokenizer import SimpleTokenizer
    from trainers import Predictor

COLUMNS = ("block", "class", "token", "rank", "word", "distance")


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = run_parser("Print the words nearest to learned text prompts.")
    add = parser.add_argument
    add("--top-k", type=positive, default=3, metavar="K", help="words per token (default: 3)")
    helped = "file (default: nearest_words.csv in the run's folder)"
    add("--out", type=output_file, metavar="CSV", help=helped)
    return parser


def vocabulary(backbone: str, n_tokens: int) -> Tensor:
    """Return the ids of the tokens whose embeddings were trained.

    Args:
        backbone: name or file of a CLIP.
        n_tokens: rows of its token table.
    """
    import torch

    from clip import tiny
    from clip.loading import _MODELS

    url = _MODELS.get(backbone, "")
    path = tiny.weights_at(url) if tiny.is_embedded(url) else Path(backbone).expanduser()
    if path.suffix == ".safetensors" and path.is_file() and tiny.is_packed(path):
        return tiny.trained_ids(path)
    return torch.arange(n_tokens)


def spelled(token: int, tokenizer: SimpleTokenizer) -> str:
    """Spell a token; ``+`` follows a part of a word that goes on."""
    text = tokenizer.decode([token])
    return text.rstrip() if text.endswith(" ") or text.startswith("<|") else f"{text}+"


def nearest_words(predictor: Predictor, top_k: int) -> list[tuple]:
    """Return rows of ``COLUMNS`` for all learned tokens, blocks counted from 0.

    Args:
        predictor: of a run with text prompts.
        top_k: words per token.

    Raises:
        ValueError: the method learns no text prompts.
    """
    import torch

    from clip.changes import Changes
    from clip.simple_tokenizer import SimpleTokenizer

    model, tokenizer = predictor.model, SimpleTokenizer()
    changes = Changes.of(model.learner.text_changes())
    if not changes:
        raise ValueError(
            f"{predictor.cfg.TRAINER.NAME} leaves the text as it is: there are no learned words"
        )
    table = model.clip.token_embedding.weight.detach().float()
    ids = vocabulary(predictor.cfg.MODEL.BACKBONE.NAME, len(table)).to(table.device)
    rows = []
    for block, change in sorted(changes.blocks.items()):
        if not change.prompts:
            continue
        # several prompts of one block are parts of one context
        tokens = torch.cat([prompt.tokens.detach().float() for prompt in change.prompts], dim=-2)
        per_class = tokens.dim() == 3
        found = torch.cdist(tokens.flatten(0, -2), table[ids]).topk(
            min(top_k, len(ids)), largest=False
        )
        for i, (distances, columns) in enumerate(
            zip(found.values.tolist(), ids[found.indices].tolist(), strict=True)
        ):
            owner, token = divmod(i, tokens.shape[-2])
            name = predictor.classnames[owner] if per_class else ""
            rows += [
                (block, name, token, rank, spelled(word, tokenizer), distance)
                for rank, (word, distance) in enumerate(zip(columns, distances, strict=True), 1)
            ]
    return rows


def show(rows: list[tuple]) -> str:
    """Lay out one line per token: its words and their distances, nearest first."""
    lines: dict[tuple, list[str]] = {}
    for block, name, token, _, word, distance in rows:
        lines.setdefault((block, name, token), []).append(f"{word} {distance:.4f}")
    table = [[*key, ", ".join(words)] for key, words in lines.items()]
    if not any(name for _, name, _ in lines):
        table = [[block, token, words] for block, _, token, words in table]
        return tabulate(table, ("block", "token", "nearest words, distance"))
    return tabulate(table, ("block", "class", "token", "nearest words, distance"))


def run(args: argparse.Namespace) -> None:
    """Print the table and write the CSV."""
    rows = nearest_words(load_run(args.run, args), args.top_k)
    print(show(rows))
    path = args.out or Path(args.run, "nearest_words.csv")
    write_csv([(*row[:-1], f"{row[-1]:.6f}") for row in rows], COLUMNS, path)
    print(f"\nwritten: {path}")


if __name__ == "__main__":
    sys.exit(run_command(build_parser(), run))
