"""Checkpoints of a run: parameters, optimizer and the input iterator's place, saved while training goes on."""

from pathlib import Path

import grain
import orbax.checkpoint as ocp

from swjax.conversion.orbax_files import reading
from swjax.conversion.run_folder import CHECKPOINTS, EMA, PARAMETERS, read_parameters
from swjax.training.step import TrainState

OPTIMIZER = "optimizer"
DATA = "data"


def open_checkpoints(run_dir: str | Path, *, keep: int) -> ocp.CheckpointManager:
    """Opens a run folder's checkpoints for writing, and clears away what was half-written when the run was killed.

    Args:
        run_dir: the run folder.
        keep: how many checkpoints, the latest, are kept.
    """
    return ocp.CheckpointManager(
        Path(run_dir).absolute() / CHECKPOINTS,
        options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
    )


def save_checkpoint(
    checkpoints: ocp.CheckpointManager, step: int, state: TrainState, iterator: grain.DatasetIterator
) -> None:
    """Starts to save a checkpoint; returns once the state is copied, and writes it behind the next steps.

    Args:
        checkpoints: from `open_checkpoints`.
        step: steps taken.
        state: the state after them.
        iterator: the input, at the batch that follows.
    """
    averages = {EMA: ocp.args.StandardSave(state.ema)} if state.ema else {}
    checkpoints.save(
        step,
        args=ocp.args.Composite(
            **{
                **averages,
                PARAMETERS: ocp.args.StandardSave(state.trainable | state.frozen),
                OPTIMIZER: ocp.args.StandardSave({"step": state.step, "state": state.opt_state}),
                DATA: grain.checkpoint.CheckpointSave(iterator),
            }
        ),
    )


def restore_checkpoint(
    checkpoints: ocp.CheckpointManager, step: int, shapes: TrainState, iterator: grain.DatasetIterator
) -> TrainState:
    """Reads a checkpoint back.

    Args:
        checkpoints: from `open_checkpoints`.
        step: which checkpoint.
        shapes: shape, dtype and sharding of every leaf of the state.
        iterator: the input; it is set to the place where it stood.

    Raises:
        CheckpointError: the checkpoint is half-written, damaged or of another model or optimizer.
    """
    run_dir = Path(checkpoints.directory).parent
    parameters = read_parameters(run_dir, step, shapes.trainable | shapes.frozen)
    ema = read_parameters(run_dir, step, shapes.ema, item=EMA) if shapes.ema else {}
    with reading(Path(checkpoints.directory) / str(step) / OPTIMIZER):
        found = checkpoints.restore(
            step,
            args=ocp.args.Composite(
                **{
                    OPTIMIZER: ocp.args.StandardRestore({"step": shapes.step, "state": shapes.opt_state}),
                    DATA: grain.checkpoint.CheckpointRestore(iterator),
                }
            ),
        )[OPTIMIZER]
    return TrainState(
        step=found["step"],
        trainable={path: parameters[path] for path in shapes.trainable},
        frozen={path: parameters[path] for path in shapes.frozen},
        opt_state=found["state"],
        ema=ema,
    )
