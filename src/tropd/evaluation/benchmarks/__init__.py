"""Benchmarks: their files, prompts and graders.

The project carries none of the data. `registry` names each file with the SHA-256 of the copy that was tried, `loaders`
read it, and `grading` judges responses to its problems.
"""
