"""Programs are judged by what they return, in whatever form; the interpreter runs its small Python and nothing else."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tropd.proving_ground.code import judge, parse
from tropd.proving_ground.interpreter import MAX_STEPS, ProgramError, run

PROMPT = "write solve(xs): add 3 to each, then keep the even ones, then return the sum.\n"
SOLUTION = """def solve(xs):
    ys = [3 + x for x in xs]
    zs = []
    for x in ys:
        if x % 2 == 0:
            zs.append(x)
    return sum(zs)"""


def test_the_example_is_right_and_so_is_any_other_way():
    assert judge(parse(PROMPT), SOLUTION).correct
    assert judge(parse(PROMPT), "def solve(a):\n return sum([x+3 for x in a if (x+3)%2==0])").correct


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("3 + x", "2 + x"), "For ["),
        (("sum(zs)", "zs"), "For ["),
        (("    return sum(zs)", "    total = sum(zs)"), "The program ends without a return."),
        (("sum(zs)", "sum(ts)"), "The program uses ts before it has a value."),
        (("sum(zs)", "eval(zs)"), "The program uses 'call', which this small Python does not have."),
        (("sum(zs)", "sum(zs"), "The program is no Python: "),
        (("solve", "other"), "The program should define solve with one argument."),
        (("x % 2", "x % 0"), "The program fails: "),
        (("for x in ys", "for x in 3"), "The program takes a number for a list."),
        (("in xs]", "in xs"), "The program is no Python: "),
        (("zs.append(x)", "zs.clear()"), "The program calls clear, which this small Python does not have here."),
    ],
)
def test_a_wrong_program_gets_its_reason(change, reason):
    assert change[0] in SOLUTION
    verdict = judge(parse(PROMPT), SOLUTION.replace(*change))
    assert not verdict.correct
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize(
    ("body", "value"),
    [
        ("return xs[::-1]", [3, 2, 1]),
        ("return list(reversed(xs))", [3, 2, 1]),
        ("return sorted(xs)[1:]", [2, 3]),
        ("return xs[:-1] + [7]", [1, 2, 7]),
        ("return [x ** 2 for x in range(1, 4)]", [1, 4, 9]),
        ("total = 0\n    for x in xs:\n        total += x * 2\n    return total", 12),
        ("if not len(xs) > 3:\n        return max(xs) // 2\n    else:\n        return 0", 1),
        ("ys = [x for x in xs]\n    for y in ys:\n        ys.append(y)\n    return len(ys)", 6),
        ("xs.insert(0, -5)\n    return xs[0]", -5),
        ("x = 9\n    ys = [x for x in xs]\n    return x", 9),
    ],
)
def test_the_small_python_means_what_python_means(body, value):
    assert run(f"def solve(xs):\n    {body}", "solve", [1, 2, 3]) == value


@pytest.mark.parametrize(
    "source",
    [
        "import os",
        "def solve(xs):\n    import os\n    return 1",
        "def solve(xs):\n    while True:\n        xs = xs",
        "def solve(xs):\n    return solve(xs)",
        "def solve(xs):\n    return xs.__class__",
        "def solve(xs):\n    return xs.append.__self__",
        "def solve(xs):\n    return open('file')",
        "def solve(xs):\n    return __import__('os')",
        "def solve(xs):\n    return (lambda: 1)()",
        "def solve(xs):\n    return 'text'",
        "def solve(xs):\n    return 1.5",
        "def solve(xs):\n    return 9 ** 9 ** 9",
        "def solve(xs):\n    return 9 ** 99",
        "def solve(xs):\n    return [xs for x in range(10 ** 3)]" + "".join(f"\n    y{n} = 1" for n in range(2000)),
        "def solve(xs):\n    for a in range(999):\n        for b in range(999):\n            xs = xs\n    return xs",
        "def solve(xs):\n    x = 1\n    for a in range(999):\n        x = x * 99\n    return x",
        "def solve(xs):\n    for a in range(99):\n        xs = xs + xs\n    return xs",
        "def solve(xs):\n    return sum([xs, xs])",
        "def solve(xs):\n    return range(10 ** 11)[5 ** 3:] if 1 else 0",
        "def solve(xs):\n    return " + "-" * 5000 + "1",
        "def solve(xs):\n    return " + "(" * 500 + "1" + ")" * 500,
        "def solve(xs):\n    return " + "[" * 60 + "1" + "]" * 60,
        "def solve(xs, ys):\n    return xs",
        "def solve(xs=[]):\n    return xs",
        "@solve\ndef solve(xs):\n    return xs",
        "async def solve(xs):\n    return xs",
        "def solve(xs):\n    global y\n    return xs",
        "def solve(xs):\n    a, b = xs\n    return a",
        "def solve(xs):\n    xs[0] = 1\n    return xs",
        "def solve(xs):\n    del xs\n    return 1",
        "def solve(xs):\n    return sorted(xs, key=abs)",
        "def solve(xs):\n    xs.append(xs)\n    return xs + [xs]",
        "def solve(xs):\n    return f'{xs}'",
        "\0",
    ],
)
def test_everything_else_is_refused_in_a_sentence(source):
    with pytest.raises(ProgramError, match=r"\.$"):
        run(source, "solve", [1, 2, 3])


def test_a_long_run_stops_at_the_limit():
    loops = "".join(f"{'    ' * depth}for a{depth} in range(1000):\n" for depth in range(1, 6))
    with pytest.raises(ProgramError, match="too many steps"):
        run(f"def solve(xs):\n{loops}{'    ' * 6}xs = xs\n    return xs", "solve", [])
    assert MAX_STEPS <= 100_000


PIECES = [*("xs", "ys", "zs", "return", "for", "in", "if", "sum", "len"), *"()[]:.,=+-*%<>12 ", "\n    ", "\n"]


@settings(max_examples=200)
@given(st.lists(st.sampled_from(PIECES), max_size=40))
def test_any_program_like_text_runs_or_is_refused(pieces):
    refused = None
    try:
        run("def solve(xs):\n    " + " ".join(pieces), "solve", [1, 2, 3])
    except ProgramError as error:
        refused = str(error)
    assert refused is None or refused.endswith(".")
