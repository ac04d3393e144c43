"""An example for `swjax layout` in which questions arrive while the video runs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int

from swjax.commands.layout_chat import FIRST_OF_QUESTION, FIRST_WORD, QUESTION, Chat, example_chat
from swjax.streaming import (
    Answer,
    Event,
    Geometry,
    Source,
    SourceFrame,
    SourceText,
    StreamLayout,
    Variant,
    build_conversation,
    read_events,
    schedule_answers,
)


@dataclass(frozen=True)
class AskedChat(Chat):
    """A chat whose questions arrive between frames.

    Attributes:
        events: what happens, in the order of time; `input_ids` has all sources before all targets.
    """

    events: tuple[Event, ...] = ()

    def lay_out(self, variant: Variant, *, gap: int, fps: float) -> StreamLayout:
        """What a position design makes of it.

        Args:
            variant: the design.
            gap: first id of the answers in GIPE.
            fps: pictures a second; two of them make a frame.
        """
        seconds = Geometry.temporal_patch_size / fps
        return build_conversation(
            self.events, variant=variant, gap=gap, second_per_grid_t=seconds, special_tokens=self.special
        )


def asked_chat(
    grid: tuple[int, int, int], words: int, asked_after: Sequence[int], schedule: Int[np.ndarray, "items"]
) -> AskedChat:
    """A short question about a video, others that arrive after some of its frames, and an answer to each.

    Args:
        grid: frames, and rows and columns of a frame in tokens.
        words: length of each answer.
        asked_after: numbers of frames, 0 for the first, ascending.
        schedule: tokens spoken after each frame and each question, in the order in which they arrive.
    """
    frames, rows, columns = grid
    usual = example_chat(grid, words)
    special = usual.special
    user, *asked = range(FIRST_OF_QUESTION, FIRST_OF_QUESTION + len(QUESTION))
    prompt = (special.im_start, user, special.newline, *asked, special.vision_start)
    sources: list[Source] = [SourceText(prompt, is_item=False)]
    items = []
    for frame in range(frames):
        sources.append(SourceFrame(rows, columns))
        for _ in range(list(asked_after).count(frame)):
            sources.append(SourceText((special.vision_end, *asked, special.vision_start)))
            items.append(len(sources) - 2)
    sources.append(SourceText(special.trailer, is_item=False))
    answers = [
        Answer(tuple(range(FIRST_WORD + number * words, FIRST_WORD + (number + 1) * words)), after)
        for number, after in enumerate([0, *items])
    ]
    events = schedule_answers(sources, answers, schedule.tolist(), special)
    read = read_events(events, special)
    return AskedChat(read.token_ids, read.video_grid_thw, usual.image_grid_thw, special, usual.text_of, events)
