import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from swjax.hub.errors import CheckpointError
from swjax.runs.orbax_files import reading


def test_reads_that_orbax_gave_up_say_nothing_even_if_they_end_before_the_failure_is_known(monkeypatch) -> None:
    said = []
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    stray = SimpleNamespace(object=None, exc_value=RuntimeError("Event loop is closed"))
    other = SimpleNamespace(object=None, exc_value=RuntimeError("the disk is on fire"))

    def fail() -> None:
        with reading(Path("/run/checkpoints/6/optimizer")):
            sys.unraisablehook(stray)
            sys.unraisablehook(other)
            raise ValueError("a chunk is cut off")

    with pytest.raises(CheckpointError, match="cannot be read"):
        fail()
    sys.unraisablehook(stray)
    assert said == [other]
