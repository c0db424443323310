"""A teacher behind a server: what is asked, what is believed, and which faults it survives."""

import logging
import math
import threading
import time
from types import SimpleNamespace

import pytest
import torch

import served_fake
from served_fake import FakeServer, as_entries, of_model
from training import tiny
from tropd.objective.methods import get_method
from tropd.objective.randomness import DrawAddress
from tropd.teacher.local import LocalTeacher, TopKRequest
from tropd.teacher.per_teacher_settings import teachers_by_name
from tropd.teacher.served.address import read_addresses
from tropd.teacher.served.connect import FIXED_TEXT, check_served, connect
from tropd.teacher.served.http import ServerRefused, _retry_after
from tropd.teacher.served.served import is_same_model, likeliest
from tropd.teacher.served.wire import read_scores
from tropd.teacher.teachers import Teachers

K = 4


def settings(**changes):
    fields = {
        "teacher_model_name": None,
        "teacher_tokenizer": None,
        "teacher_api_key_env": None,
        "teacher_concurrency": 4,
        "teacher_timeout": 5.0,
        "teacher_patience": 5.0,
        "teacher_allow_remote": False,
        "teacher_model_init_kwargs": None,
        "trust_remote_code": False,
        "teacher_chat_template": "student",
        "temperature": 1.0,
    }
    return SimpleNamespace(**fields | changes)


def found(*servers, rows=tiny.VOCABULARY_ROWS, **changes):
    """What `connect` makes of these servers; the tiny tokenizer is the student's."""
    address = ",".join(server.url for server in servers)
    return connect(address, settings(**changes), student_tokenizer=tiny.tokenizer(), student_rows=rows)


def teacher_at(*servers, **changes):
    return found(*servers, **changes).teacher


def everywhere(logp, entropy, tokens):
    return torch.ones_like(logp, dtype=torch.bool)


def score(teacher, ids=(1, 5, 6, 7), k=None, **changes):
    topk = None if k is None else TopKRequest(k, changes.pop("limit", 64), everywhere)
    return teacher.score([list(ids[:1])], [list(ids[1:])], [[True] * (len(ids) - 1)], pad_id=0, topk=topk, **changes)


@pytest.fixture
def server():
    with FakeServer() as one:
        yield one


# ---------------------------------------------------------------------- numbers


@pytest.mark.parametrize("endings", [(), (tiny.EOS, 7, 30)])
@pytest.mark.parametrize("rows", [64, 72, 56], ids=["equal", "padded", "lacks_ids"])
def test_it_says_what_the_same_model_says_in_this_process(rows, endings):
    model = tiny.qwen(3, rows=rows)
    local = LocalTeacher(model)
    torch.manual_seed(0)
    contexts = [torch.randint(4, 50, (n,)).tolist() for n in (3, 1, 6)]
    responses = [[*torch.randint(4, 64, (n,)).tolist(), end] for n, end in ((5, tiny.EOS), (9, 30), (1, 7))]
    scored = [[n != 2 for n in range(len(response))] for response in responses]
    request = TopKRequest(K, min(64, rows), lambda logp, entropy, tokens: logp < -2)
    asked = {"pad_id": 0, "topk": request, "endings": endings}
    ours = local.score(contexts, responses, scored, **asked)
    with FakeServer(of_model(model), vocab_size=rows) as server:
        teacher = teacher_at(server, rows=max(64, rows) if rows < 64 else 64)
        theirs = teacher.score(contexts, responses, scored, **asked)
    assert theirs.logp.isneginf().any() == ours.logp.isneginf().any() == (rows == 56)
    torch.testing.assert_close(theirs.logp, ours.logp, atol=1e-5, rtol=0)
    read = ours.logp[ours.topk_index].isfinite()
    assert read.sum() >= 5 and torch.equal(theirs.topk_index, ours.topk_index)
    if not endings:
        assert torch.equal(theirs.topk_ids[read], ours.topk_ids[read])
        torch.testing.assert_close(theirs.topk_logp[read], ours.topk_logp[read], atol=1e-5, rtol=0)
    else:  # an ending that the server does not list is missing from the sum
        same = theirs.topk_ids[read] == ours.topk_ids[read]
        assert same.float().mean() > 0.8
        assert (theirs.topk_logp[read] - ours.topk_logp[read])[same].abs().median() < 1e-5
    assert theirs.entropy.isnan().all()


