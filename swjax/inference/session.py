"""A session: one question about one video that is still arriving, and an answer that is spoken meanwhile.

The session grows the layout of training from its origin: sources are written to the right, answer tokens to the left
(variants with the group mask) or behind them, so each frame is encoded once, each token computed once, and no prefix
is run again.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np
from tokenizers.decoders import DecodeStream

from swjax.inference.engine import Engine
from swjax.inference.events import FrameSeen, StreamEnded, StreamEvent, TokenSpoken
from swjax.inference.frames import Frame, check_frame, mark_last
from swjax.inference.memory import Book, StoredKeys
from swjax.inference.memory.moved import moved, stored
from swjax.inference.prompt import begin_stream
from swjax.inference.sampler import NO_TOKEN, NotFiniteError, SamplingRows
from swjax.inference.settings import USUAL_SETTINGS, StreamSettings, check_speed
from swjax.inference.track import Tokens, Track
from swjax.streaming import KeySpans

FIRST_CAPACITY = 256


class StreamSession:
    """One question about one video.

        session = StreamSession(Engine(model), tokenizer, question="What happens?")
        for event in session.run(read_frames("video.mp4", fps=2, min_pixels=3136, max_pixels=100352)):
            ...

    or by hand: `see` each frame, `speak` between them, `finish` after the last, `speak` until `ended`.

    Attributes:
        answer: ids of the answer tokens spoken so far, without the end token.
        ended: whether the end token has been reached.
        frames_encoded, tokens_computed: what the session has cost: frames through the vision tower, and tokens
            (of the prompt, of frames, of the answer) through the decoder.
    """

    def __init__(
        self,
        engine: Engine,
        tokenizer: Any,
        *,
        question: str,
        settings: StreamSettings = USUAL_SETTINGS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._engine, self._tokenizer, self.settings = engine, tokenizer, settings
        self._special, prompt = begin_stream(
            tokenizer, question, settings, vocab_size=engine.config.text.vocab_size, chat=engine.config.chat
        )
        self._stops = {self._special.im_end, *settings.stop_tokens}
        self._clock, self._began = clock, clock()
        self._origin = FIRST_CAPACITY if settings.design.grouped else 0
        self._cache = engine.new_cache(self._origin + FIRST_CAPACITY)
        self._track = Track(settings, self._special, tokens_per_second=engine.config.vision.tokens_per_second)
        self._expected: Any = None
        self._said = jnp.zeros((1, engine.config.text.vocab_size), bool)
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._texts: list[str] = []
        self._finished = False
        self.answer: list[int] = []
        self.ended = False
        self.frames_encoded = self.tokens_computed = 0
        self._write(self._track.text(prompt))

    def see(self, frame: Frame, *, last: bool = False) -> FrameSeen:
        """Take a frame in: encode it once and write its keys and values.

        Args:
            frame: the next frame.
            last: whether it ends the video; the sources that close the video are then written too.

        Raises:
            ValueError: if the frame cannot be used, or the video has been finished.
        """
        check_frame(frame, self._engine.config.vision)
        if self._finished:
            raise ValueError("the video has been finished; a new session is needed for more frames")
        self._write(self._track.before_frame())
        rows, columns = (size // self._engine.config.vision.spatial_merge_size for size in frame.grid_hw)
        features = self._engine.encode_frame(frame.patches, frame.grid_hw)
        self._write(self._track.frame(rows, columns, self.frames_encoded), features)
        self.frames_encoded += 1
        if last:
            self.finish()
        else:
            self._reveal()
        return FrameSeen(self.frames_encoded - 1, frame.video_s, self._now())

    def finish(self) -> None:
        """Say that no frame follows."""
        if self.frames_encoded == 0:
            raise ValueError("the video has no frames; see() at least one before finish()")
        if self.answer:
            self._write(self._track.before_frame())
        self._write(self._track.trailer())
        self._reveal()
        self._finished = True

    def speak(self, count: int) -> Iterator[TokenSpoken]:
        """Speak up to `count` answer tokens, fewer if the answer ends. Each sees all frames taken in so far.

        Raises:
            NotFiniteError: if the model's scores are not finite.
        """
        if self.frames_encoded == 0:
            raise ValueError("nothing has been seen yet; see() a frame before speak()")
        if not self.settings.design.speaks_while_watching and not self._finished:
            raise ValueError(f"variant {self.settings.variant} speaks after the video; call finish() first")
        for _ in range(count):
            if self.ended:
                return
            token = self._choose_next()
            self._track.say(token)
            if token in self._stops:
                self.ended = True
                return
            self.answer.append(token)
            text = self._decoder.step(self._tokenizer.backend_tokenizer, token) or ""
            self._texts.append(text)
            yield TokenSpoken(len(self.answer) - 1, token, text, self.frames_encoded - 1, self._now())

    def run(self, frames: Iterable[Frame], *, speed: float | None = None) -> Iterator[StreamEvent]:
        """Watch a whole video and speak by the schedule meanwhile: so many tokens after each frame, then the rest.

        Args:
            frames: the video's frames; one is read ahead, to know which is the last.
            speed: 1 takes frames in at the video's own pace, 2 twice as fast; None as fast as possible.
        """
        check_speed(speed)
        began = self._clock()
        for frame, last in mark_last(frames):
            if speed is not None:
                time.sleep(max(0.0, frame.video_s / speed - (self._clock() - began)))
            yield self.see(frame, last=last)
            if not last and (words := self.settings.words_after(self.frames_encoded - 1)):
                yield from self.speak(words)
            if self.ended:
                break
        yield from self.speak(self.settings.words_after(self.frames_encoded - 1, last=True))
        yield StreamEnded("end_token" if self.ended else "token_limit", self.text(), self._now())

    def text(self) -> str:
        """The answer so far, up to the last whole character."""
        return "".join(self._texts)

    def _now(self) -> float:
        return self._clock() - self._began

    def _choose_next(self) -> int:
        """The next token: what follows the words spoken so far, or in arrival order the frame behind them."""
        if self._track.waiting:
            self._write(self._track.feed())
        rows = SamplingRows.of([self.settings.sampling], [len(self.answer)])
        token, self._said = self._engine.choose(self._expected, self._said, rows)
        if (chosen := int(token)) == NO_TOKEN:
            raise NotFiniteError(len(self.answer))
        return chosen

    def _write(self, tokens: Tokens | None, features: Any = None) -> None:
        """Write tokens into the cache, and keep the scores of what follows them."""
        if tokens is None:
            return
        self._make_room(int(tokens.slots.min()), int(tokens.slots.max()))
        shift = np.int32(self._origin)
        spans = KeySpans(tokens.start + shift, tokens.stop + shift)
        self._expected, self._cache = self._engine.write(
            self._cache, tokens.token_ids, tokens.positions, spans, tokens.slots + shift, features
        )
        self.tokens_computed += len(tokens.token_ids)

    def _reveal(self) -> None:
        """Let the words see what has been written; a full memory drops what it does not keep."""
        self._track.reveal()
        if self._track.is_full:
            text = self._engine.config.text
            moves = self._track.compact(self._read, layers=text.num_layers, heads=text.num_kv_heads)
            self._cache = moved(self._cache, 0, moves, self._origin)

    def _read(self, book: Book) -> StoredKeys:
        return stored(self._cache, 0, book.source_slots + self._origin)

    def _make_room(self, lowest: int, highest: int) -> None:
        """Double the end of the cache that would run over."""
        left = max(0, -lowest - self._origin) and max(self._origin, -lowest - self._origin)
        right_capacity = self._cache.slots - self._origin
        right = max(0, highest + 1 - right_capacity) and max(right_capacity, highest + 1 - right_capacity)
        if left or right:
            self._cache = self._cache.grown(left, right)
            self._origin += left
