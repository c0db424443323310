"""Where the answer is in a response."""

import re

THINK_START, THINK_END = "<think>", "</think>"

MARKS = re.compile(r"\\boxed\s*\{|\\.|[{}]", re.DOTALL)
"""What opens a box, what a backslash takes the meaning from, and braces."""

FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[ \t]*\r?\n(.*?)^[ \t]*```", re.DOTALL | re.MULTILINE)

PYTHON = {"", "python", "python3", "py"}


def behind_thinking(response: str, opened: bool = False) -> str:
    """The text after the last `</think>`; empty if thinking began and never ended.

    Args:
        response: the model's.
        opened: the prompt ends inside of a thought, as some chat templates have it.

    >>> behind_thinking("<think>perhaps 12</think>It is 33.")
    'It is 33.'
    >>> behind_thinking("<think>perhaps 12")
    ''
    """
    _, end, behind = response.rpartition(THINK_END)
    if end:
        return behind
    return "" if opened or THINK_START in response else response


def last_box(text: str) -> str | None:
    r"""The content of the last `\boxed{…}` that is closed, braces and all.

    >>> last_box(r"\boxed{12} or rather \boxed{\frac{1}{2}}, no: \boxed{3")
    '\\frac{1}{2}'
    """
    open_braces: list[tuple[bool, int]] = []
    last: tuple[int, int] | None = None
    for mark in MARKS.finditer(text):
        if mark[0] == "{" or len(mark[0]) > 2:
            open_braces.append((mark[0] != "{", mark.end()))
        elif mark[0] == "}" and open_braces:
            boxed, start = open_braces.pop()
            if boxed and (last is None or start > last[0]):
                last = (start, mark.start())
    return None if last is None else text[slice(*last)].strip()


def python_block(text: str, defines: str | None = None) -> str | None:
    """The last closed block of Python: of those that define a name, where there is one.

    >>> python_block("```python\\ndef f(): return 1\\n```\\nFor example:\\n```\\nf()\\n```", defines="f")
    'def f(): return 1\\n'
    """
    blocks = [block for language, block in FENCE.findall(text) if language.lower() in PYTHON]
    wanted = [block for block in blocks if defines and re.search(rf"\b(def|class)\s+{re.escape(defines)}\b", block)]
    return (wanted or blocks or [None])[-1]
