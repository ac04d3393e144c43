"""What happens in a stream, in order, as a session tells it."""

from dataclasses import dataclass
from typing import Literal

EndReason = Literal["end_token", "token_limit", "capacity", "closed", "fault"]
"""Why an answer ends: at its end token, at the limit on tokens after the last frame, as the engine's cache cannot hold
more of it, as the stream was given up, or at an error of its own (`Stream.fault`)."""


@dataclass(frozen=True)
class FrameSeen:
    """A frame has been taken in.

    Attributes:
        index: number of the frame, 0 for the first.
        video_s: time in the video, in seconds, at which the frame was whole.
        wall_s: seconds since the session began.
        kept: where a rule of dropping has looked at it, a text for each row of its tokens: `1` for a token that has
            stayed, `0` for one that was dropped.
    """

    index: int
    video_s: float
    wall_s: float
    kept: tuple[str, ...] | None = None


@dataclass(frozen=True)
class QuestionSeen:
    """A question that was asked in the middle of the video or after it has been taken in: words see it from now on.

    Attributes:
        index: number of the question, 1 for the first after the one before the video.
        wall_s: seconds since the session began.
        cut_off: whether the answer before it was broken off for it, or at its limit.
    """

    index: int
    wall_s: float
    cut_off: bool = False


@dataclass(frozen=True)
class TokenSpoken:
    """An answer token has been spoken.

    Attributes:
        index: number of the token in the answer, 0 for the first.
        token_id: the token.
        text: what it adds to the text; empty while a character is not whole.
        after_frame: number of the newest frame that it could see.
        wall_s: seconds since the session began.
        question: number of the question that it answers, 0 for the one before the video.
    """

    index: int
    token_id: int
    text: str
    after_frame: int
    wall_s: float
    question: int = 0


@dataclass(frozen=True)
class StreamEnded:
    """The answer has ended.

    Attributes:
        reason: why.
        text: the whole answer.
        wall_s: seconds since the session began.
    """

    reason: EndReason
    text: str
    wall_s: float


StreamEvent = FrameSeen | QuestionSeen | TokenSpoken | StreamEnded
