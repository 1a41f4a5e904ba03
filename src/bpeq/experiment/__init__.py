"""What each command does, from a checked config to a finished run folder."""
