"""The report of a night: what changed since the version before, what looks wrong, and the pages that say so."""
