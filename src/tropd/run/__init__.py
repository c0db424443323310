"""A run from its configuration: files, checks, trainer, summary. What the command line does, callable from Python."""