def test_k_is_asked_only_where_the_method_reads_it_and_a_row_ends_with_its_last_scored_token(server):
    teacher = teacher_at(server)
    server.asked.clear()
    score(teacher)
    score(teacher, k=3)
    teacher.score([[1], [1]], [[5, 6, 7], [5]], [[True, False, False], [False]], pad_id=0)
    texts = [(body["prompt"], body["prompt_logprobs"]) for body in server.scored if len(body["prompt"]) < 10]
    assert texts == [([1, 5, 6, 7], 0), ([1, 5, 6, 7], 3), ([1, 5], 0)]


def test_where_the_server_has_an_endpoint_without_texts_scores_are_asked_there(server):
    server.is_lean = True
    teacher = teacher_at(server)
    server.asked.clear()
    found = score(teacher, k=3)
    assert found.topk_ids.tolist() == [[10, 11, 12]] * 3 and found.logp.tolist() == [-1.0] * 3
    assert [body["detokenize"] for body in server.asked] == [False] * len(server.asked) and server.asked
    server.is_lean = False
    with FakeServer(is_lean=True) as lean:
        mixed = teacher_at(server, lean)
        lean.asked.clear()
        score(mixed)
        score(mixed)
    assert lean.scored and not any("detokenize" in body for body in lean.asked)


def test_ids_that_the_student_lacks_are_replaced_by_the_next_likeliest(server):
    server.scorer = lambda ids, k: [
        None, *(as_entries({n: -1.0 - 0.1 * n for n in (60, 61, *range(k - 2))} | {t: -0.5}) for t in ids[1:])
    ]  # fmt: skip
    found = score(teacher_at(server), ids=(1, 50, 51), k=3, limit=60)
    assert found.topk_ids.tolist() == [[0, 1, 2]] * 2
    assert server.scored[-1]["prompt_logprobs"] == 5


def test_a_token_without_k_likeliest_that_the_student_has_leaves_the_loss(server, caplog):
    server.most_topk = 3
    server.scorer = lambda ids, k: [None, *(as_entries({60 + n: -1.0 for n in range(k)} | {t: -0.5}) for t in ids[1:])]
    found = score(teacher_at(server), k=3, limit=60)
    assert found.topk_logp.isneginf().all() and found.logp.tolist() == [-0.5] * 3
    assert "a larger --max-logprobs" in caplog.text


def test_ties_go_by_id_and_the_sampled_token_that_is_one_too_many_is_left_out():
    entries = {9: -1.0, 4: -1.0, 2: -3.0, 30: -9.0}
    assert likeliest(entries, 30, asked=3, k=3, limit=64, endings=()) == [(4, -1.0), (9, -1.0), (2, -3.0)]
    assert likeliest(entries, 9, asked=4, k=2, limit=64, endings=()) == [(4, -1.0), (9, -1.0)]
    merged = likeliest({7: math.log(0.2), 9: math.log(0.3), 1: math.log(0.25)}, 7, 3, 2, 64, (9, 7))
    assert [token for token, _ in merged] == [9, 1] and math.exp(merged[0][1]) == pytest.approx(0.5)


RECORDED = {
    "choices": [
        {
            "prompt_logprobs": [
                None,
                {"11": {"logprob": -9.5, "rank": 400, "decoded_token": "a"}, "3": {"logprob": -0.25, "rank": 1}},
                {"12": {"logprob": -9999.0, "rank": 64}, "3": {"logprob": 0.0, "rank": 1}},
            ]
        }
    ]
}


def test_a_recorded_answer_is_read_by_ids_and_minus_9999_is_minus_infinity():
    first, second = read_scores(RECORDED, [5, 11, 12], [1, 2], 1)
    assert first == {11: -9.5, 3: -0.25} and second == {12: -math.inf, 3: 0.0}


@pytest.mark.parametrize(
    ("ids", "k", "words"),
    [
        ([5, 11], 1, "3 prompt_logprobs for 2 tokens"),
        ([5, 11, 13], 1, "do not contain the token itself, 13"),
        ([5, 11, 12], 3, "gave 2 of 3 log-probabilities"),
    ],
)
def test_an_answer_to_another_question_is_refused(ids, k, words):
    with pytest.raises(ServerRefused, match=words):
        read_scores(RECORDED, ids, [1, 2], k)


@pytest.mark.parametrize("value", [0.01, math.nan, "x", None, True])
def test_what_is_no_log_probability_is_refused(value):
    answer = {"choices": [{"prompt_logprobs": [None, {"11": {"logprob": value}}]}]}
    if value is True:  # JSON's true is the number 1
        value = 1
    with pytest.raises(ServerRefused):
        read_scores(answer, [5, 11], [1], 0)


