"""What an objective is: which loss a run makes small, from a model and a batch.

An objective is data: a record of two pure functions. Both give values by name, of which one is `loss`; the others are
metrics. `counts` reads the batch alone, so that the number that a sum is to be divided by is known of a whole step
before the gradient of its first micro-batch is taken; `sums` runs the model on one micro-batch. What a step reports
under a name, and what it differentiates under `loss`, is the sum over its micro-batches divided by the count over all
of them: so rows give the same step however they are divided over micro-batches and devices.

Objectives of pairs fit in. A preference loss (DPO) has rows that stand in pairs, the preferred answer at 2i and the
rejected one at 2i + 1 of every micro-batch, and asks for a field `reference_log_probability` (axes "B"), which the
frozen model gave each answer beforehand. `sums` adds up the log-probabilities of each row's labels (`label_losses`),
reshapes them to [B / 2, 2] and gives, beside `loss`, the reward's `margin` and `accuracy`; `counts` gives the pairs
under each of these names. Step, accumulation, mesh, validation and metrics stay as they are; what has to come with it
is a pipeline that makes such rows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from jaxtyping import Array, Bool, Float, Int, Int32, Shaped, UInt8

from swjax.models.layers import Constrain
from swjax.streaming import KeySpans

Batch = Mapping[str, Shaped[Array, "B ..."]]
"""What the data pipeline yields: `token_ids`, `position_ids`, `span_start`, `span_stop`, `labels`, `pixel_values` and
`video_grid_thw`, rows first; with the fields that an objective adds to them."""

LOSS = "loss"
"""The name of what is made small."""


class Predictor(Protocol):
    """A model that an objective can be taken of."""

    def hidden(
        self,
        token_ids: Int32[Array, "B L"],
        position_ids: Int32[Array, "3 B L"],
        spans: KeySpans,
        *,
        pixel_values: UInt8[Array, "B P patch_dim"],
        video_grid_thw: Int[Array, "B videos 3"],
        slots: Int32[Array, "B L"] | None = None,
        kept: Bool[Array, "B P"] | None = None,
    ) -> Float[Array, "B L D"]:
        """What the head is applied to: hidden states after the last norm.

        Args:
            token_ids: in slot order, unless `slots` says otherwise.
            position_ids: temporal, height and width ids of each token.
            spans: int32[B, L] each, the slots that each token sees.
            pixel_values: patches of each row's images and videos, as decoded; what is behind them pads the row.
            video_grid_thw: temporal steps, patch rows and patch columns of each row's images and videos, in slot order;
                (0, 0, 0) is none.
            slots: slot of each token, where rows are not in slot order; None where they are.
            kept: of which patches the tokens are left, where some are dropped; None where none are.
        """

    def head(self) -> Float[Array, "V D"]:
        """A vector for each token of the vocabulary."""


class Sums(Protocol):
    """Sums over the rows of one micro-batch, by name; `LOSS` is one of them."""

    def __call__(
        self, model: Predictor, batch: Batch, *, max_labels: int, constrain: Constrain
    ) -> Mapping[str, Float[Array, ""]]:
        """Takes the sums.

        Args:
            model: with the parameters that the loss is differentiated by.
            batch: one micro-batch, [B, ...].
            max_labels: most labelled slots that a row has.
            constrain: lays activations out over devices.
        """


class Counts(Protocol):
    """What each of the sums is to be divided by, by the same names. It reads the batch, of any leading axes, alone."""

    def __call__(self, batch: Batch) -> Mapping[str, Float[Array, ""]]:
        """Takes the counts of a batch [B, ...] or [A, B, ...]."""


@dataclass(frozen=True)
class Objective:
    """A loss, and what is reported beside it.

    Attributes:
        fields: arrays that a batch must have beside those of the pipeline (`Batch`): name -> a letter an axis, as in
            `swjax.mesh.BATCH_AXES`, which says how they are laid out over devices ("BL": a number a slot).
        counts: what the sums are divided by.
        sums: of one micro-batch; pure, and differentiable under the name `LOSS`.
    """

    fields: Mapping[str, str]
    counts: Counts
    sums: Sums
