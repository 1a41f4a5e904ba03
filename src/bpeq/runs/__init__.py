"""The run folder: files, lock, manifest, metrics log, checkpoints. It knows no config."""
