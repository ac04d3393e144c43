"""Random chats of several turns, videos and images, with what is known of each token written down while making them."""

from dataclasses import dataclass, field

import numpy as np
from hypothesis import strategies as st

from swjax.streaming import SpecialTokens

SPECIAL = SpecialTokens.qwen2_5_vl()
USER = 872


@dataclass(frozen=True)
class Item:
    """An image or a video in the sources of a turn."""

    grid: tuple[int, int, int]
    is_video: bool = True

    @property
    def frame_tokens(self) -> int:
        return self.grid[1] * self.grid[2] // 4


@dataclass(frozen=True)
class Turn:
    """A question with its images and videos, and an answer: None, finished, or open."""

    items: tuple[Item, ...]
    answer_length: int | None
    closed: bool = True
    question_length: int = 3

    @property
    def frames(self) -> int:
        return sum(item.grid[0] for item in self.items if item.is_video)


@dataclass
class Token:
    """What is known of a token: `frame` counts the video frames begun in its turn, `answer_index` is -3..-1 in the
    prefix of an answer."""

    id: int
    turn: int
    is_target: bool
    frame: int = 0
    answer_index: int | None = None


@dataclass
class Chat:
    turns: tuple[Turn, ...]
    tokens: list[Token] = field(default_factory=list)

    def __post_init__(self):
        for number, turn in enumerate(self.turns):
            self._sources(number, turn)
            if turn.answer_length is not None:
                self._targets(number, turn)

    def _sources(self, number: int, turn: Turn) -> None:
        frame = 0

        def add(*ids: int) -> None:
            self.tokens.extend(Token(int(token), number, False, frame) for token in ids)

        add(SPECIAL.im_start, USER, SPECIAL.newline, *range(1000, 1000 + turn.question_length))
        for item in turn.items:
            add(SPECIAL.vision_start)
            for _ in range(item.grid[0]):
                frame += item.is_video
                add(*[SPECIAL.video_pad if item.is_video else SPECIAL.image_pad] * item.frame_tokens)
            add(SPECIAL.vision_end)
        add(SPECIAL.im_end, SPECIAL.newline)

    def _targets(self, number: int, turn: Turn) -> None:
        ids = [*SPECIAL.prefix, *range(2000, 2000 + turn.answer_length)]
        ids += [SPECIAL.im_end, SPECIAL.newline] if turn.closed else []
        self.tokens.extend(Token(token, number, True, turn.frames, index - 3) for index, token in enumerate(ids))

    @property
    def ids(self) -> np.ndarray:
        return np.array([token.id for token in self.tokens], np.int32)

    def grids(self, *, is_video: bool) -> np.ndarray:
        grids = [item.grid for turn in self.turns for item in turn.items if item.is_video == is_video]
        return np.array(grids, np.int64).reshape(-1, 3)

    @property
    def merged_grids(self) -> np.ndarray:
        """Images and videos in chat order, at least one row."""
        grids = [item.grid for turn in self.turns for item in turn.items] or [(0, 0, 0)]
        return np.array(grids, np.int32)

    @property
    def num_frames(self) -> int:
        return sum(turn.frames for turn in self.turns)

    def counts_of_turn(self, counts: np.ndarray, turn: int) -> np.ndarray:
        first = sum(earlier.frames for earlier in self.turns[:turn])
        return np.asarray(counts)[first : first + self.turns[turn].frames]


def frame_of_word(counts: np.ndarray, answer_index: int) -> int:
    """The frame (0 is the turn's first) after which a word is spoken, by walking through the schedule."""
    if answer_index < 0:
        return 0
    for frame, count in enumerate(counts):
        if answer_index < count:
            return frame
        answer_index -= count
    return max(len(counts) - 1, 0)


items = st.builds(
    lambda frames, rows, columns, is_video: Item((frames if is_video else 1, 2 * rows, 2 * columns), is_video),
    st.integers(1, 4),
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
)


@st.composite
def chats(draw, max_turns: int = 3):
    """A chat, and a count of words for each of its frames that its answers are long enough for."""
    number = draw(st.integers(1, max_turns))
    turns, counts = [], []
    for index in range(number):
        inside = tuple(draw(st.lists(items, max_size=3)))
        frames = sum(item.grid[0] for item in inside if item.is_video)
        of_turn = draw(st.lists(st.integers(0, 4), min_size=frames, max_size=frames))
        length = sum(of_turn[:-1]) + draw(st.integers(0, 5))
        closed = index < number - 1 or draw(st.booleans())
        if not closed:
            length = draw(st.integers(0, length))
        answered = index < number - 1 or draw(st.booleans())
        turns.append(Turn(inside, length if answered else None, closed, draw(st.integers(0, 4))))
        counts += of_turn
    return Chat(tuple(turns)), np.array(counts, np.int32)
