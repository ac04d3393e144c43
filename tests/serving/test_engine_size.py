import numpy as np
import pytest
from obvious_stream import ObviousStream
from serving_clients import QUESTION, make_pictures

from swjax.data.patches import resized_size
from swjax.inference import Mode, Request, StreamSettings, TokenSpoken, run_streams
from swjax.inference.dropping import EVS
from swjax.inference.frames import make_frame
from swjax.inference.memory import Window
from swjax.serving import EngineSize, Limits
from swjax.serving.offer import Offer
from swjax.serving.protocol import Open
from swjax.streaming import StreamSpec


def test_frames_of_every_shape_fit_into_few_sizes():
    record = StreamSpec(min_pixels=4 * 28 * 28, max_pixels=768 * 28 * 28)
    sizes = EngineSize.of(record, Limits(), rows=2).frame_sizes
    assert len(sizes) <= 12
    assert sizes == tuple(sorted(set(sizes)))
    shapes = np.random.default_rng(0).integers(40, 2000, (500, 2))
    for width, height in shapes:
        sides = resized_size(height, width, min_pixels=record.min_pixels, max_pixels=record.max_pixels, factor=28)
        patches = sides[0] * sides[1] // 14**2
        padded = next(size for size in sizes if size >= patches)
        assert padded <= max(2 * patches + 4, sizes[0])
    for usual in ((1920, 1080), (1080, 1440), (1080, 1080)):
        sides = resized_size(usual[1], usual[0], min_pixels=record.min_pixels, max_pixels=record.max_pixels, factor=28)
        assert sides[0] * sides[1] // 14**2 in sizes


def test_with_a_memory_rows_are_as_long_as_its_budget_and_not_as_the_video():
    record, memory = StreamSpec(max_pixels=16 * 28 * 28), Window(sources=1000, words=80)
    short, long = (EngineSize.of(record, Limits(max_video_s=s), rows=2, memory=memory) for s in (60, 86_400))
    assert short == long
    assert short.slots - short.word_slots == 1000 + 16 + 264
    assert short.word_slots == 90 + 16 + 300 + 9
    with pytest.raises(ValueError, match="the memory needs 1695 slots a row, got 1000"):
        EngineSize.of(record, Limits(), rows=2, slots=1000, memory=memory)


def test_all_streams_have_the_memory_and_the_rule_that_a_server_offers():
    offer = Offer("a model", StreamSpec(), memory=Window(sources=1000), drop=EVS())
    chosen = offer.choose(Open()).settings
    assert (chosen.memory, chosen.drop) == (Window(sources=1000), EVS())
    with pytest.raises(ValueError, match="mode recompute keeps all; leave it out, or the memory"):
        Offer("a model", StreamSpec(), modes=(Mode.PARALLEL, Mode.RECOMPUTE), drop=EVS())


@pytest.mark.parametrize("shape", [(60, 200), (100, 40)])
def test_padding_changes_no_word(engine, source, tokenizer, shape):
    """Beside a stream whose frames are encoded as they are."""
    pictures = make_pictures(6, 3, shape)
    frames = [
        make_frame(pictures[first : first + 2], video_s=first / 2 + 0.5, min_pixels=3136, max_pixels=3136)
        for first in (0, 2, 4)
    ]
    settings = StreamSettings(max_tail=6)
    *_, (_, stream, _) = run_streams(engine, tokenizer, [Request(QUESTION, frames, settings)])
    obvious = ObviousStream(source.model, tokenizer, question=QUESTION, settings=settings)
    alone = [event.token_id for event in obvious.run(frames) if isinstance(event, TokenSpoken)]
    assert stream.answer == alone
