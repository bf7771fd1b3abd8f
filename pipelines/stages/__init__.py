"""Beam wiring of the nightly job: transforms that move descriptors and count; the work is done by plain functions."""
