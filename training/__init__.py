"""The mixture, the sample plan, packing, the objective, the loop and its checkpoints."""
