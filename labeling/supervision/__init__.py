"""Labelers work in processes of their own, which may crash, hang or take too much memory: one bad row costs one row."""
