"""From systems to rankings: every query answered by every encoder and every index."""
