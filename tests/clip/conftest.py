"""The small random CLIP of ``tests.clip.small`` as a fixture."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clip import packed_attention
from clip.model import CLIP

from . import small


@pytest.fixture(scope="module", params=[("cpu",), ()], ids=["groups", "sequences"])
def model(request) -> Iterator[CLIP]:
    """The CLIP, whose text encoder attends as on a CPU, and as on other devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(packed_attention, "GROUPS_ON", request.param)
        yield small.build()
