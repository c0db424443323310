"""Inside of the sandbox: are two mathematical expressions equal? math-verify decides, without its own clock."""

import json
import sys

TYPICAL = (
    *(r"\frac{1}{2}", r"(3,\frac{\pi}{2})", r"x^2+2x-5", r"x=25", r"\sqrt{13}+3\sqrt[3]{2}", r"[-2,7)"),
    *(r"10\%", "12,33"),
    *(r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"(-\infty,3)\cup(5,\infty)", r"\{1,2\}", r"33^\circ", r"3+4i", r"5!"),
    *(r"\text{Evelyn}", r"\log_2 x", r"|x-1|\le 2", r"2\sin\theta", r"\binom{5}{2}", r"\dfrac{3\sqrt{2}}{4}\text{ cm}"),
)


def learn_grammar() -> None:
    """Let the parser, which learns while it parses, see what answers look like; each program then begins with that."""
    import logging

    from math_verify import LatexExtractionConfig, parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its clock is off, as we want it
    for text in TYPICAL:
        read = parse(f"\\boxed{{{text}}}", [LatexExtractionConfig()], parsing_timeout=None)
        verify(read, read, timeout_seconds=None)


def answer_question() -> None:
    """Read {"gold", "answer"} from standard input and write {"equal"}; an answer that cannot be read equals nothing."""
    from math_verify import LatexExtractionConfig, parse, verify

    question = json.load(sys.stdin)
    gold, answer = (
        parse(f"\\boxed{{{question[name]}}}", [LatexExtractionConfig()], parsing_timeout=None)
        for name in ("gold", "answer")
    )
    equal = bool(gold) and bool(answer) and verify(gold, answer, timeout_seconds=None)
    json.dump({"equal": bool(equal), "gold_read": bool(gold)}, sys.stdout)
