"""Jobs: what to do, where it is sent, and what became of it."""
