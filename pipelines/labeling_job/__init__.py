"""Parts of the labeling job, which `pipelines.label` puts together: stages, decoded images, the writer of shards.

Between stages travels one row per row group of a shard, so that neither batches nor blocks span or split what the bytes
of a shard depend on:

    shard, row_group          where the rows lie
    groups                    the groups to label there, joined by commas
    rows                      how many rows there are
    columns                   what labelers read from stored shards, as an Arrow stream
    images                    the decoded images, see `decoded_images`; dropped after the last stage that reads them
    GROUP:table               the finished columns of a group, as an Arrow stream
    GROUP:seconds             how long they took
"""
