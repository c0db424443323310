"""A teacher behind a real vLLM on a CPU: its scores, the training, a kill, another model. `make test-vllm` runs it."""

import importlib.util
import threading

import pytest
import torch
from transformers import AutoModelForCausalLM

from real_vllm.server import Vllm, save_model
from teacher.test_served import settings
from training import tiny
from training.test_served_teacher import logged, regions, trained
from tropd.objective.randomness import DrawAddress
from tropd.teacher.local import LocalTeacher, TopKRequest
from tropd.teacher.served.connect import connect
from tropd.teacher.served.http import ServerRefused

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two random models with one tokenizer."""
    return [save_model(tmp_path_factory.mktemp("teacher"), seed) for seed in (5, 6)]


@pytest.fixture(scope="module")
def server(folders, tmp_path_factory):
    made = Vllm(tmp_path_factory.mktemp("log") / "vllm.log")
    made.start(folders[0])
    try:
        made.wait()
        yield made
    finally:
        made.kill()


def found(server, own=None):
    patient = settings(teacher_timeout=300.0, teacher_patience=600.0, teacher_concurrency=8)
    return connect(server.url, patient, student_tokenizer=own or tiny.tokenizer(), student_rows=72)


def texts(count=24):
    torch.manual_seed(0)
    contexts = [torch.randint(4, 50, (3 + n % 5,)).tolist() for n in range(count)]
    responses = [[*torch.randint(4, 64, (5 + 3 * n,)).tolist(), (30, tiny.EOS)[n % 2]] for n in range(count)]
    return contexts, responses, [[True] * len(response) for response in responses]


@pytest.mark.parametrize("is_lean", [True, False])
@pytest.mark.parametrize("endings", [(), (tiny.EOS, 30)])
def test_it_says_what_the_same_weights_say_here(server, folders, endings, is_lean):
    connected = found(server, own := tiny.tokenizer())
    assert connected.teacher._is_lean
    connected.teacher._is_lean = is_lean
    assert connected.tokenizer is not own and connected.teacher.vocab_size == tiny.VOCABULARY_ROWS
    request = TopKRequest(32, 64, lambda logp, entropy, tokens: torch.ones_like(logp, dtype=torch.bool))
    ours, theirs = (
        teacher.score(*texts(), pad_id=0, topk=request, endings=endings)
        for teacher in (LocalTeacher(AutoModelForCausalLM.from_pretrained(folders[0])), connected.teacher)
    )
    torch.testing.assert_close(theirs.logp, ours.logp, atol=1e-4, rtol=0)
    if not endings:
        torch.testing.assert_close(theirs.topk_logp, ours.topk_logp, atol=1e-4, rtol=0)
        assert (theirs.topk_ids == ours.topk_ids).float().mean() > 0.99  # near ties may change places


def test_its_draws_belong_to_the_rows_seeds(server):
    teacher, contexts = found(server).teacher, texts()[0]
    asked = {"pad_id": 0, "eos_ids": [tiny.EOS], "max_new_tokens": 16, "temperature": 1.0}
    rows = tuple(range(len(contexts)))
    once = teacher.write(contexts, draws=DrawAddress(0, 1, 4, rows), **asked)
    again = teacher.write(contexts[::-1], draws=DrawAddress(0, 1, 4, rows[::-1]), **asked)[::-1]
    assert once == again and len({tuple(written) for written in once}) > len(once) // 2


def test_a_run_is_the_one_with_the_model_here_though_the_server_is_killed_and_restarted(server, folders, tmp_path):
    here = trained(tmp_path / "here", AutoModelForCausalLM.from_pretrained(folders[0]))
    calls = []

    def kill_in_the_fifth_step(trainer):
        score = trainer.teachers.only.score

        def restart():
            server.kill()
            server.start(folders[0])

        def watched(*texts, **options):
            calls.append(texts)
            if len(calls) == 5:
                threading.Timer(0.01, restart).start()
            return score(*texts, **options)

        trainer.teachers.only.score = watched

    there = trained(tmp_path / "there", server.url, prepare=kill_in_the_fifth_step)
    assert len(calls) == 12 and logged(there) == pytest.approx(logged(here), abs=1e-5)
    assert regions(tmp_path / "there") == regions(tmp_path / "here")


def test_another_model_behind_the_address_is_refused(server, folders):
    teacher = found(server).teacher
    teacher.score(*texts(2), pad_id=0)
    server.kill()
    server.start(folders[1])
    with pytest.raises(ServerRefused, match="a different model than"):
        teacher.score(*texts(2), pad_id=0)
