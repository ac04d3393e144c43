"""The book of a stream with questions in mid-stream is the layout of training, token by token."""

from dataclasses import dataclass, field

import jax
import numpy as np
import pytest
from full_passes import forward

from swjax.data.tokenizer import load_tokenizer
from swjax.inference.settings import StreamSettings
from swjax.inference.track import Track
from swjax.models.cache import KeyValueCache
from swjax.streaming import (
    DESIGNS,
    KeySpans,
    SourceFrame,
    SourceText,
    SpecialTokens,
    Spoken,
    Variant,
    build_conversation,
    pad_layout,
    read_events,
)

SPECIAL = SpecialTokens.from_tokenizer(load_tokenizer(None))
PROMPT = (SPECIAL.im_start, 40, 41, SPECIAL.vision_start)
WATCHING = [variant for variant in Variant if DESIGNS[variant].speaks_while_watching]


@dataclass
class Stream:
    """A track driven as an engine drives it, with all that it has been told written down as events."""

    track: Track
    ahead: bool
    events: list = field(default_factory=list)
    written: dict = field(default_factory=dict)
    writes: list = field(default_factory=list)
    laid: list = field(default_factory=list)
    frames: int = 0

    def write(self, tokens) -> None:
        self.writes.append(tokens)
        for slot, token, position, start, stop in zip(
            tokens.slots.tolist(), tokens.token_ids, tokens.positions.T, tokens.start, tokens.stop, strict=True
        ):
            assert slot not in self.written, "a slot is written once"
            self.written[slot] = (int(token), position.tolist(), int(start), int(stop))

    def source(self, event) -> None:
        """Lay out a source; it is seen once it is revealed."""
        if (before := self.track.before_frame()) is not None:
            self.write(before)
        if isinstance(event, SourceFrame):
            self.write(self.track.frame(event.rows, event.columns, self.frames))
            self.frames += 1
        else:
            self.write(self.track.text(np.array(event.token_ids, np.int32), is_item=True))
        self.laid.append(event)

    def reveal(self) -> None:
        self.track.reveal()
        self.events += self.laid
        self.laid = []

    def said(self, *tokens: int) -> None:
        self.events.append(Spoken(tokens))

    def word(self, token: int | None) -> None:
        """Speak a word, or end the answer: what waits is fed, since its successor is wanted now."""
        self.write(self.track.feed())
        if token is None:
            self.write(self.track.end_answer(SPECIAL.im_end))
            self.said(SPECIAL.im_end, SPECIAL.newline)
        else:
            self.track.say(token)
            self.said(token)


def run(variant, rng, *, ahead: bool, sizes: int = 3) -> tuple[Stream, StreamSettings]:
    """A random stream: after each item some words, ends of answers, answers broken off, and others begun."""
    settings = StreamSettings(variant=variant, gap=50, second_per_grid_t=0.75)
    stream = Stream(Track(settings, SPECIAL, tokens_per_second=2.0), ahead)
    stream.write(stream.track.text(np.array(PROMPT, np.int32)))
    stream.events.append(SourceText(PROMPT, is_item=False))
    size = (1, 1)
    sources = [SourceFrame(*size)]
    for number in range(int(rng.integers(1, 8))):
        if rng.random() < 0.5:
            size = tuple(rng.integers(1, sizes, 2).tolist())
            sources.append(SourceText((SPECIAL.vision_end, *range(60, 61 + number), SPECIAL.vision_start)))
        else:
            sources.append(SourceFrame(*size))
    word, is_open = 20, True
    stream.source(sources.pop(0))
    stream.reveal()
    stream.said(*SPECIAL.prefix)
    while True:
        if ahead and sources:
            stream.source(sources.pop(0))
        for _ in range(int(rng.integers(0, 6))):
            kind = rng.random()
            if not is_open or kind < 0.2:
                stream.write(stream.track.begin_answer())
                stream.said(*SPECIAL.prefix)
                is_open = True
            elif kind < 0.4:
                stream.word(None)
                is_open = False
            else:
                stream.word(word)
                word = 20 + (word + 1) % 30
        if not ahead and sources:
            stream.source(sources.pop(0))
        if not stream.laid:
            break
        stream.reveal()
    stream.write(stream.track.feed(max(0, len(stream.track.waiting) - 1)))
    return stream, settings


