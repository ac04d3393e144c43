"""Weights in and out: Hugging Face checkpoints, and parameters by name."""

from swjax.conversion.errors import CheckpointError
from swjax.conversion.hub_writer import save_hf
from swjax.conversion.hugging_face import load_hf, open_hf

__all__ = ["CheckpointError", "load_hf", "open_hf", "save_hf"]