def test_responses_are_drawn_from_the_whole_softmax_with_the_rows_seeds():
    written = {1: [5, 6, tiny.EOS], 2: [7, 60, 8], 3: [9] * 20}
    with FakeServer(writer=lambda body: written[body["prompt"][0]][: body["max_tokens"]], max_model_len=70) as server:
        teacher = teacher_at(server)
        asked = {"pad_id": 0, "eos_ids": [tiny.EOS, 99], "temperature": 0.7, "vocab_limit": 60}
        draws = DrawAddress(0, 7, 4, (11, 12, 13))
        found = teacher.write([[1], [2], [3] * 60], max_new_tokens=12, draws=draws, **asked)
    assert found == [[5, 6], [7], [9] * 10]
    bodies = {body["seed"]: body for body in server.asked if "seed" in body}
    assert len(set(draws.seeds())) == 3 and [bodies[seed]["max_tokens"] for seed in draws.seeds()] == [12, 12, 10]
    sent = {
        name: bodies[draws.seeds()[0]][name]
        for name in ("top_p", "top_k", "min_p", "repetition_penalty", "stop_token_ids")
    }
    assert sent == {"top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "stop_token_ids": [tiny.EOS]}


# ---------------------------------------------------------------------- faults that are outlived


@pytest.mark.parametrize(
    "script",
    [
        ["500"], ["502", "503", "504"], ["cut_json"], ["half_json"], ["hang_up", "hang_up"], ["html"], ["hang"],
        ["408", "hang_up", "html", "503"],
    ],
    ids="+".join,
)  # fmt: skip
def test_a_question_is_asked_again_until_it_is_answered(server, script):
    teacher = teacher_at(server, teacher_timeout=0.5)
    expected = score(teacher).logp
    server.script = list(script)
    assert torch.equal(score(teacher).logp, expected) and not server.script


def test_retry_after_is_waited_for(server):
    teacher = teacher_at(server)
    server.script = ["busy"]
    began = time.monotonic()
    score(teacher)
    assert 1.0 <= time.monotonic() - began < 3.0


def test_retry_after_may_be_a_date_or_nonsense():
    assert _retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0 and _retry_after("Fri, 01 Jan 2100 00:00:00 GMT") > 1e9
    assert [_retry_after(value) for value in ("7", None, "soon", "-3", "nan")] == [7.0, 0.0, 0.0, 0.0, 0.0]


def test_a_server_that_is_killed_and_restarted_in_the_middle_loses_nothing(server):
    release = threading.Event()

    def slow(ids, k):
        release.wait(5)
        return served_fake.flat(ids, k)

    teacher = teacher_at(server)
    expected = score(teacher, k=3)
    server.scorer = slow

    def restart():
        time.sleep(0.3)
        server.stop()
        time.sleep(0.5)
        release.set()
        server.start()

    killer = threading.Thread(target=restart)
    killer.start()
    rows = 9
    again = teacher.score([[1]] * rows, [[5, 6, 7]] * rows, [[True] * 3] * rows, pad_id=0)
    killer.join()
    assert torch.equal(again.logp, expected.logp.repeat(rows))


def test_another_model_behind_the_address_after_a_restart_is_refused(server):
    teacher = teacher_at(server)
    score(teacher)
    server.stop()
    server.scorer = lambda ids, k: [None, *(as_entries({token: -1.2}) for token in ids[1:])]
    server.start()
    with pytest.raises(ServerRefused, match="a different model than"):
        score(teacher)


def test_another_name_behind_the_address_after_a_restart_is_refused(server):
    teacher = teacher_at(server)
    server.stop()
    server.name = "other"
    server.start()
    with pytest.raises(ServerRefused, match="404: The model `teacher` does not exist"):
        score(teacher)


def test_a_long_silence_is_said_and_ends_with_the_patience(server, caplog, monkeypatch):
    monkeypatch.setattr("tropd.teacher.served.http.FIRST_WORD", 0.2)
    monkeypatch.setattr("tropd.teacher.served.http.NEXT_WORD", 0.2)
    teacher = teacher_at(server, teacher_patience=2.5)
    server.stop()
    began = time.monotonic()
    with pytest.raises(ConnectionError, match=r"the teacher at http://127.0.0.1:\d+/v1 does not answer .*refused"):
        score(teacher)
    assert 0.5 < time.monotonic() - began < 5
    assert "does not answer" in caplog.text and "s left" in caplog.text
    server.start()
    caplog.clear()
    caplog.set_level(logging.WARNING)
    score(teacher)
    assert "answers again" in caplog.text


def test_replicas_share_the_questions_and_stand_in_for_each_other(server):
    with FakeServer() as second:
        teacher = teacher_at(server, second)
        rows = 8
        asked = ([[1]] * rows, [[5, 6]] * rows, [[True] * 2] * rows)
        teacher.score(*asked, pad_id=0)
        assert all(sum(len(body["prompt"]) == 3 for body in one.scored) > 1 for one in (server, second))
        second.stop()
        began = time.monotonic()
        assert teacher.score(*asked, pad_id=0).logp.tolist() == [-1.0] * 16
        assert time.monotonic() - began < 3
        second.start()


# ---------------------------------------------------------------------- faults that are final


@pytest.mark.parametrize(
    ("act", "words"),
    [
        ("missing", "has no prompt_logprobs"),
        ("short", "3 prompt_logprobs for 4 tokens"),
        ("empty", "cannot be read"),
        ("foreign", "do not contain the token itself"),
        ("above_zero", "the impossible log-probability"),
        ("endless", "longer than [0-9]+ bytes"),
        ("elsewhere", "redirects to 'http://127.0.0.1:9/v1'"),
        ("400", "refuses 400: a 400"),
        ("404", "refuses 404: a 404"),
    ],
)
def test_no_wrong_number_is_taken_and_nothing_is_asked_twice(server, act, words):
    teacher = teacher_at(server)
    score(teacher)
    server.script = [act]
    server.asked.clear()
    with pytest.raises(ServerRefused, match=words):
        score(teacher)
    assert len(server.asked) == 1
    score(teacher)


def test_one_row_that_fails_for_good_gives_up_the_others_at_once(server):
    teacher = teacher_at(server, teacher_timeout=20.0, teacher_concurrency=2)

    def refuse_the_short_ones(ids, k):
        time.sleep(4 if len(ids) == 4 else 0)
        return [] if len(ids) == 3 else served_fake.flat(ids, k)

    server.scorer = refuse_the_short_ones
    began = time.monotonic()
    with pytest.raises(ServerRefused, match="0 prompt_logprobs for 3 tokens"):
        teacher.score([[1]] * 6, [[5, 6, 7], *[[5, 6]] * 5], [[True] * 3, *[[True] * 2] * 5], pad_id=0)
    assert time.monotonic() - began < 3


def test_a_prompt_of_the_contexts_length_says_what_to_start_the_server_with(server):
    server.max_model_len = 80
    teacher = teacher_at(server)
    score(teacher, ids=(1, *[5] * 78))
    with pytest.raises(ValueError, match="--max-model-len 81 or more"):
        score(teacher, ids=(1, *[5] * 79))


def test_too_large_a_k_names_the_servers_limit(server):
    server.most_topk = 5
    teacher = teacher_at(server)
    assert teacher.most_topk == 5 and Teachers({None: teacher}, {}).most_topk == 5
    with pytest.raises(ServerRefused, match=r"at most 5 .* but 8 are needed. Start it with --max-logprobs 8, or lower"):
        score(teacher, k=8)


@pytest.mark.parametrize("changes", [{"temperature": 0.5}, {"keep_hidden": True}])
def test_what_a_server_cannot_tell_is_refused(server, changes):
    with pytest.raises(ValueError, match=r"temperature is 0.5|not provide whole distributions"):
        score(teacher_at(server), **changes)


# ---------------------------------------------------------------------- before a run


def test_nobody_there_is_a_sentence_with_what_to_start(server, monkeypatch):
    monkeypatch.setattr("tropd.teacher.served.connect.START_PATIENCE", 0.3)
    server.stop()
    with pytest.raises(ValueError, match=r"teacher: .*does not answer.*--max-logprobs 64 --max-model-len N") as raised:
        teacher_at(server)
    server.start()
    assert "refused" in str(raised.value)


def test_a_server_of_several_models_is_asked_for_one_by_its_name(server):
    with pytest.raises(ValueError, match=r"teacher_model_name is 'nope', but .* offers teacher"):
        teacher_at(server, teacher_model_name="nope")
    assert teacher_at(server, teacher_model_name="teacher").served_name == "teacher"


def test_another_tokenizer_behind_the_server_is_refused(server):
    def ids_of(text):
        return tiny.tokenizer()(text, add_special_tokens=False)["input_ids"]

    server.tokenize = ids_of
    own = tiny.tokenizer()
    connected = connect(server.url, settings(), student_tokenizer=own, student_rows=tiny.VOCABULARY_ROWS)
    assert connected.tokenizer is own
    server.tokenize = lambda text: [(i + 1) % 50 for i in ids_of(text)]
    with pytest.raises(ValueError, match="tokenises a text differently from its tokenizer here"):
        teacher_at(server)


def test_the_fixed_text_reads_scripts_and_code():
    assert all(part in FIXED_TEXT for part in ("def mean", "\\frac", "中文", "🙂", "\t"))


@pytest.mark.parametrize(("served", "found_size"), [(64, 64), (90, 64), (61, 61), (54, 54)])
def test_the_size_of_the_vocabulary_is_found_by_asking(server, served, found_size):
    server.vocab_size = served
    assert teacher_at(server).vocab_size == found_size


def test_the_key_comes_from_the_environment_and_is_never_shown(server, monkeypatch):
    server.key = "sk-secret-123"
    with pytest.raises(ServerRefused, match="it requires a key"):
        teacher_at(server)
    monkeypatch.setenv("MY_KEY", "wrong-key-9\n")
    with pytest.raises(ServerRefused, match="the key in the environment is wrong") as raised:
        teacher_at(server, teacher_api_key_env="MY_KEY")
    assert "wrong-key-9" not in str(raised.value)
    monkeypatch.setenv("MY_KEY", "sk-secret-123")
    teacher = teacher_at(server, teacher_api_key_env="MY_KEY")
    server.scorer = lambda ids, k: "sk-secret-123"
    with pytest.raises(ServerRefused) as raised:
        score(teacher)
    assert "secret" not in f"{raised.value} {vars(teacher)}"
    with pytest.raises(ValueError, match="no such environment variable"):
        teacher_at(server, teacher_api_key_env="NO_SUCH_KEY")
    with pytest.raises(ValueError, match="not the name of an environment variable") as raised:
        teacher_at(server, teacher_api_key_env="sk-secret-123")
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("http://example.org/v1", "another machine over http"),
        ("http://10.0.0.1:8000/v1", "teacher_allow_remote"),
        ("http://user:pw@127.0.0.1/v1", "user or a password"),
        ("http://127.0.0.1:99999/v1", "an invalid address"),
        ("http:///v1", "not the address of a server"),
        ("http://127.0.0.1/v1?key=1", "not the address of a server"),
        ("http://localhost:1/v1,http://localhost:1", "the same address twice"),
    ],
)
def test_addresses_that_should_not_be_asked_are_refused(address, words):
    with pytest.raises(ValueError, match=words) as raised:
        read_addresses(address)
    assert "pw" not in str(raised.value)


