"""The script names and arguments of the CoOp, MaPLe and PromptSRC repositories, as ours.

Called by scripts/<folder>/<upstream's name>.sh, which are all alike.

  *_maple, *_ivlp, *_lp, *_vpt   base2new_train, base2new_test, xd_train, xd_test, as in run.sh
  reproduce*.sh DATASET SEED WEIGHTSPATH      test published weights on base and new classes
  reproduce*_xd.sh DATASET SEED WEIGHTSPATH   test published weights on another data set
  promptsrc/few_shot.sh DATASET SHOTS         as fewshot.sh
  promptsrc/reproduce_few_shot.sh DATASET SHOTS WEIGHTSPATH   test published weights
  coop/main.sh DATASET CFG CTP NCTX SHOTS CSC   few-shot training, seeds 1 2 3
  coop/eval.sh DATASET CFG                    test main.sh's 16-shot ImageNet models, seeds 1 2 3
  coop/zeroshot.sh, zsclip/zeroshot.sh DATASET CFG   zero-shot CLIP, all classes

docs/protocols.md says how these differ from upstream's.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # where the next lines find these

from scripts.run import absolute_folders, help_text, run_script  # noqa: E402
from support.command_line import run as run_command  # noqa: E402
from support.hints import refuse_key  # noqa: E402

MORE = "[KEY VALUE ...]"


@dataclass(frozen=True)
class Call:
    """The call of ours that an upstream script makes; {NAME} stands for its argument NAME.

    Args:
        arguments: their names, with ``[KEY VALUE ...]`` where pairs may follow; empty where words
            are passed on as they are.
        script: of ours.
        words: of the call.
        env: variables that are set.
        method: another one than that of the folder.
    """

    arguments: str
    script: str
    words: str = ""
    env: Mapping[str, str] = field(default_factory=dict)
    method: str = ""


_WEIGHTS = {"WEIGHTS": "{WEIGHTSPATH}"}
_PAIRS = "TRAINER.COOP.N_CTX {0} TRAINER.COOP.CSC {1} TRAINER.COOP.CLASS_TOKEN_POSITION {2}"
_FOLDER = "nctx{0}_csc{1}_ctp{2}"
_MAIN, _EVAL = ("{NCTX}", "{CSC}", "{CTP}"), ("16", "False", "end")
_BASE2NEW = Call(f"DATASET SEED WEIGHTSPATH {MORE}", "base2new_test", "{DATASET} {SEED}", _WEIGHTS)
#: name, without the ending of a method -> what it calls
SCRIPTS = {
    **{name: Call("", name) for name in ("base2new_train", "base2new_test", "xd_train", "xd_test")},
    "few_shot": Call("", "fewshot"),
    "reproduce": _BASE2NEW,
    "reproduce_base2novel_setting": _BASE2NEW,
    "reproduce_xd": Call(
        f"DATASET SEED WEIGHTSPATH {MORE}", "xd_test", "{DATASET} {SEED}", _WEIGHTS
    ),
    "reproduce_few_shot": Call(
        f"DATASET SHOTS WEIGHTSPATH {MORE}", "fewshot", "{DATASET} {SHOTS}", _WEIGHTS
    ),
    # a seed makes no difference
    "zeroshot": Call("DATASET CFG", "zeroshot", "{DATASET} 1", {"CFG": "{CFG}"}, method="zsclip"),
    # the folder says the three settings, so the pairs need not
    "main": Call(
        "DATASET CFG CTP NCTX SHOTS CSC",
        "fewshot",
        f"{{DATASET}} {{SHOTS}} {_PAIRS.format(*_MAIN)}",
        {"CFG": "{CFG}", "TAG": "", "SUBFOLDER": _FOLDER.format(*_MAIN)},
    ),
    "eval": Call(
        "DATASET CFG",
        "xd_test",
        f"{{DATASET}} 1,2,3 {_PAIRS.format(*_EVAL)}",
        {"CFG": "{CFG}", "TAG": "", "SUBFOLDER": _FOLDER.format(*_EVAL), "SHOTS": "16"},
    ),
}
#: folder -> method, where they differ (language-prompting is a method of its own)
METHODS = {"independent-vlp": "ivlp"}


def translate(
    folder: str, name: str, words: Sequence[str]
) -> tuple[str, str, list[str], dict[str, str]]:
    """Return the call of ours that an upstream script stands for.

    Args:
        folder: of the script.
        name: of the script.
        words: that it is called with.

    Returns:
        Method, script and words of ours, and the variables to set.

    Raises:
        ValueError: there is no such script, or it takes other words.
    """
    call = SCRIPTS.get(re.sub("_(maple|ivlp|lp|vpt)(?=_|$)", "", name))
    if call is None:
        raise ValueError(f"no script {folder}/{name}.sh")
    method = call.method or METHODS.get(folder, folder)
    if not call.arguments:
        return method, call.script, list(words), {}
    names = call.arguments.removesuffix(f" {MORE}").split()
    more = words[len(names) :]
    usage = f"usage: scripts/{folder}/{name}.sh {call.arguments}"
    for word, place in zip(words, names, strict=False):
        refuse_key(word, place, usage)
    # an empty word is that of a variable that is not set
    if not all(words) or len(words) < len(names) or (more and MORE not in call.arguments):
        raise ValueError(usage)
    values = dict(zip(names, words, strict=False))
    ours = [word.format(**values) for word in call.words.split()]
    env = {key: text.format(**values) for key, text in call.env.items()}
    return method, call.script, [*ours, *more], env


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line CALLER FOLDER SCRIPT ARGUMENTS, with the caller's working folder first.

    Args:
        argv: its words; those of the process when None.

    Returns:
        Exit status: as of ``run.py``.
    """
    caller, folder, name, *words = sys.argv[1:] if argv is None else argv

    def run() -> int:
        if words[:1] in (["-h"], ["--help"]):
            print(f"{__doc__.strip()}\n\nThey read the same from the environment as run.sh:\n")
            print(help_text())
            return 0
        method, script, ours, own = translate(folder, name, words)
        if "TAG" in own:
            own["TAG"] = os.environ.get("TAG", own["TAG"])
        os.chdir(caller)
        env = absolute_folders({"PYTHON": sys.executable, **os.environ, **own})
        os.chdir(ROOT)
        return run_script(method, script, ours, env)

    return run_command(run)


if __name__ == "__main__":
    sys.exit(main())
