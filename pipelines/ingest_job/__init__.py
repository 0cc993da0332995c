"""What the ingest job is made of: where its work runs, and the steps of a run."""
