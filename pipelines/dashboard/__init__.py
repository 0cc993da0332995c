"""The dashboard: Dagster over datasets and runs. From the lowest layer up:

tracked_assets  which datasets and runs it shows, kept in the user's data folder
snapshots       what each of them declares, kept there too, so that definitions load at once and without a network
changes         whether something may have changed there, without reading it
dataset_state, versions, reporting      what is fresh, by the shards' own footers, and telling Dagster
contact_sheets, charts, metadata        what asset pages show
check_outcomes, sources                 what checks find
forms, launch   a form's values; sending them through `pipelines.jobs.submit`, and following the job
dataset_assets, run_assets, checks, dagster_jobs, follower, sensors, definitions    what Dagster loads
processes, supervisor, graphql, proxy, server   Dagster's processes, behind a proxy that checks tokens
dagster_internals   everything that relies on Dagster beyond its documented interface
"""
