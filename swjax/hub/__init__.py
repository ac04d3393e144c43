"""Weights in and out: Hugging Face checkpoints, and parameters by name."""

from swjax.hub.errors import CheckpointError
from swjax.hub.reader import load_hf, open_hf
from swjax.hub.writer import save_hf

__all__ = ["CheckpointError", "load_hf", "open_hf", "save_hf"]
