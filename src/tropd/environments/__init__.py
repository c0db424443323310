"""Environments of others, for agents; each needs a package that no extra brings."""
