"""Training: configuration, the loop, loggers, and the one-page tutorial ``minimal.py``."""
