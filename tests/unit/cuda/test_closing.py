"""An executor that is closed under a call, and a batch after its end: nothing touches what is not theirs any more."""

from __future__ import annotations

import numpy as np
import pytest
from hspace.batch import Result, Sample
from hspace.errors import ArgumentError
from hspace.runs import Step

from tests.batches import run_all
from tests.conftest import relative_error

from .conftest import D, Pair, random_program, states


@pytest.mark.parametrize("phase", ["encode", "decode"])
def test_an_editor_that_is_closed_during_a_call(pair: Pair, phase: str) -> None:
    _, editor = pair.editors(2)

    def on_step(step: Step) -> None:
        if step.phase == phase:
            editor.close()

    with pytest.raises(ArgumentError, match=r"^the editor is closed, expected one that is open$"):
        editor.reconstruct(np.clip(states(3), -1, 1), on_step=on_step)


def test_a_batch_whose_executor_is_closed(pair: Pair) -> None:
    sample = Sample(states(1)[0], random_program(np.random.default_rng(0), 2), np.zeros(D, np.float32))
    with pair.executor.batch("image", 2) as batch:
        slot = batch.join(sample)
        batch.step()
        batch.step()
        pair.executor.close()
        for call in (lambda: batch.join(sample), lambda: batch.leave(slot)):
            with pytest.raises(ArgumentError, match="is closed"):
                call()
    with pytest.raises(ArgumentError, match="is closed"), pair.executor.batch("image", 1):
        pass


def test_a_batch_that_has_ended_touches_no_other(pair: Pair) -> None:
    program = random_program(np.random.default_rng(0), 3)
    one, other = (Sample(x, program, np.zeros(D, np.float32)) for x in states(2))
    (expected,) = run_all(pair.host, [other])
    with pair.executor.batch("image", 1) as ended:
        slot = ended.join(one)
        ended.step()
    with pair.executor.batch("image", 1) as batch:
        assert batch.workspace is ended.workspace
        here = batch.join(other)
        assert ended.step() == [] and len(ended) == 0
        for call in (lambda: ended.join(one), lambda: ended.leave(slot)):
            with pytest.raises(ArgumentError):
                call()
        while not batch.step():
            pass
        assert isinstance(expected, Result) and relative_error(batch.leave(here).x, expected.x) <= 1e-5
