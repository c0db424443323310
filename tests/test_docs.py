"""The documentation runs, and says what the code says.

Every ```python block of README.md and docs/*.md runs, in the order of its page and in one namespace for each page. What
it prints is compared where a ```text block follows directly. A block is left alone if the line before its fence is
`<!-- not run: reason -->`.
"""

import contextlib
import importlib
import io
import logging
import re
import subprocess
from dataclasses import MISSING, dataclass, fields
from pathlib import Path

import pytest

from tropd.objective.methods import METHODS, SETTINGS, Method

ROOT = Path(__file__).resolve().parents[1]
DOCS = sorted(ROOT.glob("docs/**/*.md"))
PAGES = [*ROOT.glob("README.md"), *sorted(ROOT.glob("docs/*.md"))]
SKIPPED_FOLDERS = {".git", ".venv", "shared", "runs", "outputs", "build", "dist"}


def by_name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


# ---------------------------------------------------------------------- code blocks


@dataclass(frozen=True)
class Block:
    """A ```python block: where its code starts, the code, and what it should print (`None`: not compared)."""

    line: int
    code: str
    printed: str | None


def python_blocks(text: str) -> list[Block]:
    """The blocks of a page that run.

    >>> python_blocks("```python\\nprint(1)\\n```\\n\\n```text\\n1\\n```")
    [Block(line=1, code='print(1)', printed='1')]
    >>> python_blocks("<!-- not run: needs a GPU -->\\n```python\\nprint(1)\\n```")
    []
    """
    lines = text.splitlines()
    found, number = [], 0
    while number < len(lines):
        language = re.fullmatch(r"```(\w*)\s*", lines[number])
        if language is None:
            number += 1
            continue
        end = lines.index("```", number + 1)
        excused = number > 0 and re.match(r"<!-- not run: \w", lines[number - 1])
        if language[1] == "python" and not excused:
            found.append(Block(number + 1, "\n".join(lines[number + 1 : end]), _printed_after(lines, end)))
        number = end + 1
    return found


def _printed_after(lines: list[str], end: int) -> str | None:
    following = end + 1
    while following < len(lines) and not lines[following].strip():
        following += 1
    if following == len(lines) or lines[following] != "```text":
        return None
    return "\n".join(lines[following + 1 : lines.index("```", following + 1)])


