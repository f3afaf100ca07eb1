"""A run outside of this toolbox: bundles that predict on their own, and an HTTP service."""

from __future__ import annotations

import importlib.util


def need(what: str, *packages: str) -> None:
    """Check that packages can be imported, before any work is done.

    Args:
        what: the command or option that needs them, for the message.
        packages: names to import.

    Raises:
        ValueError: some are not installed; names them.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{what} needs {', '.join(missing)}: install requirements-deploy.txt (bash "
            "scripts/setup.sh deploy does)"
        )
