"""A run of several ranks fails by its workers' words, and is repeated for one cause alone."""

import pytest

from torchrun import words_of, written_by

GLOO = "terminate called after throwing an instance of 'gloo::EnforceNotMet'\\n  what():  [enforce fail at "
LISTENER = f"{GLOO}/build/third_party/gloo/gloo/transport/tcp/listener.cc:63] false. accept: Too many open files\\n"
WORKER = """
import os, pathlib, sys
out = pathlib.Path(sys.argv[1])
if not out.name.endswith("-again"):
    sys.stderr.write("{said}")
    sys.stderr.flush()
    os.abort()
(out / "seen").touch()
"""


def test_what_gloos_transport_aborted_runs_again(tmp_path):
    (worker := tmp_path / "worker.py").write_text(WORKER.format(said=LISTENER))
    with pytest.warns(UserWarning, match="out, run again: .*accept: Too many open files"):
        out = written_by(1, worker, tmp_path / "out")
    assert out == tmp_path / "out-again" and (out / "seen").exists()


@pytest.mark.parametrize("said", ["free(): invalid pointer\\n", GLOO + "/gloo/gloo/allreduce.cc:9] false\\n"])
def test_another_abort_fails_with_the_workers_words(tmp_path, said):
    (worker := tmp_path / "worker.py").write_text(WORKER.format(said=said))
    with pytest.raises(
        pytest.fail.Exception, match=r"(?s)worker.py on 1 ranks ended with -6:.*(invalid pointer|false)"
    ):
        written_by(1, worker, tmp_path / "out")


def test_the_workers_words_come_without_torchruns_own_report():
    report = "E1130 01:47:17.2 1 torch/distributed/elastic/api.py:9] failed (exitcode: -6)\n  exitcode  : -6 (pid: 2)\n"
    assert words_of(f"RuntimeError: boom\n{report}") == "RuntimeError: boom\n\nexit codes of the ranks: -6"
