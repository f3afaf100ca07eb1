"""Import the files of a user that register trainers, and declare their config keys."""

from __future__ import annotations

import ast
import hashlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from dassl.config import CfgNode, declare_from_file
from dassl.utils.registry import Registered, Registry, replacing_names

__all__ = ["OwnFile", "declare_keys", "load_own_file"]

DECLARE = "extend_cfg"


class OwnFile(NamedTuple):
    """An imported file and what it registered."""

    module: ModuleType
    registered: list[Registered]

    def declare(self, cfg: CfgNode) -> bool:
        """Call ``extend_cfg(cfg)`` of the file and of the classes that it registered, if any.

        Classes that these replace declare their keys first, so that a copy of one finds them.

        Returns:
            Whether the file or one of its classes has the function.
        """
        for entry in self.registered:
            getattr(entry.replaced, DECLARE, _declare_nothing)(cfg)
        owners = (self.module, *(entry.obj for entry in self.registered))
        declaring = [getattr(owner, DECLARE) for owner in owners if hasattr(owner, DECLARE)]
        for declare in declaring:
            declare(cfg)
        return bool(declaring)


def _declare_nothing(cfg: CfgNode) -> None:
    """Declare nothing, in place of an ``extend_cfg`` that an object lacks."""


_loaded: dict[Path, OwnFile] = {}


def load_own_file(path: str) -> OwnFile:
    """Import a Python file that registers trainers, data sets or the like; once per process.

    The file may import others beside it, relatively (``from .templates import X``) or by name. An
    object that it registers under a taken name replaces the former one, and a note says so.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not Python, fails to import, or registers nothing.
    """
    file = Path(path).resolve()
    if not file.is_file():
        raise FileNotFoundError(f"no file {path}")
    if file.suffix != ".py":
        raise ValueError(f"{path} is not a Python file (.py)")
    if "." in file.stem:
        raise ValueError(
            f"{path} cannot be imported: Python takes the dot in its name for a package; rename it"
        )
    if file not in _loaded:
        try:
            with replacing_names() as registered:
                module = importlib.import_module(f"{_package_of(file.parent)}.{file.stem}")
        except (ImportError, SyntaxError) as error:
            where = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
            raise ValueError(
                f"{path} cannot be imported: {type(error).__name__}: {error}{where}; files beside "
                "it can be imported as in `from .name import X` or `import name`"
            ) from error
        if not registered:
            raise ValueError(f"{path} registers nothing: {_how_to_register(module)}")
        Registry.note_module(module.__name__)
        _loaded[file] = OwnFile(module, registered)
    own = _loaded[file]
    found = ", ".join(f"{e.registry.lower()} {e.obj.__name__}" for e in own.registered)
    print(f"{path} registers {found}")
    return own


def _how_to_register(module: ModuleType) -> str:
    """Say what to put in front of the trainers and data sets of a file, by their names."""
    from dassl.data.datasets import DatasetBase

    from .base import TrainerBase

    own = [c for c in vars(module).values() if isinstance(c, type)]
    own = [cls for cls in own if cls.__module__ == module.__name__]
    trainers = [cls.__name__ for cls in own if issubclass(cls, TrainerBase)]
    data_sets = [cls.__name__ for cls in own if issubclass(cls, DatasetBase)]
    lines = []
    if trainers or not data_sets:
        which = " and ".join(trainers) or "the trainer's class"
        lines.append(f"@TRAINER_REGISTRY.register() (dassl.engine) in front of {which}")
    if data_sets or not trainers:
        which = " and ".join(data_sets) or "the data set's class"
        lines.append(f"@DATASET_REGISTRY.register() (dassl.data.datasets) in front of {which}")
    return f"put {', or '.join(lines)}"


def _package_of(folder: Path) -> str:
    """Return the name of a package that stands for a folder, so that its files can import others.

    The folder also joins the end of Python's path, for imports by a file's own name.
    """
    name = f"own_files_{hashlib.sha256(str(folder).encode()).hexdigest()[:8]}"
    if name not in sys.modules:
        package = ModuleType(name, f"Files of {folder}.")
        package.__path__ = [str(folder)]
        sys.modules[name] = package
        sys.path.append(str(folder))
    return name


def declare_keys(cfg: CfgNode, path: str) -> None:
    """Declare the config keys of a file.

    Args:
        cfg: unfrozen configuration, extended in place.
        path: a YAML file of keys with their defaults, or a Python file with a function
            ``extend_cfg(cfg)``, such as a ``train.py`` of published code. Besides this function
            only constants and imports of yacs are run: its other imports need not be installed.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is neither, lacks the function, or the function needs more of it.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"no file {path}")
    if file.suffix in (".yaml", ".yml"):
        declare_from_file(cfg, path)
    elif file.suffix == ".py":
        declare = _function(file)
        try:
            declare(cfg)
        except NameError as error:
            raise ValueError(
                f"{path}: {DECLARE} uses more of its file than constants and yacs ({error}): write "
                "the function, with what it needs inside, into a file of its own"
            ) from error
    else:
        raise ValueError(f"{path} is neither a YAML file (.yaml) nor a Python file (.py)")


def _function(file: Path) -> Callable[[Any], None]:
    def constant(node: ast.stmt) -> bool:
        if isinstance(node, ast.Assign):
            try:
                ast.literal_eval(node.value)
            except ValueError:
                return False
            return True
        modules: list[str | None] = []
        if isinstance(node, ast.ImportFrom):
            modules = [node.module]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        return bool(modules) and all((name or "").split(".")[0] == "yacs" for name in modules)

    try:
        tree = ast.parse(file.read_text(encoding="utf-8"), str(file))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise ValueError(f"{file} is no Python: {error}") from error
    found = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name == DECLARE]
    if not found:
        raise ValueError(f"{file} has no function {DECLARE}(cfg)")
    tree.body = [node for node in tree.body if node in found or constant(node)]
    names: dict[str, Any] = {"__name__": file.stem}
    exec(compile(tree, str(file), "exec"), names)
    return names[DECLARE]
