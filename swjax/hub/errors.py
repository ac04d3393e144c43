"""The error that everything about checkpoints raises."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used, and why."""
