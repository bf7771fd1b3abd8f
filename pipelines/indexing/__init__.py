"""The indexing job, in the order in which it runs: plan, embed, number, build, publish."""
