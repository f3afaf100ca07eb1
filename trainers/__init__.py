"""The methods, one file each. Every file here is imported, so that its method registers itself."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

#: the packages beside this one that methods are made of; other projects have some of these names
NEEDED = ("adaptation", "clip", "dassl", "datasets", "protocols", "results", "support")


def check_names() -> None:
    """Check that packages of this toolbox are not hidden by others of their names.

    Raises:
        ImportError: one is; says where it lies and what to do.
    """
    root = Path(__file__).resolve().parent.parent
    for name in NEEDED:
        loaded = sys.modules.get(name)
        spec = importlib.util.find_spec(name) if loaded is None else None
        place = getattr(loaded, "__file__", None) or (spec.origin if spec else None)
        # not just below root: an environment may lie in there
        if not place or Path(place).resolve() not in (
            root / name / "__init__.py",
            root / f"{name}.py",
        ):
            found = f"{place or 'a folder without __init__.py'} is"
            done = "imported already" if loaded else "found first"
            raise ImportError(
                f"the toolbox in {root} needs its own package {name!r}, but {found} {done}: use an "
                f"environment without that package, or put the toolbox first: PYTHONPATH={root}"
            )


check_names()

from adaptation.config import extend_cfg  # noqa: E402
from adaptation.predictor import Label, Predictor  # noqa: E402
from dassl.engine import TRAINER_REGISTRY  # noqa: E402

__all__ = ["Label", "Predictor", "check_trainer", "extend_cfg"]

TRAINER_REGISTRY.import_files(__name__, __path__)
check_trainer = TRAINER_REGISTRY.check
