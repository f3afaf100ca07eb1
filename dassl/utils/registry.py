"""Tables of trainers, data sets, evaluators and networks by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from support.command_line import ROOT
from support.hints import nearest, same_but_case


class Registered(NamedTuple):
    """A registration: name of the registry, object, and the object that it replaced or None."""

    registry: str
    obj: Any
    replaced: Any = None


class RegistryKeyError(KeyError):
    """Unknown or doubly used name (a ``KeyError`` whose text is printed as it is).

    Args:
        text: the message.
        name: the name.
    """

    def __init__(self, text: str, name: str) -> None:
        super().__init__(text)
        self.name = name

    def __str__(self) -> str:
        return self.args[0]


class Registry:
    """Table of objects by their ``__name__``.

    Args:
        name: what the table holds, used in error texts.
        contents: what a file that registers them holds, for notes on one; by default the plural of
            the name.

    Example::

        TRAINER_REGISTRY = Registry("TRAINER")

        @TRAINER_REGISTRY.register()
        class MyTrainer: ...
    """

    #: what was registered so far within :func:`replacing_names`; None outside of it
    _replacing: list[Registered] | None = None
    #: names of the modules that were imported for what they register
    _modules: ClassVar[list[str]] = []

    def __init__(self, name: str, contents: str = "") -> None:
        self._name = name
        self._contents = contents or f"{name.lower()}s"
        self._obj_map: dict[str, Any] = {}
        #: what is wrong with files that are left out, by the name of their module
        self._left_out: dict[str, str] = {}
        #: the same, by a name that two files claim, of which only one can have it
        self._claimed_twice: dict[str, str] = {}

    def register(self, obj: Any = None, force: bool = False) -> Any:
        """Add an object; usable as ``@R.register()`` or ``R.register(obj)``.

        Args:
            obj: class or function; None returns a decorator.
            force: replace an object of the same name.

        Raises:
            KeyError: if the name is taken and ``force`` is False.
        """
        if obj is None:

            def decorator(fn_or_class: Callable) -> Callable:
                self._add(fn_or_class, force)
                return fn_or_class

            return decorator
        self._add(obj, force)
        return obj

    def _add(self, obj: Any, force: bool) -> None:
        name, earlier = obj.__name__, Registry._replacing
        known = self._obj_map.get(name)
        if known is not None and not force:
            if earlier is None or any(known is entry.obj for entry in earlier):
                raise RegistryKeyError(
                    f"{name} is already registered in the {self._name} registry by "
                    f"{known.__module__}; choose another name or pass force=True",
                    name,
                )
            print(f"Note: {self._name.lower()} {name} of {known.__module__} is replaced")
        self._obj_map[name] = obj
        if earlier is not None:
            earlier.append(Registered(self._name, obj, known))

    def get(self, name: str) -> Any:
        """Return the object of that name.

        Raises:
            KeyError: if there is none; the text names the nearest one.
        """
        if name not in self._obj_map:
            raise RegistryKeyError(_unknown(f"{self._name} registry", name, self._obj_map), name)
        return self._obj_map[name]

    def registered_names(self) -> list[str]:
        """Return all names in the order of registration."""
        return list(self._obj_map)

    def resolve(self, name: str) -> str:
        """Return the registered name that is spelt as this one but for case; else this one."""
        return same_but_case(name, self._obj_map)

    @classmethod
    def note_module(cls, module: str) -> None:
        """Note a module that is imported for what it registers, for :meth:`check`."""
        if module not in cls._modules:
            cls._modules.append(module)

    def __contains__(self, name: str) -> bool:
        return name in self._obj_map

    def import_files(self, package: str, path: Iterable[str]) -> None:
        """Import every file of a package, so that its objects register themselves.

        A file that fails, such as a half-written one, is named on standard error and left out.

        Args:
            package: its name.
            path: its folders (``__path__``).
        """
        for module in pkgutil.iter_modules(path):
            name = f"{package}.{module.name}"
            if name in self._left_out:
                continue
            try:
                importlib.import_module(name)
                self.note_module(name)
            except MemoryError:  # no fault of the file
                raise
            except Exception as error:
                finder: Any = module.module_finder  # a FileFinder
                file = Path(finder.path, f"{module.name}.py")
                self._leave_out(name, file, error)

    def declare_keys(self, cfg: Any) -> None:
        """Add the config keys that registered objects declare.

        Files whose ``extend_cfg`` fails are left out, like those that cannot be imported.

        Args:
            cfg: unfrozen configuration, passed to the ``extend_cfg`` of each object that has one.
        """
        for obj in self._obj_map.values():
            declare = getattr(obj, "extend_cfg", None)
            if declare is None or obj.__module__ in self._left_out:
                continue
            try:
                declare(cfg)
            except Exception as error:
                self._leave_out(obj.__module__, Path(inspect.getfile(obj)), error)

    def check(self, name: str, key: str = "") -> None:
        """Check that a name stands for an object that can be used.

        Args:
            name: name to look for.
            key: config key or option that it was read from, for the message.

        Raises:
            ValueError: it is not; names the file with a class of this name that is not
                registered, or else the nearest name and the files that are left out.
        """
        where = f"{key}: " if key else ""
        if name in self._claimed_twice:
            kind = self._name.lower()
            raise ValueError(
                f"{where}two files have a {kind} {name!r}: {self._claimed_twice[name]}"
            )
        try:
            check_availability(name, self._obj_map, key)
        except ValueError as error:
            if forgotten := self._forgotten(name):
                raise ValueError(f"{where}{forgotten}") from error
            more = "".join(f"; left out is {text}" for text in self._left_out.values())
            raise ValueError(f"{error}{more}") from error
        module = self._obj_map[name].__module__
        if module in self._left_out:
            raise ValueError(f"{where}{name!r} cannot be used: {self._left_out[module]}")

    def _forgotten(self, name: str) -> str:
        """Say where a class of this name, akin to those here, is not registered; else nothing."""
        kin = {base for obj in self._obj_map.values() for base in getattr(obj, "__mro__", ())}
        for module in Registry._modules:
            # a module may have been taken out again
            for known, cls in vars(sys.modules.get(module, object)).items():
                same = known.lower() == name.lower() and isinstance(cls, type)
                if same and cls in self._obj_map.values():
                    continue  # only its spelling is wrong
                if same and cls.__module__ == module and kin & set(cls.__mro__[1:-1]):
                    return (
                        f"{_shown(Path(inspect.getfile(cls)))} has a class {known} that is not "
                        f"registered: put @{self._name}_REGISTRY.register() in front of it"
                    )
        return ""

    def _leave_out(self, module: str, file: Path, error: Exception) -> None:
        lines = [
            line
            for frame, line in traceback.walk_tb(error.__traceback__)
            if frame.f_code.co_filename == str(file)
        ]
        place = f", line {lines[-1]}" if lines else ""
        text = f"{_shown(file)}{place}: {type(error).__name__}: {error}"
        self._left_out[module] = text
        if isinstance(error, RegistryKeyError):
            self._claimed_twice[error.name] = text
        print(f"Note: {self._contents} of a file are left out: {text}", file=sys.stderr)


def _shown(file: Path) -> Path:
    """Return a file as messages name it: relative to the repository, where it lies in there."""
    return file.relative_to(ROOT) if file.is_relative_to(ROOT) else file


@contextmanager
def replacing_names() -> Iterator[list[Registered]]:
    """Let objects registered in this context replace those of the same name, with a note.

    Yields:
        A list that is filled as objects are registered. Of two of them with one name, the second is
        an error as ever.
    """
    registered: list[Registered] = []
    Registry._replacing = registered
    try:
        yield registered
    finally:
        Registry._replacing = None


def check_availability(requested: str, available: Iterable[str], key: str = "") -> None:
    """Raise unless ``requested`` is one of ``available``.

    Args:
        requested: name to look for.
        available: names to choose from.
        key: config key or option that the name was read from, for the message.

    Raises:
        ValueError: names the key, the requested and the nearest available name.
    """
    available = list(available)
    if requested not in available:
        where = f"{key}: " if key else ""
        raise ValueError(where + _unknown("available names", requested, available))


def _unknown(where: str, name: str, available: Collection[str]) -> str:
    names = list(map(str, available))
    hint = nearest(str(name), names, cutoff=0.0, show=repr)
    return f"{name!r} is not in the {where} ({', '.join(names) or 'empty'}){hint}"
