"""The fake driver of tests/unit/cuda, with a clock that says a millisecond for everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.cuda import conftest
from tests.unit.cuda.conftest import kernels_folder, make_pair, null_folders  # noqa: F401
from tests.unit.cuda.fake import OK, FakeDriver


class Timed(FakeDriver):
    """events: how many were created."""

    events_made = 0

    def cuEventCreate(self, flags: int) -> Any:
        assert flags == 0, "an event that tells no time"
        self.events_made += 1
        return super().cuEventCreate(flags)

    def cuEventElapsedTime(self, begin: int, end: int) -> Any:
        assert {begin, end} <= self.events.keys() and not any(q.pending for q in self.streams.values())
        return OK, 1.0


@pytest.fixture
def make_timed(make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:  # noqa: F811
    """`make_pair`, on a driver that has a clock."""
    monkeypatch.setattr(conftest, "FakeDriver", Timed)
    return make_pair
