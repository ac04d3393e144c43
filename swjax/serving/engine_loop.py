"""The one thread that owns the engine and steps it. The event loop hands over; nothing here waits for a client."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from swjax.inference import BatchEngine, Frame, FrameSeen, Stream, StreamEnded, StreamEvent, TokenSpoken
from swjax.serving.counts import Counts
from swjax.serving.offer import Choice
from swjax.serving.outbox import Outbox
from swjax.serving.protocol import Ended, Failed, Opened, Seen, ServerMessage, Waiting, Word


@dataclass(eq=False)
class Ticket:
    """A client's stream, or its place among those that wait.

    Attributes:
        choice: what the client wants.
        outbox: where messages to it go.
        opened_s: when it got a row, by `time.monotonic`; None while it waits.
        handed: frames that its connection has handed over.
        taken: frames of these that wait no longer.
        room: set while the connection may hand over more.
    """

    choice: Choice
    outbox: Outbox
    opened_s: float | None = None
    handed: int = 0
    taken: int = 0
    room: asyncio.Event = field(default_factory=asyncio.Event)
    _stream: Stream | None = None
    _accepted: int = 0
    _noted: int = 0
    _place: int = 0
    _over: bool = False


class EngineLoop:
    """Streams of an engine for clients that come and go.

    Args:
        engine: the engine, warm.
        tokenizer: its model's tokenizer.
        counts: counts what happens.
        max_waiting: tickets that wait for a row.
        queue_frames: frames of a ticket that wait for the engine.
        loop: the event loop of the connections.
        on_failure: called in the event loop when the engine has failed; nothing works after that.
    """

    def __init__(
        self,
        engine: BatchEngine,
        tokenizer: Any,
        counts: Counts,
        *,
        max_waiting: int,
        queue_frames: int,
        loop: asyncio.AbstractEventLoop,
        on_failure: Callable[[BaseException], None],
    ):
        self._engine, self._tokenizer, self._counts = engine, tokenizer, counts
        self._max_waiting, self._queue_frames = max_waiting, queue_frames
        self._loop, self._on_failure = loop, on_failure
        # Bounded by the tickets: each has one `open`, one `close` and at most `queue_frames` frames here.
        self._commands: deque[Callable[[], None]] = deque()
        self._news = threading.Condition()
        self._stopping = False
        self._tickets: dict[Stream, Ticket] = {}
        self._waiting: deque[Ticket] = deque()
        self._thread = threading.Thread(target=self._run, name="swjax-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Give all streams up and end the thread; returns when it has ended."""
        with self._news:
            self._stopping = True
            self._news.notify()
        self._thread.join()

    @property
    def free_rows(self) -> int:
        """Rows without a stream."""
        return self._engine.free

    @property
    def waiting(self) -> int:
        """Tickets that wait for a row."""
        return len(self._waiting)

    @property
    def passes(self) -> int:
        """Passes over the weights."""
        return self._engine.passes

    # Called by connections, in the event loop.

    def open(self, ticket: Ticket) -> None:
        """Ask for a row. The ticket's outbox tells when it is there, or that none can be had."""
        ticket.room.set()
        self._post(lambda: self._open(ticket))

    def see(self, ticket: Ticket, frame: Frame, *, last: bool) -> None:
        """Hand a frame over, after `await ticket.room.wait()`."""
        ticket.handed += 1
        if ticket.handed - ticket.taken >= self._queue_frames:
            ticket.room.clear()
        self._post(lambda: self._see(ticket, frame, last))

    def finish(self, ticket: Ticket) -> None:
        """Say that no frame follows."""
        self._post(lambda: self._finish(ticket))

    def close(self, ticket: Ticket, reason: str, message: ServerMessage | None = None) -> None:
        """Give a stream or a place up; its client is told by the message."""
        self._post(lambda: self._end(ticket, reason, message))

    def _post(self, command: Callable[[], None]) -> None:
        with self._news:
            self._commands.append(command)
            self._news.notify()

    # In the engine's thread.

    def _run(self) -> None:
        try:
            while self._obey():
                for stream, event in self._engine.step():
                    # A stream may have been given up between two of its events.
                    if (ticket := self._tickets.get(stream)) is not None:
                        self._tell(ticket, event)
                for ticket in self._tickets.values():
                    self._note_room(ticket)
        except BaseException as error:
            self._loop.call_soon_threadsafe(self._on_failure, error)
        finally:
            for stream in self._tickets:
                self._engine.close(stream)

    def _obey(self) -> bool:
        """Carry out what was asked for meanwhile, or wait for it if there is nothing else to do; false at the end."""
        self._seat()
        with self._news:
            while not (self._commands or self._stopping or self._engine.has_work):
                self._news.wait()
            commands, self._commands = self._commands, deque()
            if self._stopping:
                return False
        for command in commands:
            command()
        self._seat()
        return True

    def _open(self, ticket: Ticket) -> None:
        if not self._engine.free and len(self._waiting) >= self._max_waiting:
            text = f"all rows are taken and {len(self._waiting)} clients wait for one; try again later"
            self._end(ticket, "busy", Failed("busy", text))
        elif not ticket._over:
            self._waiting.append(ticket)

    def _seat(self) -> None:
        """Give free rows to those who wait, and tell the others their places."""
        while self._waiting and self._engine.free:
            ticket = self._waiting.popleft()
            choice, began_s = ticket.choice, time.monotonic()
            try:
                stream = self._engine.open(
                    self._tokenizer,
                    question=choice.question,
                    settings=choice.settings,
                    mode=choice.mode,
                    when_behind=choice.when_behind,
                )
            except ValueError as error:
                self._end(ticket, "refused", Failed("refused", str(error)))
                continue
            ticket._stream, ticket.opened_s = stream, began_s
            self._tickets[stream] = ticket
            self._counts.add("streams_opened")
            settings = choice.settings
            self._put(
                ticket,
                Opened(
                    choice.question,
                    str(settings.variant),
                    str(choice.mode),
                    settings.wait_k,
                    settings.max_tail,
                    choice.when_behind,
                    time.monotonic() - began_s,
                ),
            )
        for place, ticket in enumerate(tuple(self._waiting), start=1):
            if ticket._place != place:
                ticket._place = place
                self._put(ticket, Waiting(place))

    def _see(self, ticket: Ticket, frame: Frame, last: bool) -> None:
        if ticket._over or ticket._stream is None:
            return
        try:
            self._engine.see(ticket._stream, frame, last=last)
        except ValueError as error:
            self._end(ticket, "bad_picture", Failed("bad_picture", str(error)))
            return
        ticket._accepted += 1

    def _finish(self, ticket: Ticket) -> None:
        if not ticket._over and ticket._stream is not None:
            self._engine.finish(ticket._stream)

    def _end(self, ticket: Ticket, reason: str, message: ServerMessage | None) -> None:
        """End a ticket, whatever it has: a row, a place, or neither."""
        if ticket._over:
            return
        ticket._over = True
        stream = ticket._stream
        if stream is None:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            self._counts.add("refused", by=reason)
            if reason == "closed":
                message = Ended("closed", "", 0.0)
        else:
            self._engine.close(stream)
            del self._tickets[stream]
            self._counts.add("streams_ended", by=reason)
            for fate in ("delayed", "dropped", "merged"):
                self._counts.add("frames_behind", getattr(stream.tally, f"frames_{fate}"), by=fate)
            if reason == "closed":
                message = _ended(stream, StreamEnded("closed", stream.text, time.monotonic() - (ticket.opened_s or 0)))
        if message is not None:
            ticket.outbox.end(message)
        self._loop.call_soon_threadsafe(ticket.room.set)

    def _tell(self, ticket: Ticket, event: StreamEvent) -> None:
        match event:
            case FrameSeen():
                self._counts.add("frames_seen")
                self._put(ticket, Seen(event.index, event.video_s, event.wall_s))
            case TokenSpoken():
                self._counts.add("words")
                self._put(ticket, Word(event.index, event.token_id, event.text, event.after_frame, event.wall_s))
            case StreamEnded():
                assert ticket._stream is not None
                self._end(ticket, event.reason, _ended(ticket._stream, event))

    def _put(self, ticket: Ticket, message: ServerMessage) -> None:
        if not ticket.outbox.put(message):
            text = "the client does not read what it is sent, so its stream was ended; read all messages as they come"
            self._end(ticket, "slow_reader", Failed("slow_reader", text))

    def _note_room(self, ticket: Ticket) -> None:
        assert ticket._stream is not None
        taken = ticket._accepted - ticket._stream.backlog
        if taken != ticket._noted:
            ticket._noted = taken
            self._loop.call_soon_threadsafe(self._make_room, ticket, taken)

    def _make_room(self, ticket: Ticket, taken: int) -> None:
        """In the event loop: note what has been taken."""
        ticket.taken = taken
        if ticket.handed - taken < self._queue_frames:
            ticket.room.set()


def _ended(stream: Stream, event: StreamEnded) -> Ended:
    return Ended(event.reason, event.text, event.wall_s, asdict(stream.tally))
