"""A lane: weights, cache and frame features on one device (or mesh), and the compiled pass that advances all rows.

A row of a pass holds the tokens of one stream, whatever they are: parts of a frame, the word that was spoken last, the
prompt. All of them go through the weights together; their spans say what each may see. Rows are padded to one of a few
sizes, so that nothing recompiles.
"""

import os
from collections.abc import Collection, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding
from jaxtyping import Array, Float, Int, Int32, UInt8

from swjax.inference import rows
from swjax.inference.memory import Moves, StoredKeys
from swjax.inference.memory.book import Sinks
from swjax.inference.memory.moved import inserted, moved, stored
from swjax.inference.packing import RowTokens, pack
from swjax.inference.place import CACHE, INBOX, SAID, key_head_copies, put
from swjax.inference.programs import lower, programs_of
from swjax.inference.room import padded_size
from swjax.inference.rows import Piece
from swjax.inference.sampler import GREEDY, SamplingRows
from swjax.inference.track import Tokens
from swjax.inference.verifying import Refit
from swjax.inference.weights import Weights
from swjax.models.cache import KeyValueCache

MAX_FRAME_SIZES = 8
"""Numbers of patches that the vision tower is compiled for in lanes that are not warmed up, beside the largest."""

QUESTION_SIZE = 64
"""Tokens to which a question that is run by itself is padded at least, so that most take one program."""

SINKS_SIZE = 128
"""The same for the prompt, and for the first words, where these are turned."""

_COMPILER = ThreadPoolExecutor(1, "swjax-compiler")


