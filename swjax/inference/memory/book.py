"""What the slots of a stream hold, as a memory policy is shown it, and what of them is to stay."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Bool, Float, Int, Int32

from swjax.inference.memory.host import HostBlocks
from swjax.models.rotary import Rotary

TEXT = -1
"""In the place of a frame's number: a token of the prompt, or of what closes the video. Question n has `TEXT - n`."""

Indices = Int32[np.ndarray, "n"] | Int32[np.ndarray, "L K n"]
"""Indices of tokens: the same for all layers and key heads, or for each (an axis of 1 stands for all of them)."""


def _none() -> Int32[np.ndarray, "0"]:
    return np.zeros(0, np.int32)


@dataclass(frozen=True)
class StoredKeys:
    """Keys, rotated, and values of a stream's sources, in the order of the book, on the device.

    In layers and heads that kept other sources than the first, they are those of `Book.frames`. What is not asked for
    is not copied.

    Attributes:
        take: copies of the keys and values of sources: from their indices.
        length: how long keys and values are with what pads them, which does not change (P).
        count: how many sources there are (S).
        rotary: by which ids turn keys.
        attention: attention mass on each source (padded likewise), of tokens that are run again as they were: their
            ids, position ids and slots. Softmax over sources and words, mean over tokens and over the queries of a key
            head. Float32.
        surprise: how unlikely, in nats, the words were that followed some, which are run again with as many of the
            sources as they saw: ids, ids of those that followed, position ids, slots, and the number of sources.
        queries: of a text by itself, the mean of its tokens' queries without rotation, and their sum over the query
            heads of a key head: from its ids. Float32.
    """

    take: Callable[[Int[np.ndarray, "n"]], tuple[Float[Array, "layers K n H"], Float[Array, "layers K n H"]]]
    length: int
    count: int
    rotary: Rotary
    attention: Callable[
        [Int32[np.ndarray, "n"], Int32[np.ndarray, "3 n"], Int32[np.ndarray, "n"]], Float[Array, "layers K P"]
    ]
    surprise: Callable[
        [
            Int32[np.ndarray, "n"],
            Int32[np.ndarray, "n"],
            Int32[np.ndarray, "3 n"],
            Int32[np.ndarray, "n"],
            Int32[np.ndarray, "n"],
        ],
        Float[Array, "n"],
    ]
    queries: Callable[[Int32[np.ndarray, "n"]], Float[Array, "layers K H"]]

    @functools.cached_property
    def _padded(self) -> tuple[Float[Array, "layers K P H"], Float[Array, "layers K P H"]]:
        return self.take(np.minimum(np.arange(self.length), self.count - 1))

    @property
    def padded_keys(self) -> Float[Array, "layers K P H"]:
        """Keys, with more behind them up to a length that does not change, for what is compiled."""
        return self._padded[0]

    @property
    def padded_values(self) -> Float[Array, "layers K P H"]:
        """Values, likewise."""
        return self._padded[1]

    @property
    def keys(self) -> Float[Array, "layers K S H"]:
        """Keys of the sources alone."""
        return self.padded_keys[:, :, : self.count]

    @property
    def values(self) -> Float[Array, "layers K S H"]:
        """Values of the sources alone."""
        return self.padded_values[:, :, : self.count]


class Fetched(NamedTuple):
    """Sources that have come back from the host, in each layer others, to stand together among those that stay.

    Attributes:
        at: how many of those that stay stand before them.
        keys, values: as they were stored, on the host; with more behind them up to a length that does not change.
        stored_ids: by which the keys are turned.
        ids: by which they are to be turned.
        frames, places: as in `Book`.
    """

    at: int
    keys: Float[np.ndarray, "L K P H"]
    values: Float[np.ndarray, "L K P H"]
    stored_ids: Int32[np.ndarray, "3 L 1 n"]
    ids: Int32[np.ndarray, "3 L 1 n"]
    frames: Int32[np.ndarray, "L 1 n"]
    places: Int32[np.ndarray, "L 1 n"]

    @property
    def length(self) -> int:
        """How many they are, in each layer."""
        return int(self.frames.shape[-1])


class Kept(NamedTuple):
    """What stays.

    Attributes:
        sources: indices of the sources that stay, ascending; as many in each layer and key head.
        words: indices of the words that stay, ascending; the same in all layers.
        fetched: what comes back beside them, if anything does.
    """

    sources: Indices
    words: Int32[np.ndarray, "m"]
    fetched: Fetched | None = None


