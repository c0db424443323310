"""Tools and environments by name: found, told to chat templates, and refused in words."""

import pytest
from datasets import Dataset

from tropd.data import load_prompts
from tropd.run.tools import check_rows_of_tools, find_tools

MODULE = '''
def add(a: int, b: int) -> int:
    """Add.

    Args:
        a: first
        b: second
    """
    return a + b


def bare(a):
    return a


class Store:
    """A store."""

    def reset(self, **row):
        self.left = 3

    def take(self, count: int) -> str:
        """Take some.

        Args:
            count: how many
        """
        return "ok"

    def get_reward(self) -> float:
        return 1.0

    def _hidden(self):
        pass


class Shop(Store):
    def ask(self, what: str) -> str:
        """Ask.

        Args:
            what: for what
        """
        return "no"


class NoReset:
    pass


class Unjudged(Store):
    get_reward = None
'''
ASK = [{"role": "user", "content": "a"}]


@pytest.fixture
def module(tmp_path, monkeypatch):
    (tmp_path / "own_tools.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


def names(schemas):
    return [schema["function"]["name"] for schema in schemas]


def test_functions_and_methods_are_told_row_by_row(module):
    found = find_tools(["own_tools.add"], {"store": "own_tools.Store", "shop": "own_tools.Shop"})
    rows = found.told([{"prompt": ASK, "environment": "store"}, {"prompt": ASK, "environment": "shop"}])
    assert [names(row["tools"]) for row in rows] == [["add", "take"], ["add", "ask", "take"]]
    assert set(found.environments) == {"store", "shop"} and found.functions[0](1, 2) == 3
    (row,) = find_tools([], "own_tools.Store").told([{"prompt": ASK}])
    assert names(row["tools"]) == ["take"]


def test_without_any_rows_stay_as_they_are(module):
    assert find_tools([], None).told([{"prompt": "a"}]) == [{"prompt": "a"}] and not find_tools([], None).are_there


@pytest.mark.parametrize(
    ("tools", "environment", "message"),
    [
        (["own_tools.subtract"], None, "tools has 'own_tools.subtract', but module 'own_tools' has no attribute"),
        (["add"], None, "tools has 'add', but Empty module name"),
        (["own_tools.bare"], None, "tools has 'own_tools.bare', of which no schema can be made: .* Give it type hints"),
        ([], "own_tools.NoReset", "environment is 'own_tools.NoReset', which has no method `reset`"),
        ([], "own_tools.Unjudged", "environment is 'own_tools.Unjudged', whose `get_reward` is not a method"),
    ],
)
def test_what_is_no_tool_is_refused(module, tools, environment, message):
    with pytest.raises(ValueError, match=message):
        find_tools(tools, environment)


@pytest.mark.parametrize(
    ("row", "environment", "message"),
    [
        ({"prompt": "a"}, "own_tools.Store", "the prompts are text, .* chat: true"),
        ({"prompt": ASK, "tools": "[]"}, "own_tools.Store", "the data also has a column 'tools'"),
        ({"prompt": ASK, "environment": "mine"}, {"a": "own_tools.Store"}, "row 0 .* has 'mine' in its column"),
    ],
)
def test_rows_that_tools_cannot_go_with_are_refused(module, tmp_path, row, environment, message):
    Dataset.from_list([row]).to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match=message):
        check_rows_of_tools(find_tools([], environment), load_prompts(str(tmp_path / "rows.parquet")))
