"""Jobs: what to do, where it is sent, and what became of it.

A submitted job, from top to bottom:

    specification   a YAML file becomes a typed specification
    resolved        the specification becomes the resolved job: id, folder, whole addresses, resources
    submit          unless it is under way: a new attempt is recorded in the job's folder and sent to the target
    run             on the target, `python -m pipelines execute ADDRESS --attempt N`: waits its turn, keeps a log
    running         … and meanwhile writes heartbeats, answers signals, and reads what others ask of it
    steps           … and does the work, with the functions that the command line calls, too

Beside them: `folder` and `attempt` (what is stored of a job), `status`, `control` (stop and scale), `log` and
`known_jobs` (which jobs this user has sent).
"""
