"""Tables of trainers, data sets, evaluators and networks by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from support.hints import nearest


class Registered(NamedTuple):
    """A registration: name of the registry, object, and what had its name before or None."""

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

    Example::

        TRAINER_REGISTRY = Registry("TRAINER")

        @TRAINER_REGISTRY.register()
        class MyTrainer: ...
    """

    #: what was registered so far within :func:`replacing_names`; None outside of it
    _replacing: list[Registered] | None = None

    def __init__(self, name: str) -> None:
        self._name = name
        self._obj_map: dict[str, Any] = {}

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

    def __contains__(self, name: str) -> bool:
        return name in self._obj_map


@contextmanager
def replacing_names() -> Iterator[list[Registered]]:
    """Let what is registered in this context take the place of what had its name, with a note.

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
