"""Sentences that describe classes, from a file: for methods whose teacher reads them in training.

The file is one JSON object, class name -> list of sentences, as CoPrompt's authors publish them
(``gpt_file/<key>_prompt.json``), with the same number of sentences for every class of the run.
Underscores in names are spaces; names are matched as they are written, else in any case.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clip.tokens import tokenize
from support.command_line import ROOT
from support.documents import parse_json
from support.files import as_text, read_bytes
from support.hints import nearest

#: data set -> key of its published file, where that is not the name in small letters
KEYS = {
    "Caltech101": "caltech",
    "DescribableTextures": "dtd",
    "FGVCAircraft": "fgvc",
    "ImageNetA": "imagenet_a",
    "ImageNetR": "imagenet_r",
    "ImageNetSketch": "imagenet_sketch",
    "ImageNetV2": "imagenetv2",
    "OxfordFlowers": "oxford_flowers",
    "OxfordPets": "oxford_pets",
    "StanfordCars": "stanford_cars",
}

#: largest file, in bytes: 50 sentences for each of 1000 classes take a tenth
MOST_BYTES = 1 << 26
FORMAT = (
    'a JSON object {"class name": ["sentence", ...], ...} with as many sentences for every class'
)


def find_sentences(given: str, data_root: str, data_set: str, key: str) -> Path:
    """Return the path of the file of a data set.

    Args:
        given: name of the file, or of a folder that has one for each data set,
            ``<key>_prompt.json``; relative to the data root, or else to the repository.
        data_root: folder that holds the data sets.
        data_set: registry name.
        key: config key of ``given``, for errors.

    Raises:
        FileNotFoundError: there is no such file; says where it was looked for, and its format.
    """
    name = f"{KEYS.get(data_set, data_set.lower())}_prompt.json"
    places = []
    for folder in (Path(data_root).expanduser(), ROOT):
        path = folder / Path(given).expanduser()
        path = path if path.suffix == ".json" else path / name
        if path.exists():
            return path  # what is no file is said where it is read
        places += [] if str(path) in places else [str(path)]
    raise FileNotFoundError(
        f"{key}: training on {data_set} reads sentences about its classes, and there is no file "
        f"{' and no '.join(places)}. Put it there, or name it with {key}; it holds {FORMAT}"
    )


def read_sentences(path: str | Path, classnames: Sequence[str], length: int) -> list[list[str]]:
    """Read the sentences of classes.

    Args:
        path: of the file; entries of other classes are ignored.
        classnames: ``C`` classes.
        length: tokens that a sentence may have, with both markers.

    Returns:
        ``C`` lists of as many sentences.

    Raises:
        ValueError: the file cannot be read, names a class twice, lacks some, has other numbers of
            sentences for some classes, or a sentence that is too long; names the file.
        OSError: it is no ordinary file, or too large.
    """
    try:
        content = parse_json(as_text(read_bytes(path, MOST_BYTES)), object_pairs_hook=_each_once)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}; it should hold {FORMAT}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, not {FORMAT}")
    names = [name.replace("_", " ").casefold() for name in content]
    if lacking := [n for n in classnames if n.replace("_", " ").casefold() not in names]:
        shown = ", ".join(map(repr, lacking[:3]))
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        hint = nearest(lacking[0].replace("_", " "), list(content)) if len(lacking) == 1 else ""
        raise ValueError(
            f"{path} lacks {len(lacking)} of {len(classnames)} classes: {shown}{more}{hint}"
            + ("; is it that of another data set?" if len(lacking) == len(classnames) else "")
        )
    found = [_of_class(content, name.replace("_", " "), path) for name in classnames]
    for name, sentences in zip(classnames, found, strict=True):
        if len(sentences) != len(found[0]):
            raise ValueError(
                f"{path} has {len(found[0])} sentences for {classnames[0]!r} and {len(sentences)} "
                f"for {name!r}: it needs as many for every class"
            )
        for sentence in sentences:
            try:
                tokenize(sentence, length)
            except RuntimeError as error:
                text = str(error).removeprefix("text 0 has ").split(": ")[0]
                raise ValueError(
                    f"{path}, {name!r}: a sentence has {text}: shorten {sentence[:60]!r}..."
                ) from error
    return found


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it has {twice!r} twice")
    return content


def _of_class(content: Mapping[str, Any], name: str, path: str | Path) -> list[str]:
    sentences = content.get(name)
    if sentences is None:
        alike = [key for key in content if key.replace("_", " ").casefold() == name.casefold()]
        if len(alike) > 1:
            raise ValueError(f"{path} has no class {name!r}, but {' and '.join(map(repr, alike))}")
        sentences = content[alike[0]]
    good = isinstance(sentences, list) and sentences
    if not good or not all(isinstance(text, str) and text.strip() for text in sentences):
        raise ValueError(
            f"{path}, {name!r}: a list of sentences was expected, not {sentences!r:.80}"
        )
    return sentences
