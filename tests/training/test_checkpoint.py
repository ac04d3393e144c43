from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import optax
import pytest

from swjax.hub.errors import CheckpointError
from swjax.runs.folder import list_steps
from swjax.training.checkpoint import open_checkpoints, save_checkpoint
from swjax.training.step import initial_state


def test_the_best_checkpoints_are_kept_beside_the_latest(tmp_path: Path) -> None:
    """Steps 3 and 5 are the best that were validated; 6 and 7 are the latest, saved without a validation."""
    losses = {1: 2.0, 2: 1.5, 3: 1.0, 4: 1.2, 5: 0.9, 6: None, 7: None}
    state = initial_state({"w_dd": jnp.ones((2, 2))}, {}, optax.identity())
    examples = iter(grain.MapDataset.range(3).to_iter_dataset())
    with open_checkpoints(tmp_path, keep=2, keep_best=2) as checkpoints:
        for step, loss in losses.items():
            metrics = None if loss is None else {"validation_loss": loss}
            save_checkpoint(checkpoints, step, state, examples, metrics=metrics)
    assert list_steps(tmp_path) == [3, 5, 6, 7]


def test_several_processes_are_told_which_stores_they_can_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(CheckpointError, match="2 processes write their checkpoints to gs:// or to a folder that all"):
        open_checkpoints("s3://bucket/run", keep=1)
