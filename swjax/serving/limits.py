"""What a server takes, at most: of each client, and of all of them together."""

from dataclasses import dataclass, fields

from swjax.streaming.spec import StreamSpec

CONTROL_MESSAGE_BYTES = 32_768
"""Size of a text message: room for the longest question with every character escaped as a surrogate pair."""


@dataclass(frozen=True)
class Limits:
    """Limits of a server; all above 0 and finite, but for max_waiting, which may be 0.

    Attributes:
        max_clients: open sockets.
        max_clients_each: open sockets of one address or token.
        max_rows_each: rows of the engine that one address or token has at a time.
        max_waiting: clients that wait for a row of the engine.
        max_connections: connections that are no sockets: requests for the page, for counts, or for nothing.
        request_s: seconds in which such a connection must have become a socket, or ends.
        keep_alive_s: seconds without a request after which it ends.
        max_message_bytes: size of a picture's file.
        max_picture_pixels: width times height of a picture; checked before it is decoded.
        max_question_characters: length of a question.
        max_questions: questions of a stream beside the one that it is opened with.
        max_wait_k: answer tokens after each frame.
        max_tail: answer tokens after the last frame (the paper's 300).
        chatter_burst, chatter_per_s: text messages and pings of a socket, at once and in the long run.
        decode_s: seconds that the pictures of a frame may take to decode.
        queue_frames: frames of a stream that wait for the engine; at more, no more is read from its socket.
        outbox_messages: messages that wait to be read by a client; at more, its stream is ended.
        send_buffer_bytes: of the operating system's buffer for what a client has not read.
        max_video_s: length of a stream's video in seconds; what comes later is not taken in.
        max_wall_s: seconds in which a video must have come to its end.
        idle_s: seconds in which a stream sends no picture and is told no word.
        send_s: seconds in which a client must read what it is sent.
        stall_s: seconds without a pass, while there is work, after which the engine counts as hung.
        stop_s: seconds that clients and engine have to come to an end when the server is stopped.
    """

    max_clients: int = 128
    max_clients_each: int = 64
    max_rows_each: int = 64
    max_waiting: int = 64
    max_connections: int = 64
    request_s: float = 30.0
    keep_alive_s: float = 5.0
    max_message_bytes: int = 2 * 2**20
    max_picture_pixels: int = 1920 * 1080
    max_question_characters: int = 2000
    max_questions: int = 16
    max_wait_k: int = 64
    max_tail: int = StreamSpec.max_tail
    chatter_burst: int = 64
    chatter_per_s: float = 1.0
    decode_s: float = 2.0
    queue_frames: int = 4
    outbox_messages: int = 256
    send_buffer_bytes: int = 65_536
    max_video_s: float = 120.0
    max_wall_s: float = 600.0
    idle_s: float = 30.0
    send_s: float = 10.0
    stall_s: float = 30.0
    stop_s: float = 1.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "max_waiting" and value == 0:
                continue
            if not 0 < value < float("inf"):
                raise ValueError(f"{field.name} must be above 0 and finite, got {value}")