class Lane:
    """What one device holds and computes for all rows.

    Attributes:
        left: slots to the left of the origin in rows of grouped designs.
        slots: slots of every row.
        passes: passes that have been run.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        rows: int,
        left: int,
        right: int,
        frame_units: int,
        inbox_frames: int,
    ):
        self._compiled, self._where = weights.compiled(programs_of), weights.where
        self._config, self._rows = weights.config, rows
        self.left = left
        self._decoder, self._visual = weights.decoder.parameters, weights.visual.parameters
        text, dtype = self._config.text, self._decoder["embedding_vd"].dtype
        copies = key_head_copies(self._where, self._config)
        cache = KeyValueCache.empty(text, batch=rows, slots=left + right, dtype=dtype, copies=copies)
        self._cache = put(self._where, cache, CACHE)
        self._said = put(self._where, jnp.zeros((rows, text.vocab_size), bool), SAID)
        self._sinks: dict[tuple[int, bool], tuple[Array, Array]] = {}
        self._frame_sizes: set[int] = set()
        self._sizes_open = MAX_FRAME_SIZES
        self._prepared: dict[int, Future[None]] = {left + right: Future()}
        self._prepared[left + right].set_result(None)
        self._passes_run: set[tuple[int, bool]] = set()
        self.passes = 0
        self.make_inbox(frame_units, inbox_frames)

    def make_inbox(self, frame_units: int, inbox_frames: int) -> None:
        """Take frames up to a size from now on; what the inbox of features has is forgotten.

        Args:
            frame_units: largest number of merged patches of a frame.
            inbox_frames: frames of a row that may wait encoded.
        """
        self.frame_units, self.inbox_frames = frame_units, inbox_frames
        self._largest_frame = frame_units * self._config.vision.spatial_merge_size**2
        shape = (self._rows, inbox_frames, frame_units, self._config.text.hidden_size)
        self._inbox = put(self._where, jnp.zeros(shape, self._cache.keys.dtype), INBOX)

    @property
    def slots(self) -> int:
        """Slots of every row."""
        return self._cache.slots

    @property
    def layers(self) -> int:
        """Layers of the cache."""
        return self._config.text.num_layers

    @property
    def heads(self) -> int:
        """Key heads of the cache."""
        return self._config.text.num_kv_heads

    def grow(self, left: int, right: int) -> None:
        """Add slots to every row."""
        self._cache = put(self._where, self._cache.grown(left, right), CACHE)
        self.left += left

    def prepare(self, slots: int) -> Future[None]:
        """Begin to compile the passes that have been run for rows of so many slots, beside those that run now.

        Args:
            slots: of every row.

        Returns:
            What is done when all are compiled: at once for rows as they are.
        """
        if slots not in self._prepared:
            self._prepared[slots] = _COMPILER.submit(self._compile, slots, sorted(self._passes_run))
        return self._prepared[slots]

    def _compile(self, slots: int, passes: Collection[tuple[int, bool]]) -> None:
        for size, with_head in passes:
            lower(
                self._compiled,
                with_head,
                self._decoder,
                self._config,
                rows=self._rows,
                size=size,
                slots=slots,
                inbox=(self.inbox_frames, self.frame_units),
                dtype=self._cache.keys.dtype,
                where=self._where,
            ).compile()

    def forget(self, row: int) -> None:
        """Make a row ready for a new stream.

        What another stream has stored there is hidden from this one, and yet it goes: attention multiplies hidden
        values by zero, and zero times a NaN is a NaN.
        """
        self._sinks = {key: piece for key, piece in self._sinks.items() if key[0] != row}
        cache, said = rows.clean(self._cache, self._said, np.int32(row))
        self._cache, self._said = put(self._where, cache, CACHE), put(self._where, said, SAID)

    def warm_up(self, grid_hw: tuple[int, int] | None, passes: Collection[tuple[int, bool]]) -> None:
        """Compile what streams need, at the same time where there are cores for it, and run it once.

        Args:
            grid_hw: patch rows and columns of frames, for which and for the largest ones the vision tower is compiled;
                others are padded to these from now on. None where nothing is perceived.
            passes: size, and whether words are chosen.
        """
        frames: list[UInt8[np.ndarray, "P C"]] = []
        if grid_hw is not None:
            self._sizes_open = 0
            self._frame_sizes |= {grid_hw[0] * grid_hw[1], self._largest_frame}
            frames = [np.zeros((size, self._config.geometry.patch_dim), np.uint8) for size in self._frame_sizes]
        nobody = SamplingRows.of([GREEDY] * self._rows, [0] * self._rows)
        grid, zero = np.array([[1, *(grid_hw or (0, 0))]], np.int32), np.int32(0)
        state = self._cache, self._said, self._inbox
        lowered = [self._compiled.encode.lower(self._visual, self._inbox, x, grid, zero, zero) for x in frames]
        for size, speaks in passes:
            packed = pack({}, size, [0] if speaks else [], nobody, rows=self._rows, slots=self.slots)
            lowered.append(self._compiled.advance.lower(speaks, self._decoder, *state, packed))
        with ThreadPoolExecutor(os.cpu_count(), "swjax-compiler") as pool:
            list(pool.map(jax.stages.Lowered.compile, lowered))
        for patches in frames:
            self.encode(0, 0, patches, (int(grid[0, 1]), int(grid[0, 2])))
        self.forget(0)
        for size, speaks in passes:
            jax.block_until_ready(self.advance({}, size, [0] if speaks else [], nobody))

    def _frame_size(self, patches: int) -> int:
        """The number of patches that a frame is padded to: its own while few are compiled, or the next larger that is.

        Each is compiled once, which takes a while in which all rows wait.
        """
        if patches not in self._frame_sizes and len(self._frame_sizes) >= self._sizes_open:
            patches = min((size for size in self._frame_sizes if size >= patches), default=self._largest_frame)
        self._frame_sizes.add(patches)
        return patches

    def encode(self, row: int, cell: int, patches: UInt8[np.ndarray, "P C"], grid_hw: tuple[int, int]) -> None:
        """Encode a frame into a cell of a row's inbox; returns before it is done.

        Args:
            row: of the inbox.
            cell: of the row; what it held is written over.
            patches: of the frame, in the processor's order.
            grid_hw: patch rows and columns.
        """
        padding = self._frame_size(len(patches)) - len(patches)
        patches = np.pad(patches, ((0, padding), (0, 0))) if padding else patches
        grid = np.array([[1, *grid_hw]], np.int32)
        self._inbox = self._compiled.encode(self._visual, self._inbox, patches, grid, np.int32(row), np.int32(cell))

    def features(self, row: int, cell: int) -> Float[Array, "U D"]:
        """A copy of what a cell of a row's inbox holds; returns before it is there."""
        return rows.features(self._inbox, np.int32(row), np.int32(cell))

    def advance(
        self,
        tokens: Mapping[int, RowTokens],
        size: int,
        speaking: Collection[int],
        choices: SamplingRows,
    ) -> Int32[Array, "B"]:
        """Write tokens of some rows in one pass over the weights; returns before it is done.

        Args:
            tokens: what to write, by row.
            size: length to which rows are padded.
            speaking: the rows in which the token that follows the last one is to be chosen.
            choices: how each row chooses.

        Returns:
            The tokens chosen; those of other rows mean nothing.
        """
        packed = pack(tokens, size, speaking, choices, rows=self._rows, slots=self.slots)
        self._passes_run.add((size, bool(speaking)))
        chosen, self._cache, self._said = self._compiled.advance(
            bool(speaking), self._decoder, self._cache, self._said, self._inbox, packed
        )
        self.passes += 1
        return chosen

    def take(self, row: int, first: int, count: int) -> Piece:
        """A copy of the keys and values of `count` slots of a row.

        Args:
            row: of the cache.
            first: slot of the row.
            count: of slots.
        """
        return rows.take(self._cache, np.int32(row), np.int32(first), count)

    def put(self, row: int, first: int, piece: Piece) -> None:
        """Store keys and values that another lane has computed; they are moved to this lane's devices first.

        Args:
            row: of the cache.
            first: slot of the row.
            piece: keys and values.
        """
        cache = rows.store(self._cache, np.int32(row), np.int32(first), self.fetch(piece))
        self._cache = put(self._where, cache, CACHE)

    def move(self, row: int, moves: Moves, origin: int) -> None:
        """Move keys and values of a row, all at once; returns before it is done.

        Args:
            row: the row.
            moves: which slot goes where, counted from the origin.
            origin: slot of this lane's cache at which the stream's first source is stored.
        """
        rotary = self._config.text.rotary
        self._cache = put(self._where, moved(self._cache, row, moves, origin, rotary), CACHE)
        for sinks in moves.sinks:
            self._turn(row, sinks, origin)
        if (new := moves.incoming) is not None:
            where = np.int32(row), np.int32(origin + new.first), np.int32(new.length)
            piece = self.fetch(Piece(cast(Array, new.keys), cast(Array, new.values)))
            self._cache = put(self._where, inserted(self._cache, *where, tuple(piece), new.turn, rotary), CACHE)

    def _turn(self, row: int, sinks: Sinks, origin: int) -> None:
        """Store sinks as they were at first, turned. They are padded, so that one program serves all."""
        if not sinks.turn.any():
            return
        first, key = origin + sinks.first, (row, sinks.are_words)
        size = min(max(SINKS_SIZE, padded_size(sinks.slots)), self.slots)
        if key not in self._sinks:
            slots = np.minimum(first + np.arange(size, dtype=np.int32), self.slots - 1)
            self._sinks[key] = stored(self._cache, np.int32(row), slots)
        where = np.int32(row), np.int32(first), np.int32(sinks.slots)
        turn = np.repeat(sinks.turn.astype(np.int32)[:, None, None], size, axis=2)
        cache = inserted(self._cache, *where, self._sinks[key], turn, self._config.text.rotary)
        self._cache = put(self._where, cache, CACHE)

    def remember(self, row: int, words: Int32[np.ndarray, "W"]) -> None:
        """Forget of what has been said in a row all but some words, so that a repetition penalty is for these alone."""
        padded = np.full(self.slots, self._config.text.vocab_size, np.int32)
        padded[: len(words)] = words
        self._said = put(self._where, rows.remember(self._said, np.int32(row), padded), SAID)

    def read(self, row: int, slots: Int32[np.ndarray, "S"], origin: int) -> StoredKeys:
        """A copy of the keys and values of some slots of a row, and what may be asked about them.

        Args:
            row: the row.
            slots: of the sources, counted from the origin.
            origin: slot at which the stream's first source is stored.
        """
        padded = np.full(self.slots, origin + slots[-1], np.int32)
        padded[: len(slots)] = slots + origin

        def attention(token_ids: np.ndarray, positions: np.ndarray, at: np.ndarray) -> Array:
            spans = np.minimum(at, 0) + origin, np.maximum(at, slots[-1]) + 1 + origin
            tokens = token_ids.astype(np.int32), positions.astype(np.int32), *spans
            return self._compiled.attend(self._decoder, self._cache, np.int32(row), padded, *tokens)

        def surprise(
            token_ids: np.ndarray, following: np.ndarray, positions: np.ndarray, at: np.ndarray, sources: np.ndarray
        ) -> Array:
            spans = np.minimum(at, 0) + origin, np.where(at < 0, sources, at + 1) + origin
            tokens = token_ids, following, positions, *spans
            return self._compiled.surprise(self._decoder, self._cache, np.int32(row), *tokens)

        def queries(token_ids: np.ndarray) -> Array:
            ids = np.zeros(max(QUESTION_SIZE, padded_size(len(token_ids))), np.int32)
            ids[: len(token_ids)] = token_ids
            return self._compiled.ask(self._decoder, ids, np.int32(len(token_ids)))

        def take(indices: Int[np.ndarray, "n"]) -> tuple[Array, Array]:
            return stored(self._cache, np.int32(row), slots[indices] + np.int32(origin))

        rotary = self._config.text.rotary
        return StoredKeys(take, self.slots, len(slots), rotary, attention, surprise, queries)

    def rerun(self, row: int, tokens: Tokens, following: Int32[np.ndarray, "n"], origin: int) -> Refit:
        """Run tokens of a row again, in neighbouring slots, and store nothing.

        Args:
            row: the row.
            tokens: as they are to be; slots and spans count from the origin.
            following: the token behind each.
            origin: slot at which the stream's first source is stored.
        """
        count, order = len(following), np.argsort(tokens.slots)
        size = min(self.slots, padded_size(count))
        first = min(int(tokens.slots.min()) + origin, self.slots - size)

        def padded(values: np.ndarray, fill: int) -> np.ndarray:
            widths = [(0, 0)] * (values.ndim - 1) + [(0, size - count)]
            return np.pad(values[..., order].astype(np.int32), widths, constant_values=fill)

        arrays = (padded(one, 0) for one in (tokens.token_ids, following, tokens.positions))
        # Slots beyond the cache are not written, and empty spans see nothing.
        spans = padded(tokens.start + origin, 0), padded(tokens.stop + origin, 0)
        slots = padded(tokens.slots + origin, self.slots)
        where = np.int32(row), np.int32(first)
        found = self._compiled.rerun(self._decoder, self._cache, *where, *arrays, *spans, slots)
        return Refit(found[0][:count][np.argsort(order)], first, Piece(*found[1:]))

    def fetch(self, piece: Piece) -> Piece:
        """Move keys and values to this lane's devices; returns before they are there."""
        return jax.device_put(piece, self._where) if isinstance(self._where, Sharding) else piece
