"""What a user runs: the command line, the jobs behind it, and the pages they end with."""
