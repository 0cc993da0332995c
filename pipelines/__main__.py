"""`python -m pipelines …` is `onediffusion …`, for places where nothing is installed."""

from pipelines.cli import main

main()
