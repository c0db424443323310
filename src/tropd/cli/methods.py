"""`tropd methods`: what each method does to trusted, outlier and prefix tokens, and its settings."""

import argparse
import json
from dataclasses import fields

from ..objective.methods import METHODS, SETTINGS, Method, describe, get_method
from . import console

HELP = "list the methods, or explain one"

DESCRIPTION = """\
List the methods, or explain one.

The method's gate decides from r = log π_T − log π_S of a student token whether it is trusted or an outlier
(natural logs; ρ = e^r). K1 is the reverse-KL policy gradient with advantage r. τ is in nats of r.
"""

EPILOG = """\
examples:
  tropd methods            the table
  tropd methods tropd      one method, with every setting and its default
  tropd methods --json     for programs
  tropd methods my_methods:CAUTIOUS    one of your own, in my_methods.py (docs/add_a_method.md)
"""

_GATES = {
    "open": "everywhere",
    "closed": "",
    "bernoulli": "where u < min(ρ, 1)",
    "expected": "weighted by min(ρ, 1)",
    "hard": "where r > {m.outlier_tau:g}",
    "floor": "where r ≥ {m.outlier_tau:g}",
    "student_entropy": "on the {m.entropy_share:.0%} of highest student entropy",
    "teacher_entropy": "where H_T ≤ {m.teacher_entropy_tau:g}",
    "support": "on {whose} top-{m.fkl_top_k}",
}
_SUPPORTS = {"teacher": "the teacher's", "union": "both models'"}
_TRUST = {"k1": "K1", "jsd": "hybrid JSD", "gkd": "full-vocabulary divergence", "rkl_direct": "reverse KL"}
_ADVANTAGES = {
    "log_ratio": "",
    "mixture": " with log({m.advantage_alpha:g} ρ + 1 − {m.advantage_alpha:g})",
    "power": " with π_T^{m.advantage_alpha:g} − π_S^{m.advantage_alpha:g}",
    "sign": " with the sign of r",
}
_SCALES = {"none": "", "total_variation": ", scaled by the total variation,"}
_BASELINES = {"none": "", "full": " less its mean", "top_k": " minus its mean on the top-k"}
_OUTLIERS = {
    "fkl_direct": "top-{m.fkl_top_k} forward KL",
    "fkl_scalar": "top-{m.fkl_top_k} forward KL as an advantage",
    "rkl_direct": "reverse KL on the teacher's top-{m.fkl_top_k}, its tail clipped at {m.outlier_tau:g}",
    "mask": "nothing",
    "clip": "K1 with max(r, {m.outlier_tau:g})",
    "k1": "K1",
    "k1_and_fkl": "K1 and top-{m.fkl_top_k} forward KL",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("method", nargs="?", help="a method to explain")
    parser.add_argument("--json", action="store_true", help="print the settings as JSON")


def run(options: argparse.Namespace) -> int:
    if options.json:
        chosen = [get_method(options.method)] if options.method else METHODS.values()
        console.out().print_json(json.dumps({method.name: describe(method) for method in chosen}, ensure_ascii=False))
    elif options.method:
        _explain(get_method(options.method))
    else:
        _table()
    return 0


def trust_words(method: Method) -> str:
    """What trusted tokens are learned by, such as `K1 where r > -2`."""
    if method.gate == "closed":
        return "–"
    where = (
        "everywhere" if _adds_to_k1(method) else _GATES[method.gate].format(m=method, whose=_SUPPORTS[method.support])
    )
    floor = "" if method.advantage_floor is None else f"with max(r, {method.advantage_floor:g}) "
    advantage = _ADVANTAGES[method.advantage].format(m=method) + _SCALES[method.advantage_scale]
    words = f"{_TRUST[method.trust]}{advantage}{_BASELINES[method.baseline]} {floor}{where}"
    later = method.second_stage
    return words if later is None else f"{words}, then {trust_words(later)}"


def outlier_words(method: Method) -> str:
    """What the other student tokens are learned by."""
    if method.gate == "open":
        return "–"
    if _adds_to_k1(method):
        return f"and top-{method.fkl_top_k} forward KL where H_T > {method.teacher_entropy_tau:g}"
    return _OUTLIERS[method.outlier].format(m=method)


def _adds_to_k1(method: Method) -> bool:
    """EOPD: K1 is on both sides of the gate."""
    return (method.gate, method.trust, method.outlier) == ("teacher_entropy", "k1", "k1_and_fkl")


def guidance_words(method: Method) -> str:
    """What the tokens of a teacher prefix are learned by."""
    if not method.guided:
        return "–"
    term = "NLL" if method.guidance_term == "nll" else "K1 with log π_S − log π_T"
    return f"{method.guidance_beta:g} · {term}, {method.guidance_schedule}, {method.guidance_length}"


def _table() -> None:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("method", "trusted tokens", "outliers", "teacher prefix"):
        table.add_column(column, overflow="fold")
    for method in METHODS.values():
        table.add_row(method.name, trust_words(method), outlier_words(method), guidance_words(method))
    screen = console.out()
    screen.print(table, soft_wrap=False)
    screen.print("\nr = log π_T − log π_S of the sampled token, ρ = e^r, u uniform in [0, 1]; K1: policy gradient with")
    screen.print(
        "advantage r. `tropd methods tropd` explains one; METHODS and get_method in tropd are the same in Python."
    )


def _explain(method: Method) -> None:
    screen = console.out()
    screen.print(f"[bold]{method.name}[/bold]: {method.summary}\n({method.source})\n")
    for what, words in (
        ("trusted tokens", trust_words(method)),
        ("outliers", outlier_words(method)),
        ("teacher prefix", guidance_words(method)),
    ):
        screen.print(f"  {what:<16}{words}")
    screen.print("\n[bold]settings[/bold] (change one with --setting value; one without effect is refused)")
    for field in fields(method):
        value = getattr(method, field.name)
        if field.name in SETTINGS and value is not None:
            screen.print(f"  {field.name:<22}{value}")