@pytest.fixture
def methods_as_they_were():
    """What a page registers is of that page alone."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.usefixtures("methods_as_they_were")
@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_python_block_runs_and_prints_what_the_page_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "__docs__"}
    for block in python_blocks(page.read_text(encoding="utf-8")):
        # Blank lines in front, so that a traceback shows the line of the page.
        code = compile("\n" * block.line + block.code, str(page), "exec")
        output = io.StringIO()
        with contextlib.redirect_stdout(output):
            exec(code, namespace)
        assert logging.root.manager.disable == logging.NOTSET, f"{by_name(page)} silences what comes after it"
        if block.printed is not None:
            assert output.getvalue().rstrip() == block.printed, f"{by_name(page)}, the block at line {block.line}"


def test_a_block_runs_unless_a_reason_is_given():
    block = "```python\na = {}\n```\n"
    excused, unexcused = "<!-- not run: needs a GPU -->\n", "<!-- not run: -->\n"
    page = block.format(1) + excused + block.format(2) + unexcused + block.format(3)
    assert [block.code for block in python_blocks(page)] == ["a = 1", "a = 3"]


def test_output_is_compared_only_where_it_follows_directly():
    page = "```python\nprint(1)\n```\n\n```text\n1\n```\n```python\nprint(2)\n```\nwords\n```text\n3\n```"
    assert [block.printed for block in python_blocks(page)] == ["1", None]


# ---------------------------------------------------------------------- tables


def test_the_page_of_metrics_holds_the_table_of_the_code():
    from tropd.training.logging.metrics import as_markdown

    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    table = page[page.index("| metric |") :]
    assert table == as_markdown(), "docs/metrics.md says how to make its table again"


def method_rows() -> dict[str, list[str]]:
    """Cells of each row of the table of methods, by the method's name."""
    page = (ROOT / "docs/equations.md").read_text(encoding="utf-8")
    table = page[page.index("| method | trust tokens |") :].split("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    return {row[0].strip("`"): row for row in rows}


def test_the_table_of_methods_covers_exactly_the_methods():
    assert list(method_rows()) == list(METHODS)


@pytest.mark.parametrize("name", METHODS)
def test_the_table_of_methods_gives_every_setting(name):
    written = dict(re.findall(r"`(\w+)=([^`]+)`", method_rows()[name][-1]))
    assert written == {key: str(value) for key, value in settings_of(METHODS[name]).items()}


@pytest.mark.parametrize("name", METHODS)
def test_the_table_of_methods_says_which_are_guided(name):
    term = {"nll": "β NLL", "k1": "β A"}[METHODS[name].guidance_term]
    assert method_rows()[name][3] == (term if METHODS[name].guided else "no")


def settings_of(method: Method) -> dict[str, object]:
    """What differs from the plain defaults, the second stage's where the first has none."""
    plain = {field.name: None if field.default is MISSING else field.default for field in fields(Method)}
    found: dict[str, object] = {}
    for stage in filter(None, (method, method.second_stage)):
        for name in SETTINGS:
            if getattr(stage, name) != plain[name]:
                found.setdefault(name, getattr(stage, name))
    return found


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize("page", PAGES, ids=by_name)
def test_every_import_path_that_is_named_exists(page):
    for path in sorted(set(re.findall(r"`(tropd(?:\.\w+)+)`", page.read_text(encoding="utf-8")))):
        module, _, name = path.rpartition(".")
        try:
            importlib.import_module(path)
        except ModuleNotFoundError:
            assert hasattr(importlib.import_module(module), name), f"{by_name(page)} names {path}"


@pytest.mark.parametrize("page", DOCS, ids=by_name)
def test_every_test_that_is_named_exists(page):
    defined = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^ *def (test_\w+)", path.read_text(encoding="utf-8"), re.MULTILINE)
    }
    named = set(re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")))
    assert named <= defined, f"{by_name(page)} names tests that are gone: {sorted(named - defined)}"


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "metrics.md"], ids=by_name)
def test_every_metric_that_is_named_is_logged(page):
    from tropd.training.logging.metrics import METRICS

    families = "|".join(sorted({name.split("/")[0] for name in METRICS}))
    named = set(re.findall(rf"`((?:{families})/\w+)`", page.read_text(encoding="utf-8")))
    assert named <= METRICS.keys(), f"{by_name(page)} names unknown metrics: {sorted(named - METRICS.keys())}"


# ---------------------------------------------------------------------- links and paths


def markdown_files() -> list[Path]:
    return [path for path in sorted(ROOT.rglob("*.md")) if not SKIPPED_FOLDERS & set(path.relative_to(ROOT).parts)]


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", without_code(page.read_text(encoding="utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", markdown_files(), ids=by_name)
def test_relative_links_point_somewhere(page):
    text = without_code(page.read_text(encoding="utf-8"))
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), f"{by_name(page)} links to {target}, which is not there"
        if anchor and linked.suffix == ".md":
            assert anchor in anchors(linked), f"{by_name(page)} links to {target}; no heading there has this anchor"


MACHINE_PATH = re.compile(r"(?<![\w.])(?:~|/(?:home|root|work|tmp|Users|mnt|opt|data|scratch|usr|var))/[\w.]|[A-Z]:\\")


def documentation_files() -> list[Path]:
    """The tracked files under docs/ and the README; all of them where there is no git."""
    try:
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard", "docs", "README.md"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
    except (FileNotFoundError, subprocess.CalledProcessError):
        listed = [by_name(path) for path in (*ROOT.glob("docs/**/*"), *ROOT.glob("README.md")) if path.is_file()]
    return [ROOT / name for name in listed if (ROOT / name).is_file()]


@pytest.mark.parametrize("path", documentation_files(), ids=by_name)
def test_the_documentation_names_no_path_of_one_machine(path):
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        pytest.skip("not text")
    found = [f"line {n}: {line}" for n, line in enumerate(text.splitlines(), 1) if MACHINE_PATH.search(line)]
    assert not found, found
