"""What has come of a stream and waits."""

import numpy as np
import pytest

from swjax.inference.arrivals import Arrivals
from swjax.inference.frames import make_frame
from swjax.inference.parts import Tally
from swjax.inference.settings import Mode, StreamSettings
from swjax.streaming.dropping import Uniform


@pytest.mark.parametrize("mode", [Mode.PARALLEL, Mode.SEQUENTIAL])
def test_a_frame_that_is_looked_at_waits_until_it_is_taken(mode: Mode) -> None:
    """Its tokens are chosen before there is room for them, and the stream is behind meanwhile."""
    settings = StreamSettings(drop=Uniform(share=0.5))
    arrivals = Arrivals(settings, mode, when_behind=None, on_demand=False, prompt=5, videos=1, tally=Tally())
    assert (arrivals.waits, arrivals.backlog, arrivals.coming) == (False, 0, None)
    pictures = [np.full((56, 56, 3), shade, np.uint8) for shade in (10, 200)]
    for number in range(2):
        frame = make_frame(pictures, video_s=float(number), min_pixels=3136, max_pixels=3136)
        arrivals.arrive(frame, now=float(number), last=bool(number))
    assert not arrivals.is_looked_at()
    assert (arrivals.waits, arrivals.backlog) == (True, 2)
    assert next(arrivals.to_encode()).number == 0
    first = arrivals.coming
    assert arrivals.take() is first
    assert (arrivals.waits, arrivals.backlog) == (True, 1)
    assert arrivals.take().number == 1
    assert (arrivals.waits, arrivals.backlog) == (False, 0)