class Bounds(NamedTuple):
    """The most that a policy lets a stream store before it is full.

    Attributes:
        sources: tokens among the sources, the prompt included.
        words: tokens among the words, those before the answer included.
        kept: to how many sources it goes back when it is full; what must stay, and a frame, must fit into them.
    """

    sources: int
    words: int
    kept: int


@runtime_checkable
class Memory(Protocol):
    """A policy: which slots of a stream stay. Frozen and hashable; it keeps no state of a stream.

    One that bounds what is stored has a third method, `bounds(frame_units, prompt) -> Bounds`, of the tokens of the
    largest frame and of the prompt: rows are then made as long as they will ever be before the first pass.
    """

    def is_full(self, book: "Book") -> bool:
        """Whether something is to be dropped now. Asked after each frame; cheap."""

    def keep(self, book: "Book", read: Callable[[], StoredKeys]) -> Kept:
        """What stays; called when `is_full`, once all that is in the book has been computed.

        Args:
            book: what is stored.
            read: gives keys and values of the sources, if they are needed.
        """


@dataclass
class Book:
    """What a stream has stored.

    Attributes:
        frames: for each source, in order of arrival, the number of its frame; `TEXT` for the prompt and what closes
            the video, `TEXT - n` for question n. With axes of layers and key heads where a policy has kept unlike
            sources in these.
        words: for each stored word its number: below 0 for the assistant prefix, 0 for the first of the answer.
        source_slots, word_slots: where they are, from the stream's origin.
        ids, word_ids: temporal, height and width ids of sources (with the axes of `frames`) and words.
        places: for each source its place in its frame, by rows; `TEXT` for text. With the axes of `frames`.
        word_tokens: for each stored word its id.
        said: the same, but below 0 where it was not chosen, like the assistant prefix.
        word_after: for each stored word the number of the newest frame that it saw, below 0 for none.
        notes: what a policy has noted of frames, by their numbers.
        open_question: number of the oldest question that is not answered; 0 for the one in the prompt.
        questions: the words of questions that are not answered, by their numbers.
        asking: number of the question that is being answered, or was last.
        prompt: tokens of the prompt, which are the first sources.
        is_joint: whether ids of sources and words are counted in one.
        set_back: by how many ids sources have been set back, or forward, in all.
        fetched: first, and one behind the last, of the sources that have been fetched from the host.
        host: what a policy has stored on the host, if it does.
    """

    frames: Int32[np.ndarray, "*L_K S"] = field(default_factory=_none)
    words: Int32[np.ndarray, "W"] = field(default_factory=_none)
    source_slots: Int32[np.ndarray, "S"] = field(default_factory=_none)
    word_slots: Int32[np.ndarray, "W"] = field(default_factory=_none)
    ids: Int32[np.ndarray, "3 *L_K S"] = field(default_factory=lambda: np.zeros((3, 0), np.int32))
    word_ids: Int32[np.ndarray, "3 W"] = field(default_factory=lambda: np.zeros((3, 0), np.int32))
    places: Int32[np.ndarray, "*L_K S"] = field(default_factory=_none)
    word_tokens: Int32[np.ndarray, "W"] = field(default_factory=_none)
    said: Int32[np.ndarray, "W"] = field(default_factory=_none)
    word_after: Int32[np.ndarray, "W"] = field(default_factory=_none)
    notes: dict[int, float] = field(default_factory=dict)
    open_question: int = 0
    questions: dict[int, Int32[np.ndarray, "n"]] = field(default_factory=dict)
    asking: int = 0
    prompt: int = 0
    is_joint: bool = False
    set_back: Int32[np.ndarray, "3"] = field(default_factory=lambda: np.zeros(3, np.int32))
    fetched: tuple[int, int] = (0, 0)
    host: HostBlocks | None = None

    @property
    def pinned(self) -> Bool[np.ndarray, "*L_K S"]:
        """Which sources must stay: the prompt, what closes the video, and questions that are not answered."""
        waits = self.frames <= TEXT - self.open_question if self.open_question else False
        return (self.frames == TEXT) | waits

    def first(self, sources: int) -> "Book":
        """A copy with the first of the sources alone."""
        cut = {name: getattr(self, name)[..., :sources] for name in ("frames", "places", "ids", "source_slots")}
        return replace(self, **cut)

    def add_sources(
        self,
        slots: Int32[np.ndarray, "n"],
        ids: Int32[np.ndarray, "3 n"],
        frame: int,
        places: Int32[np.ndarray, "n"] | None = None,
    ) -> None:
        """Sources are stored behind the others: of a frame, with their places in it, or text.

        Args:
            slots: where they are stored.
            ids: temporal, height and width.
            frame: its number, `TEXT` or `TEXT - n` (`Book.frames`).
            places: in the frame; None for text.
        """
        axes = self.frames.shape[:-1]
        places = np.full(len(slots), TEXT, np.int32) if places is None else places
        self.frames = np.concatenate([self.frames, np.full((*axes, len(slots)), frame, np.int32)], axis=-1)
        self.places = np.concatenate([self.places, np.broadcast_to(places, (*axes, len(slots)))], axis=-1)
        ids = np.broadcast_to(ids.reshape(3, *(1,) * len(axes), -1), (3, *axes, len(slots)))
        self.ids = np.concatenate([self.ids, ids], axis=-1)
        self.source_slots = np.concatenate([self.source_slots, slots])

    def add_words(
        self,
        slots: Int32[np.ndarray, "n"],
        ids: Int32[np.ndarray, "3 n"],
        first: int,
        token_ids: Sequence[int],
        said: Sequence[int],
        after: int = TEXT,
    ) -> None:
        """Words are stored; `first` is the number of the first, and `after` of the newest frame that they see.

        Args:
            slots: where they are stored.
            ids: temporal, height and width.
            first: number of the first of them.
            token_ids: of the words.
            said: the same, below 0 where a token was not chosen.
            after: number of the newest frame that they see.
        """
        self.word_after = np.concatenate([self.word_after, np.full(len(slots), after, np.int32)])
        self.word_tokens = np.concatenate([self.word_tokens, np.array(token_ids, np.int32)])
        self.word_ids = np.concatenate([self.word_ids, ids], axis=-1)
        self.words = np.concatenate([self.words, first + np.arange(len(slots), dtype=np.int32)])
        self.said = np.concatenate([self.said, np.array(said, np.int32)])
        self.word_slots = np.concatenate([self.word_slots, slots])

    def check(self, kept: Kept, *, layers: int, heads: int) -> None:
        """Refuse what cannot be kept.

        Args:
            kept: what a policy gave; what it has fetched is not checked.
            layers, heads: of the model's cache; `heads` are key heads.

        Raises:
            ValueError: if indices do not ascend, are not those of stored tokens, or have other axes than those of
                layers and key heads.
        """
        shapes = {(), *((ls, ks) for ls in (1, layers) for ks in (1, heads))}
        for name, given, count, axes in (
            ("sources", kept.sources, len(self.source_slots), shapes),
            ("words", kept.words, len(self.word_slots), {()}),
        ):
            indices = np.asarray(given)
            if not np.issubdtype(indices.dtype, np.integer) or indices.ndim == 0 or indices.shape[:-1] not in axes:
                raise ValueError(
                    f"the memory policy must keep {name} by whole numbers [n]"
                    f"{f' or [{layers}, {heads}, n]' if len(axes) > 1 else ''}, got {indices.dtype}{[*indices.shape]}"
                )
            if indices.size and (indices.min() < 0 or indices.max() >= count or (np.diff(indices) <= 0).any()):
                raise ValueError(f"the memory policy must keep {name} by ascending indices below {count}")

    def keep(self, kept: Kept, source_slots: Int32[np.ndarray, "n"], word_slots: Int32[np.ndarray, "m"]) -> "Moves":
        """Drop all else; what stays, and what has been fetched, gets new slots.

        Args:
            kept: what stays, which `check` has not refused.
            source_slots: new slots of the sources, in order, those that have been fetched among them; counted, like
                all slots of a book, from the stream's origin.
            word_slots: new slots of the words that stay, in order.

        Returns:
            Which slot goes where.
        """
        fetched, first = kept.fetched, self.fetched
        own = np.ones(len(source_slots), bool)
        if fetched is not None:
            own[fetched.at : fetched.at + fetched.length] = False
        sources = np.asarray(kept.sources, np.int32)
        words = np.asarray(kept.words, np.int32)
        old_sources, old_words = self.source_slots[sources], self.word_slots[words]
        axes = (1,) * (2 - (sources.ndim - 1)) + sources.shape[:-1]
        old_sources = old_sources.reshape(*axes, np.count_nonzero(own))
        old_words = np.broadcast_to(old_words, (*axes, len(word_slots)))
        index = sources if sources.ndim == self.frames.ndim == 1 else sources.reshape(*axes, -1)
        self.frames, self.places = (_taken(one, index) for one in (self.frames, self.places))
        self.ids = np.stack([_taken(one, index) for one in self.ids])
        self.words, self.said, self.word_ids = self.words[words], self.said[words], self.word_ids[:, words]
        self.word_tokens, self.word_after = self.word_tokens[words], self.word_after[words]
        self.source_slots, self.word_slots = source_slots, word_slots
        one = sources.reshape(-1, sources.shape[-1])[0]
        self.fetched = int(np.searchsorted(one, first[0])), int(np.searchsorted(one, first[1]))
        if fetched is not None:
            self.fetched = fetched.at, fetched.at + fetched.length
            self.frames = _with(self.frames, fetched.frames, fetched.at)
            self.places = _with(self.places, fetched.places, fetched.at)
            pairs = zip(self.ids, fetched.ids, strict=True)
            self.ids = np.stack([_with(mine, new, fetched.at) for mine, new in pairs])
        return Moves(
            source=np.concatenate([old_words, old_sources], axis=-1),
            target=np.concatenate([word_slots, source_slots[own]]),
        )