def test_addresses_may_be_several_secure_or_allowed():
    assert [str(one) for one in read_addresses("http://[::1]:8/v1,https://a.org/llm/v1/")] == [
        "http://[::1]:8/v1", "https://a.org:443/llm/v1"
    ]  # fmt: skip
    assert str(read_addresses("http://a.org", allow_remote=True)[0]) == "http://a.org:80/v1"
    assert teachers_by_name(["http://a/v1", "http://b/v1"]) == {None: "http://a/v1,http://b/v1"}
    with pytest.raises(ValueError, match="replicas of one served teacher"):
        teachers_by_name(["models/a", "models/b"])


@pytest.mark.parametrize(
    ("method", "changes", "words"),
    [
        ("gkd", {}, "needs whole distributions"),
        ("eopd", {}, "the teacher's entropy"),
        ("tropd", {"temperature": 0.6}, "temperature: 1.0"),
    ],
)
def test_methods_that_read_more_than_a_server_tells_are_refused(method, changes, words):
    teachers = {"math": "http://127.0.0.1/v1"}
    with pytest.raises(ValueError, match=f"{words}.*|teacher.math is behind a server.*{words}"):
        check_served(get_method(method), settings(**changes), teachers)
    check_served(get_method(method), settings(**changes), {None: "models/teacher"})


def test_a_fixed_text_tells_models_apart_and_not_roundings():
    before = [-1.0, -2.0, -math.inf, -4.0]
    assert is_same_model(before, [-1.01, -2.03, -math.inf, -4.0])
    assert not is_same_model(before, [-1.2, -2.1, -math.inf, -4.0])
    assert not is_same_model(before, before[:3]) and not is_same_model(before, [-1.0, -2.0, -3.0, -4.0])
