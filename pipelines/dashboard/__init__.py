"""The dashboard: Dagster over datasets and runs.

places       which datasets and runs it shows, kept in the user's data folder
snapshots    what each of them declares, kept there too, so that definitions load at once and without a network
definitions  assets, checks, jobs and sensors, made from the snapshots alone
fingerprints what is fresh, by the shards' own footers; reporting tells Dagster
launch       a job goes through `pipelines.jobs.submit`, like any other, and its log is followed
server       the processes, behind a proxy that keeps out who should not be in
"""
