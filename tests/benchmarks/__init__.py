"""Measurements behind the figures that the documents quote. Each is a command; none runs with the tests."""