@pytest.mark.parametrize(
    ("variant", "ahead"),
    [(variant, ahead) for variant in WATCHING for ahead in (False, True) if DESIGNS[variant].grouped or not ahead],
)
def test_a_stream_with_questions_is_the_layout_of_training(variant, ahead):
    """In arrival order nothing is laid out ahead, while words are spoken."""
    kinds = set()
    for seed in range(60):
        stream, settings = run(variant, np.random.default_rng(seed), ahead=ahead)
        layout = build_conversation(
            stream.events,
            variant=variant,
            gap=settings.gap,
            second_per_grid_t=settings.second_per_grid_t,
            special_tokens=SPECIAL,
        )
        origin = int(layout.is_target.sum()) if DESIGNS[variant].grouped else 0
        last = int(np.argmax(layout.chat_index))  # waits for its successor, unless a source has followed
        unwritten = {last - origin} if stream.track.waiting else set()
        assert set(stream.written) == set(range(-origin, len(layout) - origin)) - unwritten
        for slot in (slot + origin for slot in stream.written):
            token, position, start, stop = stream.written[slot - origin]
            assert token == layout.token_ids[slot]
            assert position == layout.position_ids[:, slot].tolist(), (seed, slot)
            assert (start + origin, stop + origin) == (layout.spans.start[slot], layout.spans.stop[slot]), (seed, slot)
        kinds |= {type(event) for event in stream.events}
        kinds |= {"end" for event in stream.events if isinstance(event, Spoken) and SPECIAL.im_end in event.token_ids}
    assert kinds == {SourceText, SourceFrame, Spoken, "end"}


ROW, PATCHES, PIECES, AT_ONCE = 128, 64, 8, 16


@jax.jit
def extend(model, tokens, positions, start, stop, slots, cache, features):
    spans = KeySpans(start, stop)
    hidden, cache = model.extend(tokens, positions, spans, cache=cache, slots=slots, video_features=features)
    return model.logits(hidden), cache


encode = jax.jit(lambda model, patches, grid: model.encode_video(patches, grid))


@pytest.mark.parametrize("variant", ["interleave", "ospe", "gipe"])
def test_a_model_that_goes_by_the_book_says_what_full_passes_say(model, variant):
    """Each token computed once, against a cache, gives the logits of one pass over the whole conversation."""
    grouped, compared = DESIGNS[variant].grouped, 0
    for seed in (1, 3):
        rng = np.random.default_rng(seed)
        stream, settings = run(variant, rng, ahead=grouped, sizes=2)
        read = read_events(stream.events, SPECIAL)
        layout = pad_layout(
            build_conversation(
                stream.events,
                variant=variant,
                gap=settings.gap,
                second_per_grid_t=settings.second_per_grid_t,
                special_tokens=SPECIAL,
            ),
            ROW,
        )
        patches = rng.integers(0, 256, (int(read.video_grid_thw.prod(axis=1).sum()), 1176), dtype=np.uint8)
        expected = forward(
            model,
            layout.token_ids[None],
            layout.position_ids[:, None],
            KeySpans(layout.spans.start[None], layout.spans.stop[None]),
            pixel_values=np.pad(patches, ((0, PATCHES - len(patches)), (0, 0)))[None],
            video_grid_thw=np.pad(read.video_grid_thw, ((0, PIECES - len(read.video_grid_thw)), (0, 0)))[None],
        )[0]
        cache = KeyValueCache.empty(model.config.text, batch=1, slots=2 * ROW)
        origin = int(layout.is_target.sum()) if grouped else 0
        frames, seen = (event for event in stream.events if isinstance(event, SourceFrame)), 0
        for tokens in stream.writes:
            features = np.zeros((AT_ONCE, model.config.text.hidden_size), np.float32)
            if (tokens.token_ids == SPECIAL.video_pad).any():
                frame = next(frames)
                size = (1, 2 * frame.rows, 2 * frame.columns)
                of_frame, seen = patches[seen : seen + np.prod(size)], seen + np.prod(size)
                features[: len(tokens.token_ids)] = encode(model, of_frame, np.array([size]))
            order, missing = np.argsort(tokens.slots), AT_ONCE - len(tokens.slots)
            slots = np.pad(tokens.slots[order] + ROW, (0, missing), constant_values=2 * ROW)
            logits, cache = extend(
                model,
                np.pad(tokens.token_ids[order], (0, missing))[None],
                np.pad(tokens.positions[:, order], ((0, 0), (0, missing)))[:, None],
                np.pad(tokens.start[order] + ROW, (0, missing))[None],
                np.pad(tokens.stop[order] + ROW, (0, missing), constant_values=1)[None],
                slots[None],
                cache,
                features[None],
            )
            found = np.asarray(logits)[0, : len(order)]
            np.testing.assert_allclose(found, expected[tokens.slots[order] + origin], atol=2e-3, rtol=1e-4)
            compared += len(order)
        assert seen == len(patches)
    assert compared > 60
