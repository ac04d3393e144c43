"""A stream with a memory, replayed without a cache: one forward pass over all that it has seen and said, with a mask
that hides from each query what had been dropped before it was computed."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
from apart import with_layers_apart
from full_passes import QUESTION

from swjax.data.chat import encode_chat
from swjax.inference.memory import TEXT, Book
from swjax.streaming import KeySpans, SpecialTokens, build_layout, pad_layout

BEFORE = -1
ROW = 256


def replayed_scores(model, tokenizer, frames, settings, counts, answer, kept=None) -> np.ndarray:
    """Scores [words, vocabulary] by which the words of an answer would be chosen.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        frames: all of them, of one size.
        settings: the stream's; its memory says what is dropped.
        counts: words after each frame.
        answer: the words that were spoken.
        kept: bool[frames, tokens of a frame], those that are seen at all; None for all.
    """
    special = SpecialTokens.from_tokenizer(tokenizer)
    grid = np.array([(len(frames), *frames[0].grid_hw)])
    prompt = encode_chat(tokenizer, question=QUESTION, answer=None, video_grid_thw=grid[0])
    layout = build_layout(
        np.concatenate([prompt, np.array(answer, np.int32)]),
        grid,
        variant=settings.variant,
        schedule=counts,
        gap=settings.gap,
        special_tokens=special,
    )
    config = model.config.text
    masks = np.zeros((config.num_layers, config.num_kv_heads, ROW, ROW), bool)
    masks[..., : len(layout), : len(layout)] = visible(
        layout, settings, len(frames), len(prompt), special, axes=masks.shape[:2]
    )
    dropped = [] if kept is None else np.flatnonzero(layout.token_ids == special.video_pad)[~kept.ravel()]
    masks[..., dropped] = False
    row = pad_layout(layout, ROW)
    patches = np.concatenate([frame.patches for frame in frames])
    scores = forward(model)(row.token_ids[None], row.position_ids[:, None], masks, patches[None], grid[None])
    order = np.arange(len(layout)) if settings.variant == "interleave" else layout.chat_index
    words = [order[layout.chat_index == len(prompt) + index] for index in range(len(answer))]
    # The query of a word is what stands before it, of what has not been dropped.
    is_query = ~np.isin(np.arange(len(layout)), dropped)
    befores = [max(order[is_query & (order < word)]) for word in words]
    return np.asarray(scores)[0, [int(np.flatnonzero(order == before)[0]) for before in befores]]


def visible(layout, settings, frames, prompt, special, *, axes) -> np.ndarray:
    """Who sees whom: bool [layers, key heads, queries, keys].

    What is dropped after a frame is dropped once the first word after it has been computed, which in grouped designs is
    that of the token that waited.
    """
    memory = settings.memory
    slots = np.arange(len(layout))
    seen = (slots >= layout.spans.start[:, None]) & (slots < layout.spans.stop[:, None])
    is_word = layout.chat_index >= prompt - len(special.prefix)
    is_frame = layout.token_ids == special.video_pad
    frame = np.full(len(layout), BEFORE)
    frame[is_frame] = np.repeat(np.arange(frames), np.count_nonzero(is_frame) // frames)
    frame[~is_word & (layout.chat_index > layout.chat_index[is_frame].max())] = frames - 1
    # A word is computed after the newest frame that it sees, and a source with its frame.
    after = np.where(is_word, np.where(seen, frame, BEFORE).max(axis=1), frame)
    in_chat = np.argsort(layout.chat_index)
    sources, words = in_chat[~is_word[in_chat]], in_chat[is_word[in_chat]]
    number = layout.chat_index - prompt

    there = np.ones((*axes, len(layout), len(layout)), bool)
    held, said = (
        np.broadcast_to(sources[frame[sources] == BEFORE], (*axes, np.count_nonzero(frame[sources] < 0))),
        words[:0],
    )
    first = words[:0]
    for index in range(frames):
        come = sources[frame[sources] == index]
        held = np.concatenate([held, np.broadcast_to(come, (*axes, len(come)))], axis=-1)
        new = words[after[words] == index - 1]
        said = np.concatenate([said, new[~np.isin(new, first)]])
        labels = np.where(is_frame, frame, TEXT)[held]
        alike = (held == held[0, 0]).all()
        book = make_book(labels[0, 0] if alike else labels, number[said], held[0, 0], said)
        first = words[:0]
        if not memory.is_full(book):
            continue
        first = words[after[words] == index][: settings.design.grouped]
        said = np.concatenate([said, first])
        kept = memory.keep(make_book(book.frames, number[said], held[0, 0], said), no_keys)
        held = np.take_along_axis(held, np.broadcast_to(kept.sources, (*axes, np.shape(kept.sources)[-1])), axis=-1)
        if kept.fetched is not None:
            at, of, place = kept.fetched.at, kept.fetched.frames, kept.fetched.places
            back = np.stack([np.flatnonzero(is_frame & (frame == one)) for one in range(frames)])[of, place]
            held = np.concatenate(
                [held[..., :at], np.broadcast_to(back, (*axes, back.shape[-1])), held[..., at:]], axis=-1
            )
        said = said[kept.words]
        later = np.where(is_word, (after >= index) & ~np.isin(slots, first), after > index)
        gone = np.broadcast_to(~later, (*axes, len(layout))).copy()
        np.put_along_axis(gone, held, False, axis=-1)
        gone[..., said] = False
        there = np.where(later[:, None], ~gone[..., None, :], there)  # what comes back is seen again
    return there & seen


def make_book(frames, words, source_slots, word_slots):
    """A book of which policies need these alone."""
    nothing = np.zeros(len(words), np.int32)
    return Book(
        frames=frames.astype(np.int32),
        words=words.astype(np.int32),
        source_slots=source_slots.astype(np.int32),
        word_slots=word_slots.astype(np.int32),
        ids=np.zeros((3, *frames.shape), np.int32),
        places=np.zeros(frames.shape, np.int32),
        word_ids=np.zeros((3, len(words)), np.int32),
        word_tokens=nothing,
        said=nothing,
        word_after=nothing,
    )


def no_keys():
    """Policies under test decide without keys and values."""
    raise AssertionError("nothing is computed here")


class Noting:
    """A policy that notes what it keeps, and says the same again when it is replayed, without keys."""

    def __init__(self, policy):
        self.policy, self.kept, self.told = policy, [], 0

    def is_full(self, book):
        return self.policy.is_full(book)

    def keep(self, book, read):
        if read is no_keys:
            self.told += 1
            return self.kept[self.told - 1]
        self.kept.append(self.policy.keep(book, read))
        return self.kept[-1]


def forward(model):
    """The model with a mask for each layer and key head in the place of spans."""
    if id(model) not in _FORWARDS:
        held, masks = with_layers_apart(model), []
        held.config = replace(held.config, image_token_id=-1)  # there are no images, and a random model may say one
        for index, layer in enumerate(held.decoder.layers):
            layer.attention = lambda q, k, v, spans, index=index: masked_attention(q, k, v, masks[-1][index])

        def run(token_ids, position_ids, mask, patches, grids):
            masks.append(mask)
            unread = KeySpans(jnp.zeros_like(token_ids), jnp.zeros_like(token_ids))
            return held(token_ids, position_ids, unread, pixel_values=patches, video_grid_thw=grids)

        _FORWARDS[id(model)] = jax.jit(run)
    return _FORWARDS[id(model)]


_FORWARDS: dict = {}


def masked_attention(q, k, v, mask):
    """Attention by its definition; mask [key heads, queries, keys]."""
    group = q.shape[2] // k.shape[2]
    keys, values, mask = (jnp.repeat(x, group, axis) for x, axis in ((k, 2), (v, 2), (mask, 0)))
    scores = jnp.einsum("btnh,bsnh->bnts", q, keys) / np.sqrt(q.shape[-1])
    weights = jax.nn.softmax(jnp.where(mask, scores, -1e30), axis=-1)
    return jnp.einsum("bnts,bsnh->btnh", weights, values)
