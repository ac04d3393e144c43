"""What each memory policy keeps, against the obvious computation in numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from apart import with_layers_apart
from replay import no_keys

from swjax.inference.memory import (
    MALMM,
    TEXT,
    Book,
    InfiniPotV,
    KeyDiff,
    PeakEnd,
    Random,
    StoredKeys,
    StreamMem,
    Uniform,
    VisionSinkBuckets,
)
from swjax.inference.memory.scored import highest
from swjax.inference.memory.vsb import spread
from swjax.models.cache import KeyValueCache
from swjax.models.rotary import rotate
from swjax.streaming import KeySpans

LAYERS, HEADS, PADDED = 2, 3, 64
UNITS = 4


def make_book(frames, *, prompt=2, words=6):
    """A book of so many frames, of which each has four tokens."""
    book = Book()
    book.add_sources(np.arange(prompt, dtype=np.int32), np.tile(np.arange(prompt, dtype=np.int32), (3, 1)), TEXT)
    add_frames(book, range(frames))
    slots = np.arange(words, dtype=np.int32)
    book.add_words(-1 - slots, np.tile(slots, (3, 1)), 0, (slots + 70).tolist(), (slots + 70).tolist())
    return book


def add_frames(book, numbers):
    for number in numbers:
        first = len(book.source_slots)
        slots, places = np.arange(first, first + UNITS, dtype=np.int32), np.arange(UNITS, dtype=np.int32)
        ids = np.stack([np.full(UNITS, 2 + 2 * number), 2 + places // 2, 2 + places % 2]).astype(np.int32)
        book.add_sources(slots, ids, number, places)


def make_stored(rotary, count, seed=0, mass=None, keys=None, surprise=None):
    rng = np.random.default_rng(seed)
    shape = (LAYERS, HEADS, PADDED, rotary.head_dim)
    made = [np.asarray(rng.normal(size=shape), np.float32) for _ in range(2)]
    keys = made[0] if keys is None else keys
    attention = lambda tokens, ids, slots: jnp.asarray(mass)  # noqa: E731
    pair = jnp.asarray(keys), jnp.asarray(made[1])
    take = lambda indices: tuple(one[:, :, indices] for one in pair)  # noqa: E731
    return StoredKeys(take, PADDED, count, rotary, attention, surprise or never, never)


def never(*asked):
    raise AssertionError(f"this is not to be asked: {asked}")


@pytest.fixture(scope="module")
def rotary(model):
    return model.config.text.rotary


def cosine(a, b):
    return (a @ b) / np.linalg.norm(a) / np.linalg.norm(b)


def test_uniform_drops_every_second_frame_of_the_older_half():
    book = make_book(10)
    policy = Uniform(sources=41)
    assert (policy.is_full(book), policy.low) == (True, 36)
    kept = book.frames[policy.keep(book, no_keys).sources]
    # Ten frames are forty tokens and thirty-four may stay: of 0 to 4 go 0, 2 and 4.
    assert np.unique(kept[kept >= 0]).tolist() == [1, 3, 5, 6, 7, 8, 9]
    assert np.count_nonzero(kept == TEXT) == 2
    assert np.unique(book.frames[Uniform(sources=8).keep(book, no_keys).sources]).tolist() == [TEXT, 9]
    assert len(Uniform(sources=42).keep(book, no_keys).sources) == 42


def test_random_keeps_the_newest_frame_and_as_many_as_the_budget_holds():
    book = make_book(10)
    kept = [Random(sources=30, seed=seed).keep(book, no_keys).sources for seed in (0, 0, 1)]
    assert len(kept[0]) == 27 == Random(sources=30).low
    assert (np.diff(kept[0]) > 0).all()
    assert {0, 1, 38, 39, 40, 41} <= set(kept[0].tolist())
    assert kept[0].tolist() == kept[1].tolist() != kept[2].tolist()


@pytest.mark.parametrize("alpha", [0, 50, 100])
def test_infinipot_v_keeps_unlike_keys_and_large_values(rotary, alpha):
    book = make_book(8)
    policy = InfiniPotV(sources=32, alpha=alpha, recent=25)
    stored = make_stored(rotary, 34)
    kept = policy.keep(book, lambda: stored).sources
    assert kept.shape == (LAYERS, HEADS, policy.low)
    recent = 7  # a quarter of the 26 that are left beside the prompt holds one frame of four
    for layer in range(LAYERS):
        for head in range(HEADS):
            keys, values = np.asarray(stored.keys)[layer, head], np.asarray(stored.values)[layer, head]
            stays = [slot for slot in range(34) if book.frames[slot] in (TEXT, recent)]
            others = [slot for slot in range(34) if slot not in stays]
            here = {book.places[slot]: keys[slot] for slot in stays if book.places[slot] >= 0}
            unlike = sorted(others, key=lambda slot: cosine(keys[slot], here[book.places[slot]]))
            chosen = unlike[: (policy.low - len(stays)) * alpha // 100]
            large = sorted(others, key=lambda slot: -np.linalg.norm(values[slot]))
            chosen += [slot for slot in large if slot not in chosen][: policy.low - len(stays) - len(chosen)]
            assert kept[layer, head].tolist() == sorted(stays + chosen)


def test_frames_and_places_stay_right_where_heads_hold_unlike_tokens(rotary):
    """Over two compactions; each key says whose it is."""
    book = make_book(8)
    identity = np.zeros((LAYERS, HEADS, PADDED), np.int32) + np.arange(PADDED)
    truth = {name: getattr(book, name).copy() for name in ("frames", "places", "ids")}
    more = make_book(12)
    for round_, policy in enumerate((InfiniPotV(sources=32), KeyDiff(sources=32))):
        count = len(book.source_slots)
        kept = policy.keep(book, lambda count=count, seed=round_: make_stored(rotary, count, seed)).sources
        book.keep(policy_kept(kept, book), np.arange(policy.low, dtype=np.int32), book.word_slots)
        identity = np.take_along_axis(identity, kept, axis=-1)
        assert len(np.unique(identity.reshape(-1, policy.low), axis=0)) > 1
        for name, values in truth.items():
            np.testing.assert_array_equal(getattr(book, name), values[..., identity], err_msg=name)
        if round_ == 0:
            add_frames(book, range(8, 10))
            new = np.broadcast_to(np.arange(34, 42), (LAYERS, HEADS, 8))
            identity = np.concatenate([identity, new], axis=-1)
            truth = {name: getattr(more, name) for name in truth}


def policy_kept(sources, book):
    from swjax.inference.memory import Kept

    kept = Kept(sources, np.arange(len(book.words)))
    book.check(kept, layers=LAYERS, heads=HEADS)
    return kept


def test_keydiff_compares_keys_without_their_rotation(rotary):
    book, plain = (
        make_book(8),
        np.asarray(np.random.default_rng(3).normal(size=(LAYERS, HEADS, PADDED, rotary.head_dim))),
    )
    ids = np.pad(book.ids, ((0, 0), (0, PADDED - 34)))
    turned = rotate(
        jnp.asarray(plain.reshape(1, -1, PADDED, rotary.head_dim).swapaxes(1, 2), jnp.float32), rotary(ids[:, None])
    )
    stored = make_stored(rotary, 34, keys=np.asarray(turned).swapaxes(1, 2).reshape(plain.shape))
    policy = KeyDiff(sources=32)
    kept = policy.keep(book, lambda: stored).sources
    for layer in range(LAYERS):
        for head in range(HEADS):
            keys = plain[layer, head, :34]
            stays = [slot for slot in range(34) if book.frames[slot] in (TEXT, 7)]
            others = [slot for slot in range(34) if slot not in stays]
            unlike = sorted(others, key=lambda slot: cosine(keys[slot], keys.mean(axis=0)))
            assert kept[layer, head].tolist() == sorted(stays + unlike[: policy.low - len(stays)])


def test_ma_lmm_drops_the_earlier_of_like_neighbors(rotary):
    """One key is that of the frame before at each of two places, at other ids; a run of three leaves its last."""
    book = make_book(8)
    plain = np.random.default_rng(3).normal(size=(LAYERS, HEADS, PADDED, rotary.head_dim))
    slot = lambda frame, place: 2 + UNITS * frame + place  # noqa: E731
    for frame, place in ((2, 0), (5, 3), (6, 3)):
        plain[:, :, slot(frame, place)] = plain[:, :, slot(frame - 1, place)] * 2
    ids = np.pad(book.ids, ((0, 0), (0, PADDED - 34)))
    turned = rotate(
        jnp.asarray(plain.reshape(1, -1, PADDED, rotary.head_dim).swapaxes(1, 2), jnp.float32), rotary(ids[:, None])
    )
    stored = make_stored(rotary, 34, keys=np.asarray(turned).swapaxes(1, 2).reshape(plain.shape))
    policy = MALMM(sources=32)
    kept = policy.keep(book, lambda: stored).sources
    assert policy.low == 28
    for layer in range(LAYERS):
        for head in range(HEADS):
            keys = plain[layer, head]
            older = range(2, 34 - UNITS)
            like = {one: cosine(keys[one], keys[one + UNITS]) for one in older}
            gone = sorted(older, key=lambda one: -like[one])[: 34 - policy.low]
            assert {slot(1, 0), slot(4, 3), slot(5, 3)} <= set(gone)
            assert kept[layer, head].tolist() == [one for one in range(34) if one not in gone]


def test_streammem_keeps_what_the_words_attend_to(rotary):
    book = make_book(8)
    mass = np.asarray(np.random.default_rng(0).random((LAYERS, HEADS, PADDED)), np.float32)
    policy = StreamMem(sources=32)
    kept = policy.keep(book, lambda: make_stored(rotary, 34, mass=mass)).sources
    assert kept.shape == (LAYERS, 1, policy.low)
    stays = [slot for slot in range(34) if book.frames[slot] in (TEXT, 7)]
    for layer in range(LAYERS):
        others = [slot for slot in np.argsort(-mass.mean(axis=1)[layer]) if slot < 34 and slot not in stays]
        assert kept[layer, 0].tolist() == sorted(stays + others[: policy.low - len(stays)])
    silent = make_book(8, words=0)
    newest = policy.keep(silent, lambda: make_stored(rotary, 34)).sources
    assert newest[0, 0].tolist() == [0, 1, *range(34 - policy.low + 2, 34)], "without a word, the newest"


@pytest.mark.parametrize("make", [StreamMem, VisionSinkBuckets])
def test_a_source_that_words_attend_to_survives(rotary, make):
    book, policy = make_book(4), make(sources=32)
    compactions, number = 0, 4
    while compactions < 50:
        add_frames(book, [number])
        number += 1
        if policy.is_full(book):
            frames = np.broadcast_to(book.frames, (LAYERS, 1, len(book.source_slots)))
            places = np.broadcast_to(book.places, frames.shape)
            mass = np.random.default_rng(number).random((LAYERS, HEADS, PADDED)) * 0.5
            mass[..., : frames.shape[-1]] += (frames == 2) & (places == 3)
            stored = make_stored(rotary, frames.shape[-1], mass=mass)
            kept = policy.keep(book, lambda stored=stored: stored)
            book.keep(kept, np.arange(policy.low, dtype=np.int32), book.word_slots)
            compactions += 1
    planted = (book.frames == 2) & (book.places == 3)
    assert planted.sum(axis=-1).tolist() == [[1]] * LAYERS
    assert np.count_nonzero((book.frames == 2) & (book.places == 1)) == 0, "others of its frame are gone"


def test_the_highest_are_found_whatever_their_values():
    scores = np.random.default_rng(0).normal(size=(3, 40)).astype(np.float32)
    scores[0, 5:9] = scores[1, :4] = np.inf
    scores[2] = np.round(scores[2])  # many are equal
    scores[1, 30:] = -np.inf
    for count in (1, 7, 25, 40):
        order = np.argsort(-scores[:, ::-1], axis=-1, kind="stable")[:, :count]
        expected = np.sort(39 - order, axis=-1)
        found = np.asarray(highest(jnp.asarray(scores), count))
        np.testing.assert_array_equal([np.flatnonzero(row) for row in found], expected)
    assert not np.asarray(highest(jnp.asarray(scores), 0)).any()


def test_peak_end_keeps_frames_whose_words_were_likely(rotary):
    """A word after each frame but the third; frames without one have that of the frame before."""
    book = make_book(8, words=0)
    for number in (0, 1, 2, 4, 5, 6, 7):
        slot = np.array([-1 - number], np.int32)
        book.add_words(slot, np.full((3, 1), number, np.int32), number, [10 + number], [10 + number], number)
    # A word that follows one after frame f, [f] of these, tells of f; of the newest frame nothing is known yet.
    nats, asked = {0: 3.0, 1: 1.0, 2: 2.0, 4: 9.0, 5: 0.5, 6: 8.0}, []

    def surprise(tokens, following, ids, slots, sources):
        asked.append((tokens.tolist(), following.tolist(), sources.tolist()))
        return jnp.array([nats[token - 10] for token in tokens.tolist()])

    policy = PeakEnd(sources=32, recent=25)
    kept = policy.keep(book, lambda: make_stored(rotary, 34, surprise=surprise)).sources
    ((tokens, following, sources),) = asked
    assert tokens[:6] == [10, 11, 12, 14, 15, 16]
    assert following[:6] == [11, 12, 14, 15, 16, 17]
    assert sources[:6] == [6, 10, 14, 22, 26, 30]
    # Beside the prompt and the newest frame, five frames of four fit: 4 and 6 go, and 3 stays for 2's word.
    assert np.unique(book.frames[kept]).tolist() == [TEXT, 0, 1, 2, 3, 5, 7]
    assert set(book.notes) == {0, 1, 2, 5}
    book.keep(policy_kept(kept, book), np.arange(len(kept), dtype=np.int32), book.word_slots)
    again = PeakEnd(sources=20).keep(book, lambda: make_stored(rotary, 26)).sources  # nothing has to be run again
    assert np.unique(book.frames[again]).tolist() == [TEXT, 1, 3, 5, 7]


def test_buckets_fill_evenly():
    frames = np.repeat(np.arange(8), 10).astype(np.int32)
    score = np.linspace(1, 0, 80)  # the oldest most
    stays = frames == 7
    how = {"keep": 40, "buckets": 7}
    by_score = spread(score, frames, stays, top=100, **how)
    assert by_score.tolist() == [*range(30), *range(70, 80)]
    even = spread(score, frames, stays, top=0, **how)
    assert np.bincount(frames[even], minlength=8).tolist() == [5, 5, 4, 4, 4, 4, 4, 10]
    assert np.isin([0, 10, 20], even).all()
    half = spread(score, frames, stays, top=50, **how)
    assert np.bincount(frames[half], minlength=8).tolist() == [10, 5, 3, 3, 3, 3, 3, 10]
    assert len(even) == len(half) == 40


def test_attention_mass_is_the_softmax_of_its_definition(model):
    """Of the last three of twelve tokens, in all layers and key heads."""
    text, length, noted = model.config.text, 12, []
    rng = np.random.default_rng(0)
    ids = jnp.asarray(rng.integers(0, text.vocab_size, (1, length)), jnp.int32)
    positions = jnp.asarray(np.tile(np.arange(length), (3, 1, 1)), jnp.int32)
    slots = jnp.arange(length, dtype=jnp.int32)[None]
    spans = KeySpans(jnp.zeros_like(slots), slots + 1)
    held = with_layers_apart(model)
    for layer in held.decoder.layers:
        layer.attention = lambda q, k, v, spans: noted.append((q, k)) or naive(q, k, v)[0]
    whole = held.decoder(held.decoder.embed(ids), positions, spans)
    expected = np.stack([np.asarray(naive(q, k, k)[1])[0, :, :, -3:].mean(axis=(1, 2)) for q, k in noted])
    cache = KeyValueCache.empty(text, batch=1, slots=16)
    _, cache = model.decoder.extend(model.decoder.embed(ids), positions, spans, cache, slots)
    last = slice(length - 3, length)
    of_last = KeySpans(spans.start[:, last], spans.stop[:, last])
    hidden, mass = model.decoder.reread(model.decoder.embed(ids[:, last]), positions[..., last], of_last, cache)
    assert mass.shape == (text.num_layers, 1, text.num_kv_heads, 16)
    np.testing.assert_allclose(mass[:, 0, :, :length], expected, atol=1e-5)
    np.testing.assert_allclose(mass.sum(axis=-1), 1, atol=1e-5)
    np.testing.assert_allclose(hidden, whole[:, last], atol=1e-4)


def naive(q, k, v):
    """Causal attention, and its weights [B, key heads, queries of a key head, L, L]."""
    batch, length, heads, width = q.shape
    q = q.reshape(batch, length, k.shape[2], -1, width)
    scores = jnp.einsum("blkgh,bskh->bkgls", q, k) / np.sqrt(width)
    weights = jnp.exp(scores) * np.tril(np.ones((length, length)))
    weights = weights / weights.sum(axis=-1, keepdims=True)
    return jnp.einsum("bkgls,bskh->blkgh", weights, v).reshape(batch, length, heads, width), weights
