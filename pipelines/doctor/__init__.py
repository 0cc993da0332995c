"""`onediffusion doctor`: whether a job would run where it is to be sent, and what to do where it would not.

    command       here: asks the target, sends the examination there, waits, and gathers its findings
    examination   there: a Ray session, a process for each worker of a job, and what they find
    machine       … on a node: versions, GPUs, attention, shared memory, disks, the cache of models
    links         … between ranks and between nodes: ports, and the bandwidth of an all-reduce
    place         … of a dataset's or run's place: reading, writing, listing, speed, clock

What a machine answers (`nvidia-smi`, sizes) is read in one function and judged in another, which tests also give
answers that were recorded elsewhere.
"""
