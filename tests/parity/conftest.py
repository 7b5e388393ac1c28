"""What tests of small PyTorch networks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hspace.engines import probe


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """The networks are too small for more, and threads that wait for each other cost forty times as much."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bundles are not opened in a process of their own first: it would compile what a test wants to see compiled."""
    monkeypatch.setattr(probe, "check", lambda *of: None)
