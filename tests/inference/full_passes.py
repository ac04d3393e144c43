"""Random frames, and greedy decoding without a cache: every token by a forward pass over the whole layout so far."""

import dataclasses

import jax
import numpy as np

from swjax.data.chat import encode_chat
from swjax.inference import Frame
from swjax.streaming import KeySpans, SpecialTokens, build_layout, pad_layout

QUESTION = "What happens?"
GRID = (4, 6)
ROW = 384

forward = jax.jit(lambda model, *arrays, **named: model(*arrays, **named))


def make_frames(count: int, seed: int, grid: tuple[int, int] = GRID) -> list[Frame]:
    rng = np.random.default_rng(seed)
    rows, columns = grid
    return [
        Frame(rng.integers(0, 256, (rows * columns, 1176), dtype=np.uint8), grid, index + 0.5) for index in range(count)
    ]


def decode_frames(model, tokenizer, frames, settings, count) -> list[int]:
    patches = np.concatenate([frame.patches for frame in frames])
    return decode_by_full_passes(model, tokenizer, patches, (len(frames), *frames[0].grid_hw), settings, count)


def decode_by_full_passes(model, tokenizer, patches, grid_thw, settings, count) -> list[int]:
    special = SpecialTokens.from_tokenizer(tokenizer)
    grid = np.array([grid_thw])
    prompt = encode_chat(tokenizer, question=QUESTION, answer=None, video_grid_thw=grid[0])
    pixels = np.pad(patches, ((0, ROW - len(patches)), (0, 0)))[None]  # one size, so that one program serves all
    unknown = special.newline
    answer: list[int] = []
    while len(answer) < count:
        layout = build_layout(
            np.concatenate([prompt, np.array([*answer, unknown], np.int32)]),
            grid,
            variant=settings.variant,
            schedule=settings.wait_k if settings.counts is None else settings.counts[: grid_thw[0]],
            gap=settings.gap,
            second_per_grid_t=settings.second_per_grid_t,
            special_tokens=special,
        )
        # The query of the unknown token is what stands before it: in arrival order for interleave, else in the chat.
        order = np.arange(len(layout)) if settings.variant == "interleave" else layout.chat_index
        of_unknown = order[layout.chat_index == len(layout) - 1]
        last = int(np.flatnonzero(order == of_unknown - 1)[0])
        row = pad_layout(layout, ROW)
        logits = forward(
            model,
            row.token_ids[None],
            row.position_ids[:, None],
            KeySpans(row.spans.start[None], row.spans.stop[None]),
            pixel_values=pixels,
            video_grid_thw=grid[None],
        )
        token = int(np.argmax(logits[0, last]))
        if token == special.im_end:
            break
        # An answer with a mark of the chat's structure would be laid out as another chat.
        assert token not in dataclasses.astuple(special), "choose another seed"
        answer.append(token)
    return answer
