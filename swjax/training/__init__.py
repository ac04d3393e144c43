"""Training: the mesh, the optimizer, the loss, the step, checkpoints, and the run that ties them together."""
