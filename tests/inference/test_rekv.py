"""Blocks on the host: what is fetched is what was stored and what is asked for, and is seen before the answer."""

import gc
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from apart import with_layers_apart
from full_passes import QUESTION, make_frames
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from swjax.data.between_frames import encode_question, encode_turn
from swjax.inference import BatchEngine, StreamSession, StreamSettings, TokenSpoken
from swjax.inference.memory import Bounds, ReKV, memory_of
from swjax.inference.memory.host import Block, HostBlocks
from swjax.inference.memory.moved import turned
from swjax.inference.prompt import encode_prompt
from swjax.inference.track import question_words
from swjax.streaming import KeySpans, SpecialTokens

GRID, UNITS = (4, 4), 4
SMALL = {"sources": 64, "words": 12, "first_words": 2}


@dataclass(frozen=True)
class All(ReKV):
    """Stores all frames but the newest whenever it can, and fetches all of them."""

    @property
    def low(self):
        return 180

    def bounds(self, frame_units, prompt):
        return Bounds(180, 64, 180)


def make_engine(weights, **changes):
    sizes = {"rows": 1, "frame_units": UNITS, "slots": 240, "word_slots": 32, "max_slots": 240, "chunk_sizes": (16,)}
    return BatchEngine(weights, **sizes | {"grow_ahead": False} | changes)


def watch(engine, tokenizer, memory, frames=24, variant="gdpe"):
    """A stream, still open, after so many frames, and its words."""
    settings = StreamSettings(variant=variant, wait_k=2, max_tail=2, memory=memory)
    stream = engine.open(tokenizer, question=QUESTION, settings=settings, watches_on=True)
    spoken: list[TokenSpoken] = []
    for frame in make_frames(frames, 2, GRID):
        engine.see(stream, frame)
        while engine.has_work:
            spoken += [event for _, event in engine.step() if isinstance(event, TokenSpoken)]
        assert stream.fault is None
    return stream, spoken


def book_of(stream):
    return stream._scheduler._track.book


def test_all_fetched_is_nothing_forgotten(weights, tokenizer):
    """Words, and the keys of all frames in the end."""
    found = []
    for memory in (ReKV(sources=180, words=48), All(sources=60, words=48, recent=0)):
        engine = make_engine(weights, slots=300, word_slots=90, max_slots=300)
        stream, spoken = watch(engine, tokenizer, memory, 20)
        book = book_of(stream)
        keys = engine._speaker.read(0, book.source_slots, stream.origin).keys
        found.append((book, [event.token_id for event in spoken], keys))
    (whole, words, keys), (all_, same, others) = found
    assert (whole.host, len(all_.host)) == (None, 19)
    assert words == same
    assert len(set(words)) > 5
    np.testing.assert_array_equal(all_.frames, np.broadcast_to(whole.frames, all_.frames.shape))
    np.testing.assert_allclose(keys, others, atol=1e-4)


@pytest.mark.parametrize("is_apart", [False, True])
def test_what_is_fetched_is_what_was_stored(model, weights, tokenizer, is_apart):
    """Bit by bit, on both devices; in each layer what it asks for, in order of time."""
    places = [
        NamedSharding(Mesh(np.array([device]), "copies"), PartitionSpec()) for device in jax.devices()[: 2 * is_apart]
    ]
    engine = make_engine(model if is_apart else weights, placement=tuple(places) or None)
    stream, _ = watch(engine, tokenizer, ReKV(**SMALL))
    book = book_of(stream)
    host, (first, stop) = book.host, book.fetched
    assert first == book.prompt
    assert stop - first == 4 * UNITS
    query = host.asked[1]
    # Blocks that came after the newest compaction cannot have been asked for; there are none, as it stored them.
    rotary = engine.config.text.rotary
    plain = [turned(jnp.asarray(host[one].keys, jnp.float32), -host[one].ids, rotary) for one in range(len(host))]
    scores = np.einsum("lkh,blkh->lb", query, np.stack([np.asarray(one).mean(axis=2) for one in plain]))
    best = np.sort(np.argsort(-scores, axis=1)[:, :4], axis=1)
    assert len(np.unique(best, axis=0)) == 2, "layers ask for other blocks"
    for lane, origin in {(engine._speaker, stream.origin), (engine._perceiver, 0 if is_apart else stream.origin)}:
        piece = lane.take(stream.row, origin + first, stop - first)
        for layer, chosen in enumerate(best):
            for held, name in zip(piece, ("keys", "values"), strict=True):
                stored = np.concatenate([getattr(host[one], name)[layer] for one in chosen], axis=1)
                assert np.asarray(held[layer]).tobytes() == stored.tobytes()
            frames = np.concatenate([host[one].frames for one in chosen])
            assert book.frames[layer, 0, first:stop].tolist() == frames.tolist()
            assert book.ids[:, layer, 0, first:stop].tolist() == np.hstack([host[one].ids for one in chosen]).tolist()


