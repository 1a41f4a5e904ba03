"""Configs: from TOML to checked settings, and from settings to the parts of a run.

`bpeq.experiment` hands out what a study needs of it.
"""
