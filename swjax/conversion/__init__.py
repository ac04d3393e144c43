"""The former name of `swjax.hub`, kept for code that imports from it."""

from swjax.hub import CheckpointError, load_hf, open_hf, save_hf

__all__ = ["CheckpointError", "load_hf", "open_hf", "save_hf"]
