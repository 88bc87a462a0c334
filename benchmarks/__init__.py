"""The benchmark: suites, a pool of runs, statistics and reports. Imported by nothing else."""
