"""From text environments to token episodes: chat templates, the sampling engine, the collector."""
