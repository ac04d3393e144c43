"""What a pass is told, packed into one array, because each array that is handed over to a device costs a transfer."""

import enum
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int32

from swjax.inference.parts import Part
from swjax.inference.sampler import SamplingRows
from swjax.inference.track import Tokens, join
from swjax.streaming import KeySpans

NO_FEATURE = -1


class TokenColumn(enum.IntEnum):
    """The columns of a packed token."""

    TOKEN_ID = 0
    TEMPORAL = 1
    HEIGHT = 2
    WIDTH = 3
    START = 4
    STOP = 5
    SLOT = 6
    FEATURE = 7


class RowColumn(enum.IntEnum):
    """The columns of the line behind a row's tokens: numbers of the row. The choices are those of `SamplingRows`."""

    LAST = 0
    SPEAKS = 1
    TEMPERATURE = 2
    TOP_K = 3
    TOP_P = 4
    REPETITION_PENALTY = 5
    SEED = 6
    SPOKEN = 7
    SKIP = 8
    END = 9
    BELOW = 10


COLUMNS = max(len(TokenColumn), len(RowColumn))
_CHOICES = slice(RowColumn.TEMPERATURE, COLUMNS)


class RowTokens(NamedTuple):
    """The tokens of one row of a pass.

    Attributes:
        tokens: what is written; slots and spans count from the stream's origin.
        features: for each, its index in the row's inbox of frame features; `NO_FEATURE` for text.
        origin: slot of the lane's cache at which the stream's first source is stored.
    """

    tokens: Tokens
    features: Int32[np.ndarray, "N"]
    origin: int


def row_tokens(parts: Sequence[Part], origin: int, frame_units: int) -> RowTokens:
    """What a row is given of a stream: its parts one after another, and where the features of frames among them are.

    Args:
        parts: what a pass takes of the stream's groups.
        origin: slot of the lane's cache at which the stream's first source is stored.
        frame_units: features in a cell of the inbox.
    """
    features = [np.full(part.stop - part.first, NO_FEATURE, np.int32) for part in parts]
    for part, found in zip(parts, features, strict=True):
        if part.group.arrival is not None:
            assert part.group.arrival.cell is not None
            assert part.group.arrival.places is not None
            found[:] = part.group.arrival.cell * frame_units + part.group.arrival.places[part.first : part.stop]
    tokens = join([part.group.tokens.part(part.first, part.stop) for part in parts])
    return RowTokens(tokens, np.concatenate(features), origin)


def pack(
    tokens: Mapping[int, RowTokens],
    size: int,
    speaking: Collection[int],
    choices: SamplingRows,
    *,
    rows: int,
    slots: int,
) -> Int32[np.ndarray, "B lines C"]:
    """Pack what a pass is told: for each row its L tokens, a line each, and one line for the row.

    Args:
        tokens: what to write, by row.
        size: length L to which rows are padded.
        speaking: the rows in which the token that follows the last one is to be chosen.
        choices: how each row chooses.
        rows: of the batch (B).
        slots: of every row's cache.
    """
    packed = np.zeros((rows, size + 1, COLUMNS), np.int32)
    # Slots beyond the cache are not written, and empty spans see nothing.
    packed[:, :-1, TokenColumn.SLOT] = slots
    packed[:, :-1, TokenColumn.FEATURE] = NO_FEATURE
    packed[:, -1, _CHOICES] = np.stack([np.asarray(column).view(np.int32) for column in choices], axis=-1)
    for row, (piece, features, origin) in tokens.items():
        order = np.argsort(piece.slots)
        assert np.count_nonzero(np.diff(piece.slots[order]) != 1) <= 1, "a row's slots are two runs at most"
        lines = packed[row, : len(order)]
        lines[:, TokenColumn.TOKEN_ID] = piece.token_ids[order]
        lines[:, TokenColumn.TEMPORAL : TokenColumn.START] = piece.positions.T[order]
        lines[:, TokenColumn.START] = piece.start[order] + origin
        lines[:, TokenColumn.STOP] = piece.stop[order] + origin
        lines[:, TokenColumn.SLOT] = piece.slots[order] + origin
        lines[:, TokenColumn.FEATURE] = features[order]
        packed[row, -1, RowColumn.LAST] = np.flatnonzero(order == len(order) - 1)[0]
    packed[list(speaking), -1, RowColumn.SPEAKS] = 1
    return packed


class Batch(NamedTuple):
    """A packed batch taken apart: the columns of its tokens, and the numbers of its rows."""

    token_ids: Int32[Array, "B L"]
    positions: Int32[Array, "3 B L"]
    spans: KeySpans
    slots: Int32[Array, "B L"]
    features: Int32[Array, "B L"]
    last: Int32[Array, "B"]
    speaks: Bool[Array, "B"]
    choices: SamplingRows

    @classmethod
    def unpack(cls, packed: Int32[Array, "B lines C"]) -> "Batch":
        """The arrays of a packed batch; its lines are those of L tokens, and one for the row."""
        columns = jnp.moveaxis(packed[:, :-1], -1, 0)
        numbers = packed[:, -1].T

        def real(column: RowColumn) -> Float[Array, "B"]:
            return jax.lax.bitcast_convert_type(numbers[column], jnp.float32)

        return cls(
            token_ids=columns[TokenColumn.TOKEN_ID],
            positions=columns[TokenColumn.TEMPORAL : TokenColumn.START],
            spans=KeySpans(columns[TokenColumn.START], columns[TokenColumn.STOP]),
            slots=columns[TokenColumn.SLOT],
            features=columns[TokenColumn.FEATURE],
            last=numbers[RowColumn.LAST],
            speaks=numbers[RowColumn.SPEAKS].astype(bool),
            choices=SamplingRows(
                temperature=real(RowColumn.TEMPERATURE),
                top_k=numbers[RowColumn.TOP_K],
                top_p=real(RowColumn.TOP_P),
                repetition_penalty=real(RowColumn.REPETITION_PENALTY),
                seed=numbers[RowColumn.SEED].astype(jnp.uint32),
                spoken=numbers[RowColumn.SPOKEN],
                skip=numbers[RowColumn.SKIP],
                end=numbers[RowColumn.END],
                below=real(RowColumn.BELOW),
            ),
        )
