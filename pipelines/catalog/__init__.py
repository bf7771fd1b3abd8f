"""The catalog comes in: files of any format and store become clean products, and what is broken becomes dead letters.

    listing -> intake (text becomes Parquet) -> plan: shards of rows -> reading -> products

Nothing here imports Beam: a worker calls `take_in`, `read_shard` and `to_products`, whoever runs it.
"""
