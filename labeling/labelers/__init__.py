"""The labelers that come with the project, one file each."""
