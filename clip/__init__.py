"""CLIP: model, tokeniser and checkpoint loading."""

from .clip import *  # noqa: F403
