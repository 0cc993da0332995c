"""Where pictures and view sets come from, and what becomes of each file."""
