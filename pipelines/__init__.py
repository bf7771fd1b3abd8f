"""What runs: the commands, the reading of catalogs, and the wiring of the nightly job."""
