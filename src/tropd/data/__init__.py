"""Prompts from files, checked row by row; duplicates, and overlap with what is evaluated on.

Nothing heavy is imported before data are loaded.
"""

from .lengths import check_lengths
from .overlap import Duplicates, Overlap, find_duplicates, find_overlap
from .prompts import PromptData, load_prompts
from .sources import has_splits

__all__ = [
    "Duplicates",
    "Overlap",
    "PromptData",
    "check_lengths",
    "find_duplicates",
    "find_overlap",
    "has_splits",
    "load_prompts",
]
