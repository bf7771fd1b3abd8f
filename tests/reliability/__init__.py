"""Trials that break things on purpose: each module is one command, with a seed and a table of trials and losses.

Short forms of all run with the test suite (`test_short.py`); README.md lists the long ones.
"""
