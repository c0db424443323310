"""A plain log where there is no terminal, a bar where there is one."""

import io

import pytest
from rich.console import Console
from rich.text import Text

from tropd.cli import console


@pytest.fixture
def lines():
    """A plain progress whose clock is moved by hand."""
    said, now = [], [0.0]
    progress = console._Lines("work", 40, "rows", 0, print_line=said.append, clock=lambda: now[0])

    def do(count: int, seconds: float, note: str = "") -> list[str]:
        now[0] += seconds
        progress(count, note)
        return said

    return do


def test_the_first_unit_is_reported_with_the_time_left(lines):
    assert lines(1, 2.0) == ["work: 1/40 rows  1 min 18 s left"]


def test_a_plain_log_has_few_lines(lines):
    for _ in range(40):
        said = lines(1, 1.0)
    assert 10 <= len(said) <= 12 and said[-1] == "work: 40/40 rows  0 s left"


def test_a_slow_work_is_reported_each_minute(lines):
    lines(1, 1.0)
    assert len(lines(1, 59.0)) == 1
    assert len(lines(1, 59.0)) == 2


def test_a_note_stands_beside_the_count(lines):
    assert lines(1, 1.0, "loss 0.5") == ["work: 1/40 rows  loss 0.5  39 s left"]


def test_a_resumed_work_counts_its_time_from_where_it_goes_on():
    said, now = [], [0.0]
    progress = console._Lines("work", 40, "rows", 20, print_line=said.append, clock=lambda: now[0])
    now[0] = 10.0
    progress(10)
    assert said == ["work: 30/40 rows  10 s left"]


def test_a_terminal_gets_a_bar(monkeypatch):
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr(console, "err", lambda: terminal)
    with console.progress("work", 4, "rows") as advance:
        advance(4, "half [of] it")
    shown = screen.getvalue()
    assert "4/4" in shown and "half [of] it" in shown and "left" in shown


def test_no_colour_codes_reach_a_file(capsys):
    console.fail("a [bold]sentence[/bold] of the user's")
    console.warn("mind")
    assert capsys.readouterr().err == "error: a [bold]sentence[/bold] of the user's\nwarning: mind\n"


def test_what_a_file_or_a_model_brings_can_only_be_read(capsys):
    hostile = "a column '\x1b[2J\x1b]0;own\x07evil\u202eneg\x9b31m' of [bold]yours[/bold]\n\tsecond line"
    shown = r"a column '\x1b[2J\x1b]0;own\x07evil\u202eneg\x9b31m' of [bold]yours[/bold]" + "\n\tsecond line"
    for tell in (console.say, console.warn, console.fail):
        tell(hostile)
        assert capsys.readouterr().err.replace("        ", "\t").endswith(shown.replace("        ", "\t") + "\n")
    console.Screen().print(Text("x\x1b[2Jy", style="bold"))
    assert capsys.readouterr().out == "x\N{REPLACEMENT CHARACTER}[2Jy\n"
