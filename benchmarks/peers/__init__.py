"""Other projects, measured on this machine beside ours; each module says what is missing where one is not installed."""
