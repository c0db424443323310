"""A teacher behind `tropd serve`: bit for bit the one in this process, and what is refused at both ends."""

import http.client
import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load, save

from serving import Server
from teacher.test_served import settings
from training import tiny
from tropd.objective.methods import get_method
from tropd.objective.randomness import DrawAddress
from tropd.rollout.engine.noise import AddressedNoise, decoding_through
from tropd.teacher.local import LocalTeacher, TopKRequest
from tropd.teacher.served import http as asking
from tropd.teacher.served.connect import check_served, connect
from tropd.teacher.served.http import ServerRefused
from tropd.teacher.served.tensors import (
    SCORE,
    WRITE,
    ScoreQuestion,
    read_question,
    read_tensors,
    write_question,
)
from tropd.teacher.teachers import Teachers

FIELDS = ("logp", "entropy", "topk_index", "topk_ids", "topk_logp")


def connected(*servers, url=None, **changes):
    address = url or ",".join(server.url for server in servers)
    return connect(address, settings(**changes), student_tokenizer=tiny.tokenizer(), student_rows=64)


def texts(count=7):
    torch.manual_seed(0)
    contexts = [torch.randint(4, 50, (1 + n % 5,)).tolist() for n in range(count)]
    responses = [[*torch.randint(4, 64, (2 + 3 * n,)).tolist(), (30, tiny.EOS)[n % 2]] for n in range(count)]
    return contexts, responses, [[n != 1 for n in range(len(response))] for response in responses]


def few(k=4, limit=56, **hints):
    return TopKRequest(k, limit, lambda logp, entropy, tokens: logp < -3, **hints)


@pytest.fixture(scope="module")
def model():
    return tiny.qwen(3)


@pytest.fixture(scope="module")
def server(model):
    with Server(model) as one:
        yield one


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("endings", [(), (tiny.EOS, 30)])
@pytest.mark.parametrize("rows_per_pass", [None, 3])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_it_says_bit_for_bit_what_the_same_model_says_in_this_process(
    server, model, temperature, rows_per_pass, endings
):
    asked = {"pad_id": 0, "temperature": temperature, "rows_per_pass": rows_per_pass, "endings": endings}
    count = sum(map(sum, texts()[2]))
    hints = [{}, {"below": lambda: torch.full((count,), -2.9)}, {"below": lambda: torch.full((count,), -4.0)}]
    teacher, local = connected(server).teacher, LocalTeacher(model)
    for hint in hints:  # the last is wrong: what it leaves out is asked for once more
        theirs, ours = teacher.score(*texts(), topk=few(**hint), **asked), local.score(*texts(), topk=few(), **asked)
        assert 3 <= len(ours.topk_index) < count
        for name in FIELDS:
            assert getattr(theirs, name).dtype == getattr(ours, name).dtype or name == "topk_index"
            assert torch.equal(getattr(theirs, name), getattr(ours, name)), name
    theirs, ours = teacher.score(*texts(), **asked), local.score(*texts(), **asked)
    assert all(torch.equal(getattr(theirs, name), getattr(ours, name)) for name in FIELDS)


@pytest.mark.parametrize("changes", [{"rows": 56}, {"dtype": torch.bfloat16}], ids=["lacks_ids", "bfloat16"])
def test_a_model_that_lacks_ids_or_is_of_half_precision_says_the_same_too(changes):
    model = tiny.qwen(3, rows=changes.get("rows", 64)).to(changes.get("dtype", torch.float32))
    ours = LocalTeacher(model).score(*texts(), pad_id=0, topk=few(limit=50))
    with Server(model) as server:
        theirs = connected(server).teacher.score(*texts(), pad_id=0, topk=few(limit=50))
    assert all(torch.equal(getattr(theirs, name), getattr(ours, name)) for name in FIELDS)
    assert ours.logp.isneginf().any() == ("rows" in changes)


def test_what_is_not_needed_is_not_sent(server, monkeypatch):
    sizes = []
    read = asking.Client._read
    monkeypatch.setattr(asking.Client, "_read", lambda *a: sizes.append(len(raw := read(*a))) or raw)
    teacher, count = connected(server).teacher, sum(map(sum, texts()[2]))
    below = torch.full((count,), -torch.inf)
    below[::10] = torch.inf
    sizes.clear()
    teacher.score(*texts(), pad_id=0, topk=TopKRequest(50, 64, lambda *_: below > 0, lambda: below))
    many = len(below[::10])
    assert len(sizes) == 1 and sizes[0] < 500 + 8 * count + many * (4 + 8 * 50)


