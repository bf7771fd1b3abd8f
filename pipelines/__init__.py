"""Everything that runs: the commands, the reading of catalogs, and the indexing job."""
