"""A session: one question about one video that is still arriving, and an answer that is spoken meanwhile.

The session grows the layout of training from its origin: sources are written to the right, answer tokens to the left
(variants with the group mask) or behind them, so each frame is encoded once, each token computed once, and no prefix
is run again.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32
from tokenizers.decoders import DecodeStream

from swjax.data.chat import encode_chat
from swjax.inference.engine import Engine
from swjax.inference.events import FrameSeen, StreamEnded, StreamEvent, TokenSpoken
from swjax.inference.frames import Frame
from swjax.streaming import (
    DESIGNS,
    KeySpans,
    SpecialTokens,
    Storage,
    StoredCounts,
    Variant,
    first_positions,
    place_frame,
    place_text,
    place_words,
    store_sources,
    store_targets,
)

FIRST_CAPACITY = 256


@dataclass(frozen=True)
class StreamSettings:
    """How a session streams; use what the model was trained with.

    Attributes:
        variant: position design.
        wait_k: answer tokens after each frame.
        gap: first id of the answer in GIPE.
        second_per_grid_t: seconds from one frame to the next.
        max_tail: limit on answer tokens after the last frame (the paper's 300).
    """

    variant: Variant = Variant.GDPE
    wait_k: int = 3
    gap: int = 10_000
    second_per_grid_t: float = 1.0
    max_tail: int = 300

    def __post_init__(self) -> None:
        object.__setattr__(self, "variant", Variant(self.variant))
        if self.wait_k < 1 or self.max_tail < 1 or self.gap < 0:
            raise ValueError(f"wait_k and max_tail must be at least 1 and gap at least 0, got {self}")


class _Waiting(NamedTuple):
    """Tokens that have been spoken but not fed to the model yet."""

    token_ids: Int32[np.ndarray, "N"]
    positions: Int32[np.ndarray, "3 N"]


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
        settings: StreamSettings = StreamSettings(),
        clock: Callable[[], float] = time.monotonic,
    ):
        self._engine, self._tokenizer, self.settings = engine, tokenizer, settings
        self._design = DESIGNS[settings.variant]
        self._special = SpecialTokens.from_tokenizer(tokenizer)
        self._clock, self._began = clock, clock()
        self._origin = FIRST_CAPACITY if self._design.grouped else 0
        self._cache = engine.new_cache(self._origin + FIRST_CAPACITY)
        self._positions = first_positions(self._design, settings.gap)
        self._stored = StoredCounts(0, 0)
        self._waiting: _Waiting | None = None
        self._expected: Any = None
        self._decoder = DecodeStream(skip_special_tokens=True)
        self._texts: list[str] = []
        self._finished = False
        self.answer: list[int] = []
        self.ended = False
        self.frames_encoded = self.tokens_computed = 0
        prompt = self._prompt(question)
        self._write_text_sources(prompt)

    def see(self, frame: Frame, *, last: bool = False) -> FrameSeen:
        """Take a frame in: encode it once and write its keys and values.

        Args:
            frame: the next frame.
            last: whether it ends the video; the sources that close the video are then written too.
        """
        if self._finished:
            raise ValueError("the video has been finished; a new session is needed for more frames")
        if self.frames_encoded and self._design.storage is Storage.ARRIVAL:
            self._store_waiting()
        rows, columns = (size // self._engine.config.vision.spatial_merge_size for size in frame.grid_hw)
        stride = self.settings.second_per_grid_t * self._engine.config.vision.tokens_per_second
        self._positions, positions = place_frame(
            self._design, self._positions, self.frames_encoded, rows, columns, stride
        )
        features = self._engine.encode_frame(frame.patches, frame.grid_hw)
        self._write_sources(np.full(rows * columns, self._special.video_pad, np.int32), positions, features)
        self.frames_encoded += 1
        if last:
            self.finish()
        return FrameSeen(self.frames_encoded - 1, frame.video_s, self._now())

    def finish(self) -> None:
        """Say that no frame follows."""
        if self.frames_encoded == 0:
            raise ValueError("the video has no frames; see() at least one before finish()")
        if self._waiting is not None and self._design.storage is Storage.ARRIVAL:
            self._store_waiting()
        self._write_text_sources(np.array(self._special.trailer, np.int32))
        self._finished = True

    def speak(self, count: int) -> Iterator[TokenSpoken]:
        """Speak up to `count` answer tokens, fewer if the answer ends. Each sees all frames taken in so far."""
        if self.frames_encoded == 0:
            raise ValueError("nothing has been seen yet; see() a frame before speak()")
        if not self._design.speaks_while_watching and not self._finished:
            raise ValueError(f"variant {self.settings.variant} speaks after the video; call finish() first")
        for _ in range(count):
            if self.ended:
                return
            token = self._predict_next()
            self._wait(token)
            if token == self._special.im_end:
                self.ended = True
                return
            self.answer.append(token)
            text = self._decoder.step(self._tokenizer.backend_tokenizer, token) or ""
            self._texts.append(text)
            yield TokenSpoken(len(self.answer) - 1, token, text, self.frames_encoded - 1, self._now())

    def run(self, frames: Iterable[Frame], *, speed: float | None = None) -> Iterator[StreamEvent]:
        """Watch a whole video and speak by the schedule meanwhile: wait_k tokens after each frame, then the rest.

        Args:
            frames: the video's frames; one is read ahead, to know which is the last.
            speed: 1 takes frames in at the video's own pace, 2 twice as fast; None as fast as possible.
        """
        began = self._clock()
        for frame, last in _mark_last(frames):
            if speed is not None:
                time.sleep(max(0.0, frame.video_s / speed - (self._clock() - began)))
            yield self.see(frame, last=last)
            if self._design.speaks_while_watching and not last:
                yield from self.speak(self.settings.wait_k)
            if self.ended:
                break
        yield from self.speak(self.settings.max_tail)
        yield StreamEnded("end_token" if self.ended else "token_limit", self.text(), self._now())

    def text(self) -> str:
        """The answer so far, up to the last whole character."""
        return "".join(self._texts)

    def _now(self) -> float:
        return self._clock() - self._began

    def _prompt(self, question: str) -> Int32[np.ndarray, "S"]:
        """The sources before the first frame."""
        ids = encode_chat(self._tokenizer, question=question, answer=None, video_grid_thw=(1, 2, 2))
        (video,) = np.nonzero(ids == self._special.video_pad)
        behind = (*self._special.trailer, *self._special.prefix)
        if tuple(ids[video[0] + 1 :]) != behind:
            raise ValueError(
                "the chat template does not end a question with its video and the assistant prefix "
                f"({self._tokenizer.decode(ids[video[0] + 1 :])!r}); a Qwen2.5-VL tokenizer is needed"
            )
        return ids[: video[0]]

    def _write_text_sources(self, token_ids: Int32[np.ndarray, "S"]) -> None:
        self._positions, positions = place_text(self._design, self._positions, len(token_ids))
        self._write_sources(token_ids, positions, None)

    def _write_sources(self, token_ids: np.ndarray, positions: np.ndarray, features: Any) -> None:
        self._stored, slots, spans = store_sources(self._design, self._stored, len(token_ids))
        self._expected = self._write(token_ids, positions, spans, slots, features)

    def _wait(self, *token_ids: int) -> None:
        """Give spoken tokens their ids; they are fed when their successor is wanted.

        Fed earlier, they would have seen fewer frames than in training.
        """
        self._positions, positions = place_words(self._design, self._positions, len(token_ids))
        self._waiting = _Waiting(np.array(token_ids, np.int32), positions)

    def _store_waiting(self) -> None:
        """Feed what was spoken last, at first the assistant prefix."""
        if not self._stored.targets and self._waiting is None:
            self._wait(*self._special.prefix)
        if self._waiting is not None:
            token_ids, positions = self._waiting
            self._stored, slots, spans = store_targets(self._design, self._stored, len(token_ids))
            self._expected = self._write(token_ids, positions, spans, slots, None)
            self._waiting = None

    def _predict_next(self) -> int:
        """The next token: what follows the words spoken so far, or in arrival order the frame behind them."""
        self._store_waiting()
        return int(self._expected)

    def _write(
        self,
        token_ids: np.ndarray,
        positions: np.ndarray,
        spans: KeySpans,
        slots: np.ndarray,
        features: Any,
    ) -> Any:
        """Write tokens into the cache; spans and slots count from the origin, to the left below zero.

        Returns:
            The token that the model expects next.
        """
        self._make_room(int(slots.min()), int(slots.max()))
        shift = np.int32(self._origin)
        spans = KeySpans(spans.start + shift, spans.stop + shift)
        token, self._cache = self._engine.write(self._cache, token_ids, positions, spans, slots + shift, features)
        self.tokens_computed += len(token_ids)
        return token

    def _make_room(self, lowest: int, highest: int) -> None:
        """Double the end of the cache that would run over."""
        left = max(0, -lowest - self._origin) and max(self._origin, -lowest - self._origin)
        right_capacity = self._cache.slots - self._origin
        right = max(0, highest + 1 - right_capacity) and max(right_capacity, highest + 1 - right_capacity)
        if left or right:
            self._cache = self._cache.grown(left, right)
            self._origin += left


def _mark_last(frames: Iterable[Frame]) -> Iterator[tuple[Frame, bool]]:
    """Each frame and whether it is the last; a frame is handed on as soon as the next one, or the end, is known."""
    waiting: Sequence[Frame] = ()
    for frame in frames:
        for earlier in waiting:
            yield earlier, False
        waiting = (frame,)
    for frame in waiting:
        yield frame, True
