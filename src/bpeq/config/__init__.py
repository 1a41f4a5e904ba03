"""Configs: TOML to checked settings, and settings to the parts of a run."""
