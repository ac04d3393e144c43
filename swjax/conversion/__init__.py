"""Weights in and out: Hugging Face checkpoints, and parameters by name."""

from swjax.conversion.hugging_face import CheckpointError, load_hf, save_hf

__all__ = ["CheckpointError", "load_hf", "save_hf"]
