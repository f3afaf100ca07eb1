"""What the config code makes of a call of run.sh, for run.sh; imports no torch.

    effective.py plan FILES [KEY VALUE ...]
        a word on a line: OPTIM.MAX_EPOCH of the files, that of the files and the pairs, and what
        pairs make another setting
    effective.py finished LOG FILES [KEY VALUE ...]
        what a finished run with this log is to one with these settings, and what differs:
        same (do not run it), other (it is another run) or more (run it: more is asked for)
    effective.py nearest WORD NAME ...
        "; did you mean NAME?", or nothing

FILES are the data set's and the trainer's file, in one word with a comma between them.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from dassl.config import decoded, get_cfg_default, is_runtime_key, leaves, values_of_file
from results.logs import read_facts
from support.hints import nearest

EPOCHS, EXTEND = "OPTIM.MAX_EPOCH", "TRAIN.EXTEND"
# What asks for more output of a run whose training is as asked for.
OUTPUTS = ("TEST.PER_CLASS_RESULT", "TEST.COMPUTE_CMAT")


def pairs_of(words: list[str]) -> dict[str, str]:
    """Return key -> value of KEY VALUE pairs; of several values of a key the last."""
    return dict(zip(words[::2], words[1::2], strict=True))


def asked(files: str, words: list[str]) -> dict[str, Any]:
    """Return key -> value of what files and pairs set, the later ones first."""
    values: dict[str, Any] = {}
    for path in files.split(","):
        values |= values_of_file(path)
    return values | pairs_of(words)


def epochs(files: str, words: list[str]) -> int:
    """Return the number of epochs that files and pairs come to.

    Raises:
        ValueError: it is no whole number from 1 on.
    """
    cfg = get_cfg_default()
    values = asked(files, words)
    if EPOCHS in values:
        cfg.merge_from_list([EPOCHS, values[EPOCHS]])
    if cfg.OPTIM.MAX_EPOCH < 1:
        raise ValueError(f"{EPOCHS} is {cfg.OPTIM.MAX_EPOCH}: use a whole number from 1 on")
    return cfg.OPTIM.MAX_EPOCH


def other_settings(words: list[str]) -> list[str]:
    """Return the words of the pairs that make another setting."""
    pairs = zip(words[::2], words[1::2], strict=True)
    return [word for pair in pairs if not is_runtime_key(pair[0]) for word in pair]


def compared(log: str, files: str, words: list[str]) -> str:
    """Return what a finished run is to one with these settings: same, other or more, and why.

    Args:
        log: that of the run.
        files: as for ``asked``.
        words: KEY VALUE pairs.
    """
    facts, now = read_facts(Path(log)), asked(files, words)
    defaults = dict(leaves(get_cfg_default()))
    # what the run was given, and this one is not, has its default here
    before = pairs_of(ast.literal_eval(facts.get("opts", "[]")))
    differences = {}
    for key in dict.fromkeys([*now, *before]):
        if key not in facts:  # a log of an older version, or of other code
            continue
        theirs, mine = decoded(facts[key]), decoded(now.get(key, defaults.get(key, "default")))
        if theirs != mine:
            differences[key] = theirs, mine
    runtime = {key: differences.pop(key) for key in list(differences) if is_runtime_key(key)}
    longer = list(differences) == [EPOCHS] and differences[EPOCHS][1] > differences[EPOCHS][0]
    if longer and decoded(now.get(EXTEND)) is True:
        return "more"
    if differences:
        hint = f", or train that one for longer with {EXTEND} True" if longer else ""
        advice = f"give the settings of that one, or this one a TAG=<short name> of its own{hint}"
        return f"other {listed(differences)}: {advice}"
    asked_for = any(runtime.get(key, (True, False)) == (False, True) for key in OUTPUTS)
    if asked_for or runtime.get("TEST.NO_TEST") == (True, False):
        return "more"
    shown = {key: values for key, values in runtime.items() if key in pairs_of(words)}
    return f"same, with {listed(shown)}" if shown else "same"


def listed(differences: dict[str, tuple[Any, Any]]) -> str:
    """Return keys with the value of the finished run and that of this one."""
    return ", ".join(f"{key} {old} (now {new})" for key, (old, new) in differences.items())


def main(command: str, *words: str) -> None:
    """Do what the module's text says.

    Raises:
        OSError, ValueError, KeyError: a file or a pair cannot be read.
    """
    if command == "plan":
        files, *pairs = words
        print(epochs(files, []), epochs(files, pairs), *other_settings(pairs), sep="\n")
    elif command == "finished":
        log, files, *pairs = words
        print(compared(log, files, pairs))
    elif command == "nearest":
        word, *names = words
        print(nearest(word, names))


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (OSError, ValueError, KeyError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
