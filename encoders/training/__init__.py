"""Training fits an encoder to pairs of query and product.

`train_encoder` is the whole of it; `pipelines.train_encoder` is its command line. Lightning is imported in this folder
only and comes with the extra `train`.
"""
