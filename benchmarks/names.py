"""Names of methods on the command lines of measurements."""

from __future__ import annotations

import argparse


def method_name(text: str) -> str:
    """Return the registry name of a method that is given in any case, as the type of an argument.

    Raises:
        argparse.ArgumentTypeError: there is none of this name; names the nearest one.
    """
    import trainers  # noqa: F401  registers them
    from dassl.engine import TRAINER_REGISTRY

    name = TRAINER_REGISTRY.resolve(text)
    try:
        TRAINER_REGISTRY.check(name)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return name
