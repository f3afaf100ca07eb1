"""CLIP: model, tokeniser and checkpoint loading."""

from __future__ import annotations

from importlib import import_module

__all__ = ["available_models", "build_model", "load", "load_state_dict", "tokenize"]


def __getattr__(name: str) -> object:
    """Import ``clip.clip`` on first use, so that ``python -m clip.convert --help`` starts fast."""
    if name == "clip":
        return import_module(".clip", __name__)
    if name in __all__:
        return getattr(import_module(".clip", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
