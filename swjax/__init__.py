"""Speak while watching: train and run streaming video-language models in JAX."""

__version__ = "0.1.0"
