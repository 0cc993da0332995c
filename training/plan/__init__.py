"""Which samples a step of a training has: the mixture, its manifest, the order of samples, and the packs they go in."""
