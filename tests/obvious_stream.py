"""One stream, one token at a time: what engines are compared with. No batch, no parts of frames, no growing cache."""

from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers.decoders import DecodeStream

from swjax.inference import FrameSeen, StreamSettings, TokenSpoken
from swjax.inference.frames import mark_last
from swjax.inference.prompt import begin_stream
from swjax.inference.sampler import SamplingRows, mark_said, sample
from swjax.inference.track import Track
from swjax.models.cache import KeyValueCache
from swjax.streaming import KeySpans

SLOTS = 512

encode = jax.jit(lambda model, patches, grid: model.encode_video(patches, grid)[None])
choose = jax.jit(sample)


@jax.jit
def write(model, cache, token_ids, positions, spans, slots, features, last):
    hidden, cache = model.extend(token_ids, positions, spans, cache=cache, slots=slots, video_features=features)
    return model.logits(hidden[:, last]), cache


class ObviousStream:
    """As `StreamSession`, without its memory policies and its pace."""

    def __init__(self, model, tokenizer, *, question, settings=None):
        self.model, self.tokenizer, self.settings = model, tokenizer, settings or StreamSettings()
        config = model.config
        self.special, prompt = begin_stream(tokenizer, question, self.settings, vocab_size=config.text.vocab_size)
        self.stops = {self.special.im_end, *self.settings.stop_tokens}
        self.cache = KeyValueCache.empty(config.text, batch=1, slots=SLOTS, dtype=model.decoder.embedding_vd.dtype)
        self.origin = SLOTS // 4 if self.settings.design.grouped else 0
        self.track = Track(self.settings, self.special, tokens_per_second=config.vision.tokens_per_second)
        self.said = jnp.zeros((1, config.text.vocab_size), bool)
        self.decoder = DecodeStream(skip_special_tokens=True)
        self.answer, self.texts = [], []
        self.frames, self.ended = 0, False
        self.write(self.track.text(prompt))

    def see(self, frame, *, last=False) -> FrameSeen:
        self.write(self.track.before_frame())
        merge = self.model.config.vision.spatial_merge_size
        features = encode(self.model, frame.patches, np.array([[1, *frame.grid_hw]], np.int32))
        self.write(self.track.frame(*(size // merge for size in frame.grid_hw), self.frames), features)
        self.frames += 1
        if last:
            self.finish()
        else:
            self.track.reveal()
        return FrameSeen(self.frames - 1, frame.video_s, 0.0)

    def finish(self) -> None:
        if self.answer:
            self.write(self.track.before_frame())
        self.write(self.track.trailer())
        self.track.reveal()

    def speak(self, count) -> Iterator[TokenSpoken]:
        for _ in range(count):
            if self.ended:
                return
            if self.track.waiting:
                self.write(self.track.feed())
            choice = SamplingRows.of([self.settings.sampling], [len(self.answer)])
            tokens = choose(self.scores, self.said, choice)
            self.said, token = mark_said(self.said, tokens, np.ones(1, bool), choice), int(tokens[0])
            self.track.say(token)
            if token in self.stops:
                self.ended = True
                return
            self.answer.append(token)
            self.texts.append(self.decoder.step(self.tokenizer.backend_tokenizer, token) or "")
            yield TokenSpoken(len(self.answer) - 1, token, self.texts[-1], self.frames - 1, 0.0)

    def run(self, frames: Iterable) -> Iterator[FrameSeen | TokenSpoken]:
        for frame, last in mark_last(frames):
            yield self.see(frame, last=last)
            yield from self.speak(self.settings.words_after(self.frames - 1, last=last))
            if self.ended:
                return

    def text(self) -> str:
        return "".join(self.texts)

    def write(self, tokens, features=None) -> None:
        """Write tokens in the order of their slots, and keep the scores of what follows the last of them."""
        if tokens is None:
            return
        slots = tokens.slots + self.origin
        assert slots.min() >= 0, "the cache is too small"
        assert slots.max() < SLOTS, "the cache is too small"
        order = np.argsort(slots)
        spans = KeySpans(*(edge[None, order] + np.int32(self.origin) for edge in (tokens.start, tokens.stop)))
        self.scores, self.cache = write(
            self.model,
            self.cache,
            tokens.token_ids[None, order],
            tokens.positions[:, None, order],
            spans,
            slots[None, order],
            features,
            int(np.flatnonzero(order == len(order) - 1)[0]),
        )
