"""The contract with Transformers: what the decoding loop stands on is there, and a sentence says so when it is not."""

import ast
import functools
import inspect

import pytest
from transformers.cache_utils import CacheLayerMixin

from tropd.rollout import addressed, decoding, plain, slot_cache
from tropd.rollout.slot_cache import SlotLayer
from tropd.training import decoding_host
from tropd.training.decoding_host import ANSWERED, CALLED, GIVEN, PREPARED, READ, check_decoding
from tropd.training.host import check_host

ADVICE = r", which tropd's decoding loop relies on .*Install transformers>=5\.17,<6"
LAYER = "cache_utils.CacheLayerMixin"


def test_the_installed_transformers_has_all_of_it():
    check_decoding()


def owner_of(path):
    owner, _, name = path.rpartition(".")
    return decoding_host._found(owner), name


@pytest.mark.parametrize("path", [*CALLED, *(f"{LAYER}.{name}" for name in ANSWERED)])
def test_a_method_that_is_gone_is_reported_by_name(path, monkeypatch):
    monkeypatch.setattr(*owner_of(path), None)
    with pytest.raises(RuntimeError, match=rf"^Transformers' {path} is gone{ADVICE}"):
        check_host()


@pytest.mark.parametrize("path", [path for path, names in CALLED.items() if names])
def test_a_parameter_that_is_gone_is_reported_by_name(path, monkeypatch):
    monkeypatch.setattr(*owner_of(path), lambda self, something_else=None: None)
    with pytest.raises(RuntimeError, match=rf"^Transformers' {path} no longer takes {', '.join(CALLED[path])}{ADVICE}"):
        check_decoding()


@pytest.mark.parametrize("name", ANSWERED)
def test_a_layer_that_is_asked_otherwise_is_reported(name, monkeypatch):
    monkeypatch.setattr(CacheLayerMixin, name, lambda self, cache_position: None)
    with pytest.raises(RuntimeError, match=rf"{name} takes \('cache_position',\) instead of .*{ADVICE}"):
        check_decoding()


def test_a_layer_that_is_asked_for_more_is_reported(monkeypatch):
    more = CacheLayerMixin.__abstractmethods__ | {"get_something"}
    monkeypatch.setattr(CacheLayerMixin, "__abstractmethods__", more)
    with pytest.raises(RuntimeError, match=rf"{LAYER} asks for get_something{ADVICE}"):
        check_decoding()


def test_our_layer_answers_with_the_parameters_of_the_contract():
    for name, expected in ANSWERED.items():
        assert tuple(inspect.signature(vars(SlotLayer)[name]).parameters)[1:] == expected


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, (_, names) in READ.items() for name in names])
def test_an_attribute_that_is_gone_is_reported_by_name(path, name, monkeypatch):
    read = decoding_host._found(path)

    class Moved(read):
        @functools.wraps(read.__init__)
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            self.made = True

        def __getattribute__(self, asked):
            if asked == name and "made" in super().__getattribute__("__dict__"):
                raise AttributeError(asked)
            return super().__getattribute__(asked)

    monkeypatch.setattr(*owner_of(path), Moved)
    with pytest.raises(RuntimeError, match=rf"^Transformers' {path} has no {name}{ADVICE}"):
        check_decoding()


@pytest.mark.parametrize("name", [*PREPARED, *GIVEN])
def test_what_generate_no_longer_sets_is_reported_by_name(name, monkeypatch):
    getsource = inspect.getsource
    monkeypatch.setattr(decoding_host.inspect, "getsource", lambda thing: getsource(thing).replace(name, f"{name}_2"))
    with pytest.raises(RuntimeError, match=rf"GenerationMixin no longer sets {name}{ADVICE}"):
        check_decoding()


def test_the_contract_names_everything_private_that_the_loop_reads():
    """Attributes with an underscore, of anything but our own objects, `_sample` aside: that is the host's contract."""
    named = {path.rpartition(".")[2] for path in CALLED} | {*PREPARED}
    for module in (addressed, decoding, plain, slot_cache):
        assert private_names(module) - named <= {"_sample"}, module.__name__


def private_names(module):
    """Those that are written out, and those that `getattr` is asked for."""
    names = set()
    for node in ast.walk(ast.parse(inspect.getsource(module))):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") not in ("self", "mine"):
            names.add(node.attr)
        elif isinstance(node, ast.Call) and getattr(node.func, "id", "") == "getattr":
            names.add(getattr(node.args[1], "value", ""))
    return {name for name in names if str(name).startswith("_") and not str(name).endswith("__")}