def test_the_host_grows_by_what_leaves_and_the_device_does_not(weights, tokenizer):
    settings = StreamSettings(wait_k=2, max_tail=2, memory=ReKV(**SMALL))
    engine, held = make_engine(weights), []
    stream = engine.open(tokenizer, question=QUESTION, settings=settings, watches_on=True)
    for index, frame in enumerate(make_frames(49, 2, GRID)):
        engine.see(stream, frame)
        while engine.has_work:
            engine.step()
        if index in (24, 48):
            gc.collect()
            held.append((sum(one.nbytes for one in jax.live_arrays()), stream.tally.blocks_stored))
    host, text = book_of(stream).host, engine.config.text
    keys_and_values = 2 * text.num_layers * text.num_kv_heads * UNITS * text.head_dim * 4
    vector, labels = keys_and_values // 2 // UNITS, 8 * UNITS * 4
    assert (len(host), stream.tally.blocks_forgotten) == (stream.tally.blocks_stored, 0)
    assert stream.tally.host_bytes == len(host) * (keys_and_values + vector + labels)
    (device, blocks), (later, more) = held
    assert (later, more) == (device, blocks + 24)
    engine.close(stream)
    assert book_of(stream).host is None, "a stream that has ended gives its blocks up"


def block_of(number, size=2):
    keys = np.full((1, 1, size, 4), number, np.float32)
    return Block(keys, keys, np.full((3, size), number, np.int32), np.zeros(3, np.int32), *[keys[0, 0, :, 0]] * 2)


def test_the_oldest_are_forgotten_beyond_the_limit():
    probe = HostBlocks(2, 10**9)
    probe.add(block_of(0), np.zeros((1, 1, 1), np.float32))
    host = HostBlocks(2, 5 * probe.block_bytes)
    for number in range(13):
        host.add(block_of(number), np.full((1, 1, 1), [5, 3, 9, 1, 7][number % 5], np.float32))
    assert (len(host), host.stored, host.forgotten, host.bytes) == (5, 13, 8, 5 * probe.block_bytes)
    found = host.best(np.ones((1, 1, 1), np.float32), 3)[0].tolist()
    assert [host[one].frames[0] for one in found] == [9, 10, 12], "of 8 to 12 those of 7, 5 and 9, in order of time"
    assert [host[one].frames[0] for one in host.best(np.ones((1, 1, 1), np.float32), 9)[0]] == [8, 9, 10, 11, 12]
    assert host.step == 1


def test_a_question_fetches_before_its_first_word(weights, tokenizer):
    """And alike in a session; the first words of its answer see what it asks for."""
    engine, noted = make_engine(weights, slots=300, max_slots=300), []
    move = engine._speaker.move
    engine._speaker.move = lambda row, moves, origin: (
        noted.append((moves.incoming, len(spoken))) or move(row, moves, origin)
    )
    settings = StreamSettings(wait_k=2, max_tail=2, memory=ReKV(**SMALL | {"sources": 120}))
    stream = engine.open(tokenizer, question=QUESTION, settings=settings, watches_on=True)
    session = StreamSession(weights, tokenizer, question=QUESTION, settings=settings)
    spoken: list[TokenSpoken] = []
    for index, frame in enumerate(make_frames(30, 2, GRID)):
        engine.see(stream, frame)
        session.see(frame)
        list(session.speak(2))
        if index == 26:
            before = len(noted)
            engine.ask(stream, "And where is it now?", interrupt=True)
            session.ask("And where is it now?", interrupt=True)
            list(session.speak(2))
        while engine.has_work:
            spoken += [event for _, event in engine.step() if isinstance(event, TokenSpoken)]
    assert stream.fault is None
    answers = [index for index, event in enumerate(spoken) if event.question == 1]
    incoming, words = noted[before]
    assert incoming is not None
    assert words == answers[0], "no word of the answer comes before"
    assert book_of(stream).host.asked[0] == 1
    assert session.answer == [event.token_id for event in spoken]


