"""What the ingest job is made of: where its work runs, how new shards are written, and how changes are taken over."""