def incoming(book: Book, fetched: Fetched) -> "Incoming":
    """What has been fetched on its way to the slots that a book has for it, once ids are what they are to be."""
    turn = book.ids[:, :, 0, slice(*book.fetched)] - fetched.stored_ids[:, :, 0]
    padding = ((0, 0), (0, 0), (0, fetched.keys.shape[2] - fetched.length))
    turned = np.pad(turn, padding).astype(np.int32) if turn.any() else None
    return Incoming(int(book.source_slots[fetched.at]), fetched.length, fetched.keys, fetched.values, turned)


def _taken(values: Int32[np.ndarray, "*L_K S"], index: Indices) -> Int32[np.ndarray, "... n"]:
    """Values at indices, where either may have axes of layers and key heads."""
    if index.ndim == 1:
        return values[index]
    return np.take_along_axis(values.reshape((1,) * (3 - values.ndim) + values.shape), index, axis=-1)


def _with(values: Int32[np.ndarray, "*L_K S"], new: Int32[np.ndarray, "L 1 n"], at: int) -> Int32[np.ndarray, "L K _"]:
    """Values with n others among them, which may differ from layer to layer."""
    values = values.reshape((1,) * (3 - values.ndim) + values.shape)
    values = np.broadcast_to(values, (len(new), *values.shape[1:]))
    new = np.broadcast_to(new, (*values.shape[:2], new.shape[-1]))
    return np.concatenate([values[..., :at], new, values[..., at:]], axis=-1)