@pytest.mark.parametrize(
    ("variant", "positions"), [("gdpe", "contiguous"), ("interleave", "contiguous"), ("gdpe", "apart")]
)
def test_blocks_may_stand_right_before_the_window(weights, tokenizer, variant, positions):
    """And keys are those of the ids in the book: unrotated they are what the host has."""
    memory = ReKV(**SMALL, positions=positions, reanchor_at=1)
    stream, _ = watch(engine := make_engine(weights), tokenizer, memory, 30, variant=variant)
    book, (first, stop) = book_of(stream), book_of(stream).fetched
    assert stop - first == 4 * UNITS
    of_frames = book.ids[0, :, 0, first::UNITS]
    steps = np.diff(of_frames, axis=1)
    assert (steps[:, :3] == book.host.step).all()
    assert (steps[:, 3] >= book.host.step).all(), "where ids are counted in one, words may stand between"
    if variant == "gdpe":
        assert (steps[:, 3] == 2).all()
        assert book.host.step == 2
        assert (of_frames[:, 0] == book.ids[0, :, 0, first - 1] + 1).all(), "right behind the prompt"
    keys = engine._speaker.read(0, book.source_slots, stream.origin).keys
    plain = np.asarray(turned(keys, jnp.asarray(-book.ids), engine.config.text.rotary))[:, :, first:stop]
    for layer, frames in enumerate(book.frames[:, 0, first:stop:UNITS]):
        for index, frame in enumerate(frames):
            (block,) = (one for one in map(book.host.__getitem__, range(len(book.host))) if one.frames[0] == frame)
            stored = turned(jnp.asarray(block.keys), -block.ids, engine.config.text.rotary)
            at = slice(index * UNITS, (index + 1) * UNITS)
            np.testing.assert_allclose(plain[layer][:, at], stored[layer], atol=1e-3)


def test_set_back_together_changes_no_word_and_no_block(weights, tokenizer):
    (kept, words), (together, same) = (
        watch(make_engine(weights), tokenizer, ReKV(**SMALL, **given), 30)
        for given in ({}, {"positions": "together", "reanchor_at": 30})
    )
    assert [event.token_id for event in words] == [event.token_id for event in same]
    np.testing.assert_array_equal(book_of(kept).frames, book_of(together).frames)
    shift = book_of(kept).ids - book_of(together).ids
    assert (shift == shift.flat[0]).all()
    assert shift.flat[0] > 20


def test_queries_are_those_of_the_text_by_itself(model, weights):
    text, ids, noted = model.config.text, np.array([5, 90, 33, 12]), []
    held = with_layers_apart(model)
    positions = jnp.asarray(np.tile(np.arange(4), (3, 1, 1)), jnp.int32)
    spans = KeySpans(jnp.zeros((1, 4), jnp.int32), jnp.arange(1, 5, dtype=jnp.int32)[None])
    for layer in held.decoder.layers:
        attend = layer.attention
        layer.attention = lambda q, k, v, spans, attend=attend: noted.append(q) or attend(q, k, v, spans)
    held.decoder(held.decoder.embed(jnp.asarray(ids[None])), positions, spans)
    plain = [np.asarray(turned(q.swapaxes(1, 2), -positions[:, 0], text.rotary))[0].mean(axis=1) for q in noted]
    expected = np.stack(plain).reshape(text.num_layers, text.num_kv_heads, -1, text.head_dim).sum(axis=2)
    lane = make_engine(weights)._speaker
    found = lane.read(0, np.zeros(1, np.int32), 0).queries(ids)
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_the_words_of_a_question(tokenizer):
    special = SpecialTokens.from_tokenizer(tokenizer)
    asked = (
        encode_prompt(tokenizer, special, "What happens?"),
        np.array(encode_question(tokenizer, special, "What happens?").token_ids, np.int32),
        encode_turn(tokenizer, special, "What happens?"),
    )
    assert [tokenizer.decode(question_words(ids, special)).strip() for ids in asked] == ["What happens?"] * 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rekv:positions=new", "positions must be one of kept, contiguous, together, apart"),
        ("rekv:recent=101", "recent must be a whole number from 0 to 100"),
        ("rekv:host_mb=0", "host_mb must be a whole number from 1"),
        ("rekv:sources=64,block=9", "block must be a whole number from 0 to 8"),
    ],
)
def test_what_is_no_such_memory_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        memory_of(text)
