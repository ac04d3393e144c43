"""What a training run leaves on disk: reading a model out of it, and exporting it."""
