"""Checkpoints in stores that Orbax does not write to (S3, Azure): saved on disk, uploaded, and then forgotten there.

A checkpoint is one when its marker is there, which is uploaded last, and removed first. Saving waits for the upload of
the whole state, by one process; on Google Cloud Storage, Orbax writes itself, behind the steps, from all processes.
"""

import tempfile
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from swjax.hub.errors import CheckpointError
from swjax.runs.folder import CHECKPOINTS, list_steps
from swjax.runs.orbax_files import MARKER
from swjax.storage import AnyPath, copy_file, list_files, remove_folder, upload, write_object


class StagedCheckpoints(ocp.CheckpointManager):
    """Orbax's manager over a temporary folder, whose finished checkpoints are those of a folder in a bucket."""

    def __init__(self, run_dir: AnyPath, options: ocp.CheckpointManagerOptions, *, keep: int | None) -> None:
        """Fetches the latest checkpoint, if there is one.

        Args:
            run_dir: the run folder, in a bucket.
            options: for Orbax.
            keep: how many checkpoints of earlier starts stay; None for all.

        Raises:
            CheckpointError: several processes would have to write one checkpoint.
        """
        if jax.process_count() > 1:
            raise CheckpointError(
                f"{run_dir}: {jax.process_count()} processes write their checkpoints to gs:// or to a folder that all "
                "of them have mounted (mountpoint-s3 or the like); to this store, one process alone can"
            )
        self._folder, self._keep = run_dir / CHECKPOINTS, keep
        self._stage = tempfile.TemporaryDirectory(prefix="swjax-checkpoints-")
        stage = Path(self._stage.name) / CHECKPOINTS
        self._held = set(list_steps(run_dir)[-1:])
        for step in self._held:
            for name in list_files(self._folder / str(step)):
                target = stage / str(step) / name
                target.parent.mkdir(parents=True, exist_ok=True)
                copy_file(self._folder / str(step) / name, target)
            (stage / str(step) / MARKER).unlink()
        super().__init__(stage, options=options)

    def save(self, step: int, *args: Any, **kwargs: Any) -> bool:
        """Saves, and returns when the store has the checkpoint."""
        done = super().save(step, *args, **kwargs)
        self.wait_until_finished()
        self._mirror()
        return done

    def close(self) -> None:
        """Ends, and leaves nothing on disk."""
        super().close()
        self._stage.cleanup()

    def _mirror(self) -> None:
        stage = Path(self.directory)
        here, there = set(self.all_steps()), list_steps(self._folder.parent)
        for step in sorted(here - set(there)):
            for name in list_files(stage / str(step)):
                upload(stage / str(step) / name, self._folder / str(step) / name)
            write_object(self._folder / str(step) / MARKER, b"")
        earlier = sorted((set(there) | here) - here - self._held)
        left = max(0, (self._keep or 0) - len(here))
        dropped = [] if self._keep is None else earlier[: len(earlier) - left]
        for step in [*(self._held - here), *dropped]:
            (self._folder / str(step) / MARKER).unlink(missing_ok=True)
            remove_folder(self._folder / str(step))
        self._held = here
