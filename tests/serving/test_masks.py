import pytest
from serving_clients import masked

from swjax.serving.masks import MAX_FRAMES, FrameGuard


class Parser:
    def __init__(self):
        self.data = b""

    def feed_data(self, data: bytes):
        self.data += data
        return False, b""


def guarded():
    parser, left = Parser(), []
    return parser, left, FrameGuard(parser, lambda: left.append(True))


FRAMES = b"".join(masked(bytes(size), 2) for size in (0, 1, 5, 125, 126, 127, 300, 70_000, 3))


@pytest.mark.parametrize("step", [1, 3, 7, 1000, len(FRAMES)])
def test_masked_frames_are_handed_on_however_they_are_cut(step):
    parser, left, guard = guarded()
    for first in range(0, len(FRAMES), step):
        guard.feed_data(FRAMES[first : first + step])
    assert parser.data == FRAMES
    assert not left


@pytest.mark.parametrize("step", [1, 1000, len(FRAMES) + 10])
@pytest.mark.parametrize("bare", [b"\x81\x02hi", b"\x82\x7e\x01\x00" + bytes(256)])
def test_a_frame_without_a_mask_is_the_end(step, bare):
    parser, left, guard = guarded()
    data = FRAMES + bare + FRAMES
    for first in range(0, len(data), step):
        guard.feed_data(data[first : first + step])
    assert left
    assert len(parser.data) <= len(FRAMES) + 1


def test_a_flood_of_empty_frames_is_the_end_before_it_is_parsed():
    parser, left, guard = guarded()
    guard.feed_data(masked(b"", 1) * MAX_FRAMES)
    assert not left
    assert guard.feed_data(masked(b"", 1) * (MAX_FRAMES + 1)) == (True, b"")
    assert left
    assert len(parser.data) == 6 * MAX_FRAMES
