"""netbootd.toml: its values, and a loader that reports every fault at once."""
