"""Checkpoints of a run: parameters, optimizer and the input iterator's place, saved while training goes on.

They are read onto any mesh, and by any number of processes that share the run folder.
"""

import json
from collections.abc import Mapping

import grain
import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN

from swjax.data.place import divide_place
from swjax.hub.errors import CheckpointError
from swjax.runs.folder import CHECKPOINTS, EMA, PARAMETERS, read_parameters
from swjax.runs.orbax_files import is_staged, reading
from swjax.storage import AnyPath, absolute, as_path, sync_logs
from swjax.training.origin import BEST_BY
from swjax.training.staged_checkpoints import StagedCheckpoints
from swjax.training.step import TrainState

OPTIMIZER = "optimizer"
DATA = "data"
PARTS = "parts"


def open_checkpoints(run_dir: str | AnyPath, *, keep: int, keep_best: int = 0) -> ocp.CheckpointManager:
    """Opens a run folder's checkpoints for writing, and clears away what was half-written when the run was killed.

    Args:
        run_dir: the run folder.
        keep: how many checkpoints, the latest, are kept.
        keep_best: how many are kept beside them, those with the lowest validation loss.
    """
    best = BestN(
        n=keep_best,
        get_metric_fn=lambda metrics: metrics[BEST_BY],
        reverse=True,
        keep_checkpoints_without_metrics=False,
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(keep), *([best] if keep_best else [])]),
        cleanup_tmp_directories=True,
    )
    folder = absolute(as_path(run_dir))
    if is_staged(folder):
        return StagedCheckpoints(folder, options, keep=None if keep_best else keep)
    return ocp.CheckpointManager(folder / CHECKPOINTS, options=options)


def save_checkpoint(
    checkpoints: ocp.CheckpointManager,
    step: int,
    state: TrainState,
    iterator: grain.DatasetIterator,
    *,
    parts: int = 1,
    metrics: Mapping[str, float] | None = None,
) -> None:
    """Starts to save a checkpoint; returns once the state is copied, and writes it behind the next steps.

    Args:
        checkpoints: from `open_checkpoints`.
        step: steps taken.
        state: the state after them.
        iterator: the input, at the batch that follows.
        parts: in how many parts the rows of a batch are read by the processes.
        metrics: those of validation after this step, by which the best checkpoints are chosen.
    """
    sync_logs()  # who resumes from this checkpoint finds what was logged before it
    averages = {EMA: ocp.args.StandardSave(state.ema)} if state.ema else {}
    counts = {"step": state.step, "bad_steps": state.bad_steps}
    checkpoints.save(
        step,
        metrics=None if metrics is None else dict(metrics),
        args=ocp.args.Composite(
            **{
                **averages,
                PARAMETERS: ocp.args.StandardSave(state.trainable | state.frozen),
                OPTIMIZER: ocp.args.StandardSave({**counts, "state": state.opt_state}),
                PARTS: ocp.args.JsonSave({"count": parts}),
                DATA: grain.checkpoint.CheckpointSave(iterator),
            }
        ),
    )


def restore_checkpoint(
    checkpoints: ocp.CheckpointManager,
    step: int,
    shapes: TrainState,
    iterator: grain.DatasetIterator,
    *,
    part: tuple[int, int] = (0, 1),
) -> TrainState:
    """Reads a checkpoint back.

    Args:
        checkpoints: from `open_checkpoints`.
        step: which checkpoint.
        shapes: shape, dtype and sharding of every leaf of the state.
        iterator: the input; it is set to the place where it stood, or to its part of what is left if the checkpoint is
            of another number of processes or parts.
        part: which part of every batch's rows this process reads, and of how many (`swjax.mesh.row_share`).

    Raises:
        CheckpointError: the checkpoint is half-written, damaged or of another model or optimizer.
    """
    folder = as_path(checkpoints.directory)
    parameters = read_parameters(folder.parent, step, shapes.trainable | shapes.frozen)
    ema = read_parameters(folder.parent, step, shapes.ema, item=EMA) if shapes.ema else {}
    with reading(folder / str(step) / OPTIMIZER):
        item = {"step": shapes.step, "bad_steps": shapes.bad_steps, "state": shapes.opt_state}
        restored = checkpoints.restore(
            step,
            args=ocp.args.Composite(**{OPTIMIZER: ocp.args.StandardRestore(item), PARTS: ocp.args.JsonRestore()}),
        )
    found = restored[OPTIMIZER]
    _restore_place(folder / str(step) / DATA, restored[PARTS]["count"], iterator, part)
    return TrainState(
        step=found["step"],
        bad_steps=found["bad_steps"],
        trainable={path: parameters[path] for path in shapes.trainable},
        frozen={path: parameters[path] for path in shapes.frozen},
        opt_state=found["state"],
        ema=ema,
    )


def _restore_place(folder: AnyPath, parts: int, iterator: grain.DatasetIterator, part: tuple[int, int]) -> None:
    """Sets the input to where it stood; each process of the run wrote a file, as `grain.checkpoint` names them."""
    files = sorted(folder.glob("process_*-of-*.json"), key=lambda file: int(file.stem.split("_")[1].split("-")[0]))
    wrote = {int(file.stem.rpartition("-")[2]) for file in files}
    if wrote != {len(files)}:
        raise CheckpointError(
            f"{folder} holds the input's place of {len(files)} processes, of {max(wrote, default=0)} that wrote it: "
            f"give all processes one run folder that they share; delete {folder.parent} to resume from an earlier one"
        )
    states = [json.loads(file.read_text()) for file in files]
    if (len(states), parts) == (jax.process_count(), part[1]):
        iterator.set_state(states[jax.process_index()])
    else:
        iterator.set_state(divide_place(states, iterator.get_state(), parts=parts, part=part))
    iterator.start_prefetch()
