"""Pixels of any picture file: what a file is, its decoders, its colors, and the process that decodes what is rare."""