def test_several_teachers_tell_each_server_the_bounds_of_its_own_tokens(server, model):
    torch.manual_seed(1)
    contexts, responses, marks = texts(6)
    below = torch.randn(sum(map(sum, marks))) - 3
    topk = TopKRequest(4, 64, lambda logp, entropy, tokens: logp <= below[tokens], lambda: below)
    names = ["a", "b"] * 3
    here = Teachers({"a": LocalTeacher(model), "b": LocalTeacher(model)}, {})
    there = Teachers({"a": connected(server).teacher, "b": LocalTeacher(model)}, {})
    ours, theirs = (one.score(names, contexts, responses, marks, pad_id=0, topk=topk) for one in (here, there))
    assert len(ours.topk_index) > 3
    assert all(torch.equal(getattr(theirs, name), getattr(ours, name)) for name in FIELDS)


def test_replicas_share_the_questions(server, model):
    with Server(model) as other:
        teacher = connected(server, other).teacher
        found = teacher.score(*texts(), pad_id=0, rows_per_pass=1, topk=few())
    ours = LocalTeacher(model).score(*texts(), pad_id=0, rows_per_pass=1, topk=few())
    assert all(torch.equal(getattr(found, name), getattr(ours, name)) for name in FIELDS)
    assert len(teacher.client._idle) == 2


def test_it_writes_what_the_model_writes_here_with_the_same_draws(server, model):
    contexts = texts()[0]
    noise = AddressedNoise(5, 2, 4, [(row, 0) for row in range(3, 3 + len(contexts))])
    asked = {"pad_id": 0, "eos_ids": [tiny.EOS], "max_new_tokens": 9, "temperature": 0.9, "vocab_limit": 60}
    with decoding_through(model, noise):
        ours = LocalTeacher(model).write(contexts, **asked)
    teacher = connected(server).teacher
    assert teacher.write(contexts, draws=noise.address, **asked) == ours and len(set(map(tuple, ours))) > 3
    assert noise.address == DrawAddress(5, 2, 4, tuple(range(3, 10)))
    assert len(teacher.write(contexts, **asked)) == len(contexts)


def test_the_model_is_told_and_its_fingerprint_is_the_one_it_has_here(server, model):
    found = connected(server)
    teacher, local = found.teacher, LocalTeacher(model)
    assert teacher.fingerprint() == local.fingerprint() and teacher.vocab_size == local.vocab_size
    assert teacher.name == "some/teacher" and teacher.most_topk is None
    assert found.files("x").context_length == local.context_length
    assert teacher.generation_config.eos_token_id == [tiny.EOS]


def test_a_plain_address_finds_out_what_is_there(server):
    assert type(connected(url=server.url.replace("tropd://", "http://")).teacher) is type(connected(server).teacher)


# ---------------------------------------------------------------------- faults and refusals


def test_another_model_behind_the_address_after_a_restart_is_refused_and_the_same_one_is_not(model):
    with Server(model) as server:
        teacher = connected(server).teacher
        before = teacher.score(*texts(), pad_id=0)
        server.stop()
        server.start()
        assert torch.equal(teacher.score(*texts(), pad_id=0).logp, before.logp)
        server.stop()
        server.model = tiny.qwen(4)
        server.start()
        with pytest.raises(ServerRefused, match="a different model than"):
            teacher.score(*texts(), pad_id=0)
        asked = {"pad_id": 0, "eos_ids": [2], "max_new_tokens": 2, "temperature": 1.0}
        with pytest.raises(ServerRefused, match="a different model than"):
            teacher.write([[5]], **asked)


def test_the_key_is_asked_for_everywhere_and_never_shown(model, monkeypatch):
    with Server(model, key="sk-123") as server:
        with pytest.raises(ServerRefused, match="it requires a key"):
            connected(server)
        monkeypatch.setenv("TROPD_TEACHER_API_KEY", "sk-124")
        with pytest.raises(ServerRefused, match="the key in the environment is wrong") as raised:
            connected(server)
        assert "sk-" not in str(raised.value)
        for path in ("/tokenize", SCORE, WRITE, "/v1/models"):
            assert answer_of(server, path, b"{}", "GET" if "models" in path else "POST")[0] == 401
        monkeypatch.setenv("TROPD_TEACHER_API_KEY", "sk-123")
        assert connected(server).teacher.score(*texts(2), pad_id=0).logp.isfinite().all()


def answer_of(server, path, body, method="POST"):
    connection = http.client.HTTPConnection("127.0.0.1", server._port, timeout=20)
    connection.request(method, path, body)
    response = connection.getresponse()
    found = response.status, response.read()
    connection.close()
    return found


def question(**changes):
    fields = {"contexts": [[1, 2]], "responses": [[3, 4]], "scored": [[True, False]], "below": torch.zeros(1)}
    fields |= {"above": 0.0, "k": 2, "vocab_limit": 60, "pad_id": 0, "temperature": 1.0, "endings": ()}
    return ScoreQuestion(**fields | changes)


