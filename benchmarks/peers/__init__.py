"""Other projects, measured on this machine beside ours.

Each module is a contestant of ``benchmarks.throughput``: it runs in a process and an interpreter of its own, and needs
nothing but what it measures (``serve.py`` speaks to the contest with the standard library alone).
"""
