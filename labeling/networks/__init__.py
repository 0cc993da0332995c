"""What labelers with networks share: loading, batches, endpoints, the words and prompts that networks are given."""
