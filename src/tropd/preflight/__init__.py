"""Before a run: do student and teacher fit together, and which method follows from what a few rollouts show?

`tokens` compares files without weights, `measure` reads a probe of a built trainer, `verdict` says in words what to
expect, `screen` writes all of it down for a person or as JSON.
"""
