"""Methods side by side at one budget: `python -m tropd.comparison --recipe FILE --teacher DIR --out DIR`."""
