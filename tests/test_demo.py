"""The demonstration runs as a user runs it, in its smallest form."""

import pytest

from tropd import demo


@pytest.mark.slow
def test_the_demo_ends_in_a_table_a_rollout_and_a_model(tmp_path, capsys):
    code = demo.main(["--methods", "tropd", "--steps", "2", "--problems", "8", "--out", str(tmp_path)])
    shown = capsys.readouterr().out
    assert code == 0
    assert "student + tropd" in shown and "tokens written" in shown
    assert "<" in shown.split("A rollout of step")[1], "guidance tokens are marked"
    assert (tmp_path / "tropd" / "model.safetensors").is_file()


def test_every_token_is_shown_with_its_region():
    assert demo._shown({"text": "7", "region": "outlier"}, colour=False) == "[7]"
    assert demo._shown({"text": "7", "region": "trust"}, colour=True) == "\033[32m7\033[0m"
