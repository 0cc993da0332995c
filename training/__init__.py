"""Training: the mixture, the sample plan, packing, the objective, the workers and their checkpoints."""
