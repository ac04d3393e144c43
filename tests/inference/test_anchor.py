"""Position ids of windows: what is turned, and what is as if it had not been."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from full_passes import QUESTION, make_frames

from swjax.inference import BatchEngine, StreamSettings, TokenSpoken
from swjax.inference.memory import Book, Window
from swjax.inference.memory.anchor import anchored
from swjax.inference.memory.moved import turned
from swjax.models.rotary import rotate

GRID = (4, 4)


def make_engine(weights):
    return BatchEngine(
        weights, rows=1, frame_units=4, slots=240, word_slots=32, max_slots=240, chunk_sizes=(16,), grow_ahead=False
    )


def stream_with(weights, tokenizer, variant, frames=40, gap=10_000, **memory):
    """An engine and a stream, still open, after so many frames."""
    window = Window(sources=64, words=6, first_words=2, **memory)
    settings = StreamSettings(variant=variant, wait_k=2, max_tail=2, memory=window, gap=gap)
    engine = make_engine(weights)
    stream = engine.open(tokenizer, question=QUESTION, settings=settings)
    spoken = []
    for _, frame in zip(range(frames), itertools.cycle(make_frames(8, 2, GRID)), strict=False):
        engine.see(stream, frame)
        while engine.has_work:
            spoken += [event.token_id for _, event in engine.step() if isinstance(event, TokenSpoken)]
    assert stream.fault is None
    return engine, stream, spoken


def unrotated(engine, stream):
    """Keys of the stored sources without their rotation: what they are however ids are set."""
    book = stream._scheduler._track.book
    keys = engine._speaker.read(0, book.source_slots, stream.origin).keys
    return np.asarray(turned(keys, jnp.asarray(-book.ids), engine.config.text.rotary)), book


def test_turning_is_rotating_at_other_ids(model):
    rotary, rng = model.config.text.rotary, np.random.default_rng(0)
    ids, turn = rng.integers(0, 5000, (3, 7)), rng.integers(-900, 900, (3, 7))
    keys = rng.normal(size=(1, 2, 7, rotary.head_dim)).astype(np.float32)
    at = lambda ids: rotate(jnp.asarray(keys).swapaxes(1, 2), rotary(ids[:, None])).swapaxes(1, 2)  # noqa: E731
    np.testing.assert_allclose(turned(at(ids), turn, rotary), at(ids + turn), atol=1e-3)
    np.testing.assert_allclose(turned(at(ids // 50), turn // 50, rotary), at(ids // 50 + turn // 50), atol=1e-5)
    np.testing.assert_allclose(turned(at(ids), -ids, rotary), keys, atol=1e-3)


def test_set_back_together_changes_no_word(weights, tokenizer):
    _, kept, words = stream_with(weights, tokenizer, "gdpe")
    _, together, same = stream_with(weights, tokenizer, "gdpe", positions="together", reanchor_at=30)
    assert words == same
    assert len(set(words)) > 5
    old, new = (stream._scheduler._track.book for stream in (kept, together))
    assert old.ids.max() > 75
    assert new.ids.max() <= 30 + 8
    np.testing.assert_array_equal(np.diff(old.ids), np.diff(new.ids))
    assert (old.word_ids[0, 0] - new.word_ids[0, 0]) == (old.ids - new.ids).max() > 40, "both groups by one number"


def test_where_all_is_counted_in_one_sinks_forward_is_the_window_back(weights, tokenizer):
    """Between the two lies one number, which attention does not see."""
    _, one, words = stream_with(weights, tokenizer, "interleave", positions="contiguous")
    _, other, same = stream_with(weights, tokenizer, "interleave", positions="apart", reanchor_at=1)
    _, _, kept = stream_with(weights, tokenizer, "interleave")
    assert words == same
    assert words != kept
    shift = one._scheduler._track.book.ids - other._scheduler._track.book.ids
    assert (shift == shift[0, 0]).all()
    assert shift[0, 0] > 50


def test_frames_never_reach_the_words_ids(weights, tokenizer):
    """In GIPE, whose words are counted from the gap: without being set back apart they do."""
    for given, reaches in (({}, True), ({"positions": "apart"}, False)):
        _, stream, _ = stream_with(weights, tokenizer, "gipe", gap=100, **given)
        book = stream._scheduler._track.book
        assert (book.ids.max() >= 100) == reaches


@pytest.mark.parametrize("positions", ["contiguous", "apart"])
@pytest.mark.parametrize("variant", ["gdpe", "gipe"])
def test_ids_have_no_gaps(weights, tokenizer, variant, positions):
    """And keys are those of the ids in the book, to which the first ones are the same however often they are turned."""
    engine, stream, _ = stream_with(weights, tokenizer, variant, positions=positions, reanchor_at=1)
    keys, book = unrotated(engine, stream)
    sinks = np.count_nonzero(book.frames == -1)
    assert book.ids[0, sinks] == book.ids[0, sinks - 1] + 1
    assert book.ids[1:, sinks:].min() == sinks
    assert book.word_ids[0, 5] == book.word_ids[0, 4] + 1, "three of the prefix, two first words, then the newest"
    if positions == "apart":
        assert book.ids[0, 0] == 0
        assert book.word_ids[0, 0] == (10_000 if variant == "gipe" else 0)
    fresh, first, _ = stream_with(weights, tokenizer, variant, frames=1)
    prompt, _ = unrotated(fresh, first)
    np.testing.assert_allclose(keys[:, :, :sinks], prompt[:, :, :sinks], atol=1e-4)


def test_each_group_is_set_back_by_its_own_gap():
    book = Book(
        frames=np.array([-1, -1, 7, 7], np.int32),
        ids=np.array([[0, 1, 20, 20], [0, 1, 2, 2], [0, 1, 2, 3]], np.int32),
        words=np.array([0, 9], np.int32),
        word_ids=np.array([[4, 15]] * 3, np.int32),
    )

    def back(positions, joint=False, at=1):
        found = anchored(book, (2, 1), positions=positions, joint=joint, reanchor_at=at)
        return None if found is None else [ids.tolist() for ids in found]

    zero = [0, 0, 0]
    assert back("kept") is None
    assert back("contiguous") == [[18, 0, 0], [10, 10, 10], zero, zero]
    assert back("apart") == [zero, zero, [-18, 0, 0], [-10, -10, -10]]
    assert back("apart", at=15) == [zero, zero, [-18, 0, 0], zero]
    assert back("apart", at=19) is None
    assert back("together", at=19) == [[-11] * 3] * 4
    assert back("together", at=20) is None
    assert back("apart", joint=True) == [zero, zero, [-10, 0, 0], [-10] * 3]


def test_sinks_do_not_wear_out(model):
    """A hundred turns from a copy of what they were are one turn; in bfloat16 one after another they are not."""
    rotary, rng = model.config.text.rotary, np.random.default_rng(0)
    first = jnp.asarray(rng.normal(size=(1, 2, 16, rotary.head_dim)), jnp.bfloat16)
    step, again = np.full((3, 16), 17, np.int32), first
    for _ in range(100):
        again = turned(again, step, rotary)
    exact = turned(first.astype(jnp.float32), 100 * step, rotary)
    errors = [
        float(jnp.sqrt(jnp.mean((keys.astype(jnp.float32) - exact) ** 2) / jnp.mean(exact**2)))
        for keys in (turned(first, 100 * step, rotary), again)
    ]
    assert errors[0] < 0.003 < 0.01 < errors[1]
    assert jax.dtypes.canonicalize_dtype(again.dtype) == jnp.bfloat16
