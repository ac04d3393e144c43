"""The messages between a client and the server. One socket is one stream; docs/serving.md shows a whole one.

Text messages are JSON objects with a `type`; a binary message is a picture, as a JPEG, PNG or WebP file. Pictures come
at the model's rate; `pictures_per_frame` of them make a frame.
"""

import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from swjax.inference.settings import WhenBehind
from swjax.plain import Json

PROTOCOL = 1
"""Version of the messages."""

FailureCode = Literal[
    "bad_message",
    "bad_picture",
    "too_big",
    "refused",
    "busy",
    "idle",
    "time_limit",
    "slow_reader",
    "stream_failure",
    "engine_failure",
    "shutdown",
]
"""Why a stream is ended before its answer is."""

CLOSE_CODES: dict[FailureCode, int] = {
    "bad_message": 1008,
    "bad_picture": 1003,
    "too_big": 1009,
    "refused": 1008,
    "busy": 1013,
    "idle": 1008,
    "time_limit": 1008,
    "slow_reader": 1008,
    "stream_failure": 1011,
    "engine_failure": 1011,
    "shutdown": 1001,
}
"""The WebSocket close code that follows a failure (RFC 6455, section 7.4; 1013 is registered with IANA)."""


class ProtocolError(ValueError):
    """A client has sent what it may not; the message names the field and the mend."""

    def __init__(self, code: FailureCode, message: str):
        super().__init__(message)
        self.code = code


# From the client.


@dataclass(frozen=True)
class Open:
    """Begin a stream. What is left out is as the model was trained, greedy, and as fast as frames are taken in.

    Attributes:
        question: what is asked about the video.
        variant: position design.
        mode: what happens at a time.
        wait_k: answer tokens after each frame.
        gap: first id of the answer in GIPE.
        max_tail: limit on answer tokens after the last frame.
        when_behind: for pictures that come by a clock: what becomes of frames that cannot be taken in in time.
        temperature, top_k, top_p, repetition_penalty, seed: how the next token is chosen.
        watches_on: whether the stream is watched until the video ends, for more questions, when all is answered.
    """

    question: str | None = None
    variant: str | None = None
    mode: str | None = None
    wait_k: int | None = None
    gap: int | None = None
    max_tail: int | None = None
    when_behind: WhenBehind | None = None
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    seed: int = 0
    watches_on: bool = False


@dataclass(frozen=True)
class Ask:
    """Another question about the video, behind the pictures that have come.

    Attributes:
        question: what is asked.
        interrupt: whether the answer under way is broken off; else this one follows it.
    """

    question: str
    interrupt: bool = False


@dataclass(frozen=True)
class Last:
    """The frame whose pictures come next, or whose first has come, is the video's last: no frame follows it."""


@dataclass(frozen=True)
class Finish:
    """No picture follows. A picture without its second one is dropped, as at the end of a file."""


@dataclass(frozen=True)
class Close:
    """The client gives its stream up."""


ClientMessage = Open | Ask | Last | Finish | Close


# From the server.


@dataclass(frozen=True)
class Hello:
    """The first message: what the server offers.

    Attributes:
        model: its name.
        fps: pictures of a video's second.
        pictures_per_frame: pictures that make a frame; words follow frames.
        min_pixels, max_pixels: area to which pictures are resized.
        modes: the modes that each variant has here.
        defaults: what `open` stands for where it leaves something out.
        limits: what the server takes.
        protocol: version of the messages.
    """

    model: str
    fps: float
    pictures_per_frame: int
    min_pixels: int
    max_pixels: int
    modes: dict[str, list[str]]
    defaults: Json
    limits: dict[str, float]
    protocol: int = PROTOCOL


@dataclass(frozen=True)
class Waiting:
    """All rows are taken; `place` is 1 for the client that is next."""

    place: int


@dataclass(frozen=True)
class Opened:
    """The stream has a row: pictures may come now. Times count from when it got it, which is `wall_s` ago."""

    question: str
    variant: str
    mode: str
    wait_k: int
    max_tail: int
    when_behind: WhenBehind | None
    wall_s: float


@dataclass(frozen=True)
class Seen:
    """A frame has been taken in (`swjax.inference.FrameSeen`)."""

    index: int
    video_s: float
    wall_s: float
    kept: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Asked:
    """Words see question `index` from now on (`swjax.inference.QuestionSeen`): 1 for the first `ask`."""

    index: int
    wall_s: float


@dataclass(frozen=True)
class Word:
    """An answer token has been spoken (`swjax.inference.TokenSpoken`); `question` 0 is that of `open`."""

    index: int
    token_id: int
    text: str
    after_frame: int
    wall_s: float
    question: int = 0


@dataclass(frozen=True)
class Limited:
    """The video has reached the limit on its length and was finished there; further pictures are not looked at."""

    message: str


@dataclass(frozen=True)
class Ended:
    """The answer has ended (`swjax.inference.StreamEnded`); `tally` says what it has cost. The socket closes."""

    reason: str
    text: str
    wall_s: float
    tally: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Failed:
    """The stream has ended early; `message` says why and what to do. The socket closes."""

    code: FailureCode
    message: str


ServerMessage = Hello | Waiting | Opened | Seen | Asked | Word | Limited | Ended | Failed

_SERVER_TYPES: dict[type, str] = {
    Hello: "hello",
    Waiting: "waiting",
    Opened: "opened",
    Seen: "seen",
    Asked: "asked",
    Word: "word",
    Limited: "limited",
    Ended: "ended",
    Failed: "error",
}


def encode(message: ServerMessage) -> str:
    """A message as it is sent."""
    return json.dumps({"type": _SERVER_TYPES[type(message)], **asdict(message)})