def test_a_question_arrives_as_it_was_sent():
    sent = question(contexts=[[1], [2, 3]], responses=[[], [4, 5]], scored=[[], [True, True]], below=torch.rand(2))
    found = read_question(write_question(sent))
    assert torch.equal(found.below, sent.below)
    assert vars(found) | {"below": 0} == vars(sent) | {"below": 0}


def changed(**tensors):
    return save(load(write_question(question())) | tensors)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "truncated, or not a message"),
        (b"{}", "truncated, or not a message"),
        (b"\xff" * 500, "truncated, or not a message"),
        (write_question(question())[:-1], "truncated, or not a message"),
        (changed(more=torch.zeros(1)), "a different kind or release"),
        (changed(below=torch.zeros(1, dtype=torch.float64)), "a different kind or release"),
        (changed(below=torch.zeros(2)), "one bound for each scored token"),
        (changed(ids=torch.tensor([1, 2, -3, 4], dtype=torch.int32)), "numbers out of range"),
        (changed(ids=torch.tensor([1, 2, 3], dtype=torch.int32)), "does not match the lengths"),
        (changed(context_lengths=torch.tensor([0], dtype=torch.int32)), "one context and one response each"),
        (changed(numbers=torch.tensor([9, 2, 60, 0])), "version 9"),
        (changed(numbers=torch.tensor([1, 61, 60, 0])), "numbers out of range"),
        (changed(numbers=torch.tensor([1, 65, 66, 0])), "64 entries"),
        (changed(numbers=torch.tensor([1, 2, 60, 64])), "64 entries"),
        (changed(bounds=torch.tensor([0.0, 0.0], dtype=torch.float64)), "numbers out of range"),
        (changed(endings=torch.tensor([70, 2], dtype=torch.int32)), "endings are"),
        (write_question(question(contexts=[[1] * 140])), "the model reads at most 128"),
        (write_question(question(contexts=[[1]] * 6000, responses=[[2]] * 6000, scored=[[False]] * 6000,
                                 below=torch.zeros(0))), "12000 tokens"),
    ],
)  # fmt: skip
def test_a_question_that_is_none_is_refused_in_a_sentence(server, body, words, monkeypatch):
    path = connected(server).teacher._path(SCORE)
    monkeypatch.setattr(LocalTeacher, "context_length", 128)
    status, said = answer_of(server, path, body)
    assert status == 400 and words in json.loads(said)["error"]["message"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"contexts": []}, "contexts: "),
        ({"contexts": [[]]}, "contexts.0: "),
        ({"contexts": [[1.5]]}, "contexts.0.0: "),
        ({"contexts": [[64]]}, "64 entries"),
        ({"eos_ids": ["x"]}, "eos_ids.0: "),
        ({"pad_id": None}, "pad_id: "),
        ({"max_new_tokens": 0}, "max_new_tokens: "),
        ({"max_new_tokens": 10**9}, "accepts 10000 at once"),
        ({"temperature": -1.0}, "temperature"),
        ({"draws": {"seed": 1, "step": 1, "stream": 1, "rows": []}}, "one row for each"),
        ({"draws": {"seed": -1, "step": 1, "stream": 1, "rows": [1]}}, "draws.seed: "),
        ({"draws": {"seed": True, "step": 1, "stream": 1, "rows": [1]}}, "draws.seed: "),
        ({"draws": {"seed": 1, "step": 1, "stream": 1, "rows": ["1"]}}, "draws.rows.0: "),
        ({"draws": 5}, "draws: "),
    ],
)
def test_a_response_that_cannot_be_written_is_refused_in_a_sentence(server, changes, words):
    body = {"contexts": [[5]], "eos_ids": [2], "pad_id": 0, "max_new_tokens": 3, "temperature": 1.0} | changes
    status, said = answer_of(server, connected(server).teacher._path(WRITE), json.dumps(body).encode())
    assert status == 400 and words in json.loads(said)["error"]["message"]


def test_a_question_of_more_bytes_than_one_can_have_is_not_read(server):
    assert answer_of(server, SCORE, b"x" * (2**20 + 16 * server.most_tokens + 1))[0] == 413
    assert answer_of(server, "/tokenize", b"x" * (2**20 + 1))[0] == 413
    assert answer_of(server, "/tokenize", b"[1]")[0] == 400
    with pytest.raises(ValueError, match=r"accepts 10000 at once\. Lower teacher_batch_size"):
        connected(server).teacher.score([[1]] * 6000, [[2]] * 6000, [[True]] * 6000, pad_id=0)


def test_a_model_whose_memory_does_not_suffice_is_a_sentence(model, monkeypatch):
    with Server(model) as server:
        teacher = connected(server).teacher
        monkeypatch.setattr(LocalTeacher, "score", out_of_memory)
        with pytest.raises(ServerRefused, match=r"out of memory: 3 GiB\. Lower teacher_batch_size"):
            teacher.score(*texts(), pad_id=0)


