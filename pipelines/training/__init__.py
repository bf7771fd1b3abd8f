"""Training on a shop's own catalog: the products are read and decoded by the code of the indexing job."""
