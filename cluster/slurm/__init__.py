"""Jobs on Slurm, each with a Ray of its own."""
