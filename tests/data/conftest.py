"""Small files to load, and what their refusals say."""

import json

import pytest

from tropd.data import load_prompts


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes a file into an empty current folder: text or bytes as they are, a list as JSON Lines. Returns its name."""
    monkeypatch.chdir(tmp_path)

    def write(name, content):
        if isinstance(content, list):
            content = "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return name

    return write


@pytest.fixture
def refused():
    """The sentence with which a source is refused."""

    def refused(source, load=load_prompts, **options):
        with pytest.raises(ValueError) as caught:
            load(source, **options)
        return str(caught.value)

    return refused
