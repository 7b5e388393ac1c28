"""The fake driver of tests/unit/cuda, with a clock that says a millisecond for everything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.cuda import conftest
from tests.unit.cuda.conftest import kernels_folder, make_pair, null_folders  # noqa: F401
from tests.unit.cuda.fake import OK, FakeDriver


class Timed(FakeDriver):
    """events_made: how many that tell a time were created."""

    events_made = 0

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.timed: set[int] = set()

    def cuEventCreate(self, flags: int) -> Any:
        made = super().cuEventCreate(flags)
        if flags == 0:
            self.events_made += 1
            self.timed.add(made[1])
        return made

    def cuEventElapsedTime(self, begin: int, end: int) -> Any:
        assert {begin, end} <= self.timed and not any(q.pending for q in self.streams.values())
        return OK, 1.0


@pytest.fixture
def make_timed(make_pair: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:  # noqa: F811
    """`make_pair`, on a driver that has a clock."""
    monkeypatch.setattr(conftest, "FakeDriver", Timed)
    return make_pair
