"""Models in Flax NNX, one folder a family."""
