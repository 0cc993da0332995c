"""Parts of the labeling job, which `pipelines.label` puts together.

wave            one pass over shards: a Ray Data job whose rows are parts of shards
parts           what travels in it
placement       where each labeler runs
label_process   the actor that all rows go through, one a core
part_labeler    what its child does: read, decode, label; row_group, loaded_labelers: the pieces of that
network_process the actor that runs a network on a GPU
shard_writer    the actor that writes shards
coordinator     the actor that starts the last two, and knows which of them to ask
tally, result   what is counted, and what a run says at its end
"""