class Sinks(NamedTuple):
    """Keys that are turned again and again, from a copy of what they were at first: rounding does not add up.

    Attributes:
        first: first slot, counted from the stream's origin.
        slots: how many they are.
        turn: by how many temporal, height and width ids, in all.
        are_words: whether they are words.
    """

    first: int
    slots: int
    turn: Int32[np.ndarray, "3"]
    are_words: bool


class Incoming(NamedTuple):
    """Keys and values that come from the host.

    Attributes:
        first: slot of the first, counted from the stream's origin.
        length: how many they are.
        keys, values: as in `Fetched`.
        turn: by how many ids keys are turned; None for none.
    """

    first: int
    length: int
    keys: Float[np.ndarray, "L K P H"]
    values: Float[np.ndarray, "L K P H"]
    turn: Int32[np.ndarray, "3 L P"] | None


class Moves(NamedTuple):
    """Keys and values that go to other slots, counted from the stream's origin.

    Attributes:
        source: from where, in each layer and key head (an axis of 1 stands for all of them).
        target: to where.
        turn: by how many temporal, height and width ids keys are turned meanwhile; None for none.
        sinks: keys that are turned after they have been moved.
        incoming: what comes from the host, after all have been moved.
    """

    source: Int32[np.ndarray, "L K n"]
    target: Int32[np.ndarray, "n"]
    turn: Int32[np.ndarray, "3 n"] | None = None
    sinks: tuple[Sinks, ...] = ()
    incoming: Incoming | None = None

    def new_slot(self, slot: int) -> int:
        """Where what is in a slot goes, which stays in all layers and key heads."""
        return int(self.target[np.flatnonzero(self.source[0, 0] == slot)[0]])

    def of_sources(self) -> "Moves":
        """Those to the right of the origin: in grouped designs the sources."""
        right = self.target >= 0
        turn = None if self.turn is None else self.turn[:, right]
        sinks = tuple(one for one in self.sinks if one.first >= 0)
        return Moves(self.source[..., right], self.target[right], turn, sinks, self.incoming)
