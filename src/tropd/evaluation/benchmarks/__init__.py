"""Benchmarks: which files they are, what is asked, and how an answer is graded.

The project carries none of the data. `registry` names each file with the SHA-256 of the copy that was tried, `loaders`
read it, and `grading` judges responses to its problems.
"""
