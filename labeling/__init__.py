"""From pictures to column groups: the shard format, the labelers, and what a dataset still needs."""
