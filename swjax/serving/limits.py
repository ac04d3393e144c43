"""What a server takes, at most: of each client, and of all of them together."""

from dataclasses import dataclass, fields

CONTROL_MESSAGE_BYTES = 16_384
"""Size of a text message; questions are short."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server; all above 0.

    Attributes:
        max_clients: open sockets.
        max_waiting: clients that wait for a row of the engine.
        max_message_bytes: size of a picture's file.
        max_picture_pixels: width times height of a picture; checked before it is decoded.
        max_question_characters: length of a question.
        max_wait_k: answer tokens after each frame.
        max_tail: answer tokens after the last frame (the paper's 300).
        max_frame_shapes: numbers of patches of a frame that the vision tower is compiled for, of all clients together.
        queue_frames: frames of a stream that wait for the engine; at more, no more is read from its socket.
        outbox_messages: messages that wait to be read by a client; at more, its stream is ended.
        send_buffer_bytes: of the operating system's buffer for what a client has not read.
        max_video_s: length of a stream's video in seconds; what comes later is not taken in.
        max_wall_s: seconds in which a video must have come to its end.
        idle_s: seconds without a message from a client that is to send one.
        send_s: seconds in which a client must read what it is sent.
    """

    max_clients: int = 128
    max_waiting: int = 64
    max_message_bytes: int = 2 * 2**20
    max_picture_pixels: int = 1920 * 1080
    max_question_characters: int = 2000
    max_wait_k: int = 64
    max_tail: int = 300
    max_frame_shapes: int = 16
    queue_frames: int = 4
    outbox_messages: int = 256
    send_buffer_bytes: int = 65_536
    max_video_s: float = 120.0
    max_wall_s: float = 600.0
    idle_s: float = 30.0
    send_s: float = 10.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0 and field.name != "max_waiting":
                raise ValueError(f"{field.name} must be above 0, got {getattr(self, field.name)}")
        if self.max_waiting < 0:
            raise ValueError(f"max_waiting must be at least 0, got {self.max_waiting}")
