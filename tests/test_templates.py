"""A chat template that does not end, or asks for all memory, is stopped with a sentence, and nothing else changes."""

import resource
import signal

import pytest

from training import tiny
from tropd.models import chat_templates as templates
from tropd.models.chat_templates import TemplateStopped, render

ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
BOMB = (
    "{% set ns = namespace(x='abcdefgh') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}"
)
ASKED = [{"role": "user", "content": "ab"}]


def with_template(text):
    tokenizer = tiny._tokenizer("abcdef:;u")
    tokenizer.chat_template = text
    return tokenizer


def state():
    return (
        signal.getsignal(signal.SIGVTALRM),
        signal.getitimer(signal.ITIMER_VIRTUAL),
        resource.getrlimit(resource.RLIMIT_AS),
    )


@pytest.mark.parametrize(
    ("template", "said"),
    [
        (ENDLESS, r"was stopped after 0 s without an end\."),
        (BOMB, r"exceeds the available resources \(MemoryError\)"),
        ("{% for a in range(10**9) %}{% endfor %}", r"exceeds the available resources \(OverflowError: Range too big"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", r"exceeds the available resources \(RecursionError"),
    ],
    ids=["no end", "memory", "range", "recursion"],
)
def test_a_template_that_goes_too_far_is_stopped(monkeypatch, template, said):
    monkeypatch.setattr(templates, "SECONDS", 0.3 if template == ENDLESS else 60)
    monkeypatch.setattr(templates, "MEMORY", 2**28)
    before = state()
    with pytest.raises(TemplateStopped, match=rf"^the chat template of the tokenizer {said}.*Correct it"):
        render(with_template(template), ASKED, tokenize=False)
    assert state() == before


def test_what_ends_is_rendered_as_ever_and_nothing_is_left_behind():
    before, tokenizer = state(), with_template(tiny.CHAT_TEMPLATE)
    for asked in (ASKED, [ASKED, ASKED]):
        assert render(tokenizer, asked, tokenize=False) == tokenizer.apply_chat_template(asked, tokenize=False)
    assert state() == before


@pytest.mark.usefixtures("signals_of_a_terminal")
def test_ctrl_c_stops_a_template_at_once(monkeypatch):
    """What the handler of SIGINT raises inside a rendering leaves it."""
    monkeypatch.setattr(templates, "SECONDS", 60)

    def interrupt(number, frame):
        signal.raise_signal(signal.SIGINT)

    before = signal.signal(signal.SIGPROF, interrupt)
    try:
        signal.setitimer(signal.ITIMER_PROF, 0.2)
        with pytest.raises(KeyboardInterrupt):
            render(with_template(ENDLESS), ASKED, tokenize=False)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
