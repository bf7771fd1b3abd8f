"""Vectors that were made elsewhere, on their way into embedding shards: `pipelines.build_index --embeddings.uri`."""