def out_of_memory(*texts, **options):
    raise torch.OutOfMemoryError("3 GiB")


def tampered(change):
    """An answer of the server, changed on its way."""
    return lambda raw: save(change(load(raw)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda a: a | {"logp": a["logp"][:-1]}, "log-probabilities and"),
        (lambda a: a | {"entropy": a["entropy"][:-1]}, "entropies for"),
        (lambda a: a | {"logp": a["logp"].clamp_min(0.5)}, "impossible log-probability"),
        (lambda a: a | {"topk_logp": a["topk_logp"] + 99}, "impossible log-probability"),
        (lambda a: a | {"logp": a["logp"] * 0 - 1}, "tokens instead of the"),
        (lambda a: a | {"topk_index": a["topk_index"] + 1}, "tokens instead of the"),
        (lambda a: a | {"topk_ids": a["topk_ids"][:, 1:].contiguous()}, "a top-k of shape"),
        (lambda a: a | {"topk_ids": a["topk_ids"] + 60}, "ids outside the student's vocabulary"),
        (lambda a: a | {"topk_ids": a["topk_ids"] - 60}, "ids outside the student's vocabulary"),
    ],
)
def test_no_wrong_number_is_taken(server, monkeypatch, change, words):
    teacher, count = connected(server).teacher, sum(map(sum, texts()[2]))
    read = asking.Client._read
    monkeypatch.setattr(asking.Client, "_read", lambda *a: tampered(change)(read(*a)))
    with pytest.raises(ServerRefused, match=words):
        teacher.score(*texts(), pad_id=0, topk=few(below=lambda: torch.full((count,), -3.0)))


@pytest.mark.parametrize("spoil", [lambda raw: raw[:-3], lambda raw: b"<html>Bad gateway</html>", lambda raw: b""])
def test_an_answer_that_is_cut_or_a_proxys_page_is_asked_for_again(server, monkeypatch, spoil):
    teacher, times = connected(server).teacher, []
    read = asking.Client._read

    def once(*a):
        raw = read(*a)
        times.append(raw)
        return spoil(raw) if len(times) == 1 else raw

    monkeypatch.setattr(asking.Client, "_read", once)
    assert teacher.score(*texts(), pad_id=0).logp.isfinite().all() and len(times) == 2


def test_an_answer_larger_than_it_can_be_is_not_read(server, monkeypatch):
    teacher = connected(server).teacher
    monkeypatch.setattr("tropd.teacher.served.scorer.most_bytes", lambda question: 100)
    with pytest.raises(ServerRefused, match="longer than 100 bytes"):
        teacher.score(*texts(), pad_id=0)


def test_another_release_or_no_such_server_is_a_sentence(server, monkeypatch):
    import tropd.serving.app as app

    with monkeypatch.context() as other:
        other.setattr(app, "VERSION", 9)
        with pytest.raises(ServerRefused, match="uses version 9, but this is 1"):
            connected(server)
    with Server(server.model) as stopped:
        pass
    monkeypatch.setattr("tropd.teacher.served.connect.START_PATIENCE", 0.1)
    with pytest.raises(ValueError, match="tropd serve --teacher DIR"):
        connected(url=stopped.url)


def test_a_vllm_server_behind_our_address_is_a_sentence():
    from served_fake import FakeServer

    with FakeServer() as fake, pytest.raises(ValueError, match=r"no `tropd serve` answers there.*http://127"):
        connected(url=fake.url.replace("http://", "tropd://"))


def test_replicas_of_different_weights_are_refused(server):
    with Server(tiny.qwen(4)) as other, pytest.raises(ValueError, match="different weights"):
        connected(server, other)


def test_another_tokenizer_behind_the_server_is_refused(model):
    with (
        Server(model, tokenizer=tiny._tokenizer("zyxwvutsrqponmlkjihgfedcba")) as server,
        pytest.raises(ValueError, match="tokenises a text differently"),
    ):
        connected(server)


@pytest.mark.parametrize(
    ("method", "temperature", "refused"),
    [("tropd", 0.7, False), ("eopd", 1.0, False), ("jsd", 2.0, False), ("gkd", 1.0, True)],
)
def test_what_it_can_be_asked_for(method, temperature, refused):
    args, teachers = SimpleNamespace(temperature=temperature), {None: "tropd://127.0.0.1:8001"}
    if refused:
        with pytest.raises(ValueError, match="needs whole distributions"):
            check_served(get_method(method), args, teachers)
    else:
        check_served(get_method(method), args, teachers)


def test_messages_hold_numbers_and_no_code():
    with pytest.raises(ValueError, match="truncated, or not a message"):
        read_tensors(b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94.")
