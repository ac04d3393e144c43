"""The one thread that owns the engine and steps it. The event loop hands over; nothing here waits for a client."""

import asyncio
import contextlib
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

from swjax.inference import BatchEngine, Frame, FrameSeen, QuestionSeen, Stream, StreamEnded, StreamEvent, TokenSpoken
from swjax.serving.counts import Counts
from swjax.serving.limits import Limits
from swjax.serving.line import in_turn
from swjax.serving.offer import Choice
from swjax.serving.outbox import Outbox
from swjax.serving.protocol import Ask, Asked, Ended, Failed, FailureCode, Opened, Seen, ServerMessage, Waiting, Word
from swjax.streaming.tokens import Tokenizer

_log = logging.getLogger(__name__)


STREAM_FAILURE = Failed(
    "stream_failure", "the stream has failed by a fault of the server's own; its log says more. Open another"
)


@dataclass(eq=False)
class Ticket:
    """A client's stream, or its place among those that wait.

    Attributes:
        choice: what the client wants.
        outbox: where messages to it go.
        owners: the address and the token that it counts for.
        opened_s: when it got a row, by `time.monotonic`; None while it waits.
        handed: frames that its connection has handed over.
        taken: frames of these that wait no longer.
        room: set while the connection may hand over more.
    """

    choice: Choice
    outbox: Outbox
    owners: tuple[str, ...] = ()
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
        limits: what it takes.
        loop: the event loop of the connections.
        on_failure: called in the event loop when the engine has failed; nothing works after that.
    """

    def __init__(
        self,
        engine: BatchEngine,
        tokenizer: Tokenizer,
        counts: Counts,
        *,
        limits: Limits,
        loop: asyncio.AbstractEventLoop,
        on_failure: Callable[[BaseException], None],
    ):
        self._engine, self._tokenizer, self._counts = engine, tokenizer, counts
        self._limits = limits
        self._loop, self._on_failure = loop, on_failure
        # Bounded by the tickets: each has one `open`, one `close` and at most `queue_frames` frames and
        # `max_questions` questions here.
        self._busy_since: float | None = None
        self._commands: deque[Callable[[], None]] = deque()
        self._news = threading.Condition()
        self._stopping = False
        self._tickets: dict[Stream, Ticket] = {}
        self._waiting: list[Ticket] = []
        self._rows: Counter[str] = Counter()
        self._thread = threading.Thread(target=self._run, name="swjax-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ask the thread to give all streams up and to end."""
        with self._news:
            self._stopping = True
            self._news.notify()

    def join(self, seconds: float) -> bool:
        """Wait until the thread has ended; false if it has not, because the engine hangs."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    @property
    def stalled_s(self) -> float:
        """Seconds since when it has been busy with one pass; 0 while there is nothing to do."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

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
        """Hand a frame over, after `await ticket.room.wait()`.

        Args:
            ticket: of the stream; its `room` is cleared while `queue_frames` wait.
            frame: the next of the video.
            last: whether it ends the video.
        """
        ticket.handed += 1
        if ticket.handed - ticket.taken >= self._limits.queue_frames:
            ticket.room.clear()
        self._post(lambda: self._see(ticket, frame, last))

    def ask(self, ticket: Ticket, message: Ask) -> None:
        """Hand a question over."""
        self._post(lambda: self._ask(ticket, message))

    def finish(self, ticket: Ticket) -> None:
        """Say that no frame follows."""
        self._post(lambda: self._finish(ticket))

    def close(self, ticket: Ticket, reason: str, message: ServerMessage | None = None) -> None:
        """Give a stream or a place up; its client is told by the message.

        Args:
            ticket: of the stream.
            reason: why, for the counts.
            message: for the client.
        """
        self._post(lambda: self._end(ticket, reason, message))

    def _post(self, command: Callable[[], None]) -> None:
        with self._news:
            self._commands.append(command)
            self._news.notify()

    # In the engine's thread.

    def _run(self) -> None:
        try:
            while self._obey():
                self._busy_since = time.monotonic()
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
                self._busy_since = None
                self._news.wait()
            self._busy_since = time.monotonic()
            commands, self._commands = self._commands, deque()
            if self._stopping:
                return False
        for command in commands:
            command()
        self._seat()
        return True

    def _open(self, ticket: Ticket) -> None:
        if ticket._over:
            return
        self._waiting.append(ticket)
        self._fill_rows()
        if len(self._waiting) > self._limits.max_waiting:
            text = f"all rows are taken and {self._limits.max_waiting} clients wait for one; try again later"
            self._end(self._line()[-1], "busy", Failed("busy", text))

    def _line(self) -> list[Ticket]:
        return in_turn(self._waiting, lambda ticket: ticket.owners, self._rows)

    def _may_have_row(self, ticket: Ticket) -> bool:
        return all(self._rows[owner] < self._limits.max_rows_each for owner in ticket.owners)

    def _seat(self) -> None:
        """Give free rows to those who wait, and tell the others their places."""
        self._fill_rows()
        for place, ticket in enumerate(self._line(), start=1):
            if ticket._place != place:
                ticket._place = place
                self._put(ticket, Waiting(place))

    def _fill_rows(self) -> None:
        while self._engine.free and (able := [ticket for ticket in self._line() if self._may_have_row(ticket)]):
            self._waiting.remove(able[0])
            self._begin(able[0])

    def _begin(self, ticket: Ticket) -> None:
        choice, began_s = ticket.choice, time.monotonic()
        with self._at_its_own_cost(ticket, "refused"):
            stream = self._engine.open(
                self._tokenizer,
                question=choice.question,
                settings=choice.settings,
                mode=choice.mode,
                when_behind=choice.when_behind,
                watches_on=choice.watches_on,
            )
            ticket._stream, ticket.opened_s = stream, began_s
            self._tickets[stream] = ticket
            self._rows.update(ticket.owners)
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

    def _see(self, ticket: Ticket, frame: Frame, last: bool) -> None:
        if ticket._over or ticket._stream is None:
            return
        with self._at_its_own_cost(ticket, "bad_picture"):
            self._engine.see(ticket._stream, frame, last=last)
            ticket._accepted += 1

    def _ask(self, ticket: Ticket, message: Ask) -> None:
        if not ticket._over and ticket._stream is not None:
            with self._at_its_own_cost(ticket, "bad_message"):
                self._engine.ask(ticket._stream, message.question, interrupt=message.interrupt)

    def _finish(self, ticket: Ticket) -> None:
        if not ticket._over and ticket._stream is not None:
            with self._at_its_own_cost(ticket, "bad_message"):
                self._engine.finish(ticket._stream)

    @contextlib.contextmanager
    def _at_its_own_cost(self, ticket: Ticket, code: FailureCode) -> Iterator[None]:
        """Whatever is raised for one stream ends that stream, and no other."""
        try:
            yield
        except ValueError as error:
            self._end(ticket, code, Failed(code, str(error)))
        except Exception as error:
            _log.error("a stream has failed", exc_info=error)
            self._end(ticket, "stream_failure", STREAM_FAILURE)

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
            self._rows.subtract(ticket.owners)
            self._rows = +self._rows
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
                self._put(ticket, Seen(event.index, event.video_s, event.wall_s, event.kept))
            case TokenSpoken():
                self._counts.add("words")
                place = event.after_frame, event.wall_s, event.question
                self._put(ticket, Word(event.index, event.token_id, event.text, *place))
            case QuestionSeen():
                self._put(ticket, Asked(event.index, event.wall_s))
            case StreamEnded():
                assert ticket._stream is not None
                reason: str = event.reason
                if reason == "fault":
                    _log.error("a stream has failed", exc_info=ticket._stream.fault)
                    self._end(ticket, "stream_failure", STREAM_FAILURE)
                else:
                    self._end(ticket, reason, _ended(ticket._stream, event))

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
        if ticket.handed - taken < self._limits.queue_frames:
            ticket.room.set()


def _ended(stream: Stream, event: StreamEnded) -> Ended:
    return Ended(event.reason, event.text, event.wall_s, asdict(stream.tally))
