"""Responses by a real vLLM on a CPU, in process and behind a server, beside Transformers'. `make test-vllm` runs it."""

import importlib.util
import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, GenerationConfig

from real_vllm.server import QUIET, Vllm, save_model
from training import tiny
from tropd.cli.writers import SERVER
from tropd.engines.drawing import Drawing
from tropd.engines.server import ServerWriter
from tropd.engines.transformers import TransformersWriter
from tropd.rollout.engine.noise import BENCHMARK_STREAM, AddressedNoise
from tropd.rollout.engine.vllm import StudentEngine
from tropd.rollout.engine.vllm_release import installed_release
from tropd.teacher.served.address import ENGINE
from tropd.teacher.served.connect import connect

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="vLLM is not installed: make test-vllm"),
]
ROOT = Path(__file__).parents[2]
ENDINGS = (tiny.EOS, 30)
LIMIT = max(tiny.tokenizer().get_vocab().values()) + 1
PLAIN = {"max_new_tokens": 24, "eos_ids": ENDINGS, "vocab_limit": LIMIT}
CONTEXTS = [[4 + (7 * n + k) % 40 for k in range(2 + n % 5)] for n in range(24)]
ROWS = list(range(len(CONTEXTS)))
ENVIRONMENT = os.environ | QUIET | {"PYTHONPATH": f"{ROOT}/src:{ROOT}/tests:{ROOT}"}

REQUESTS = {
    "whole": {"contexts": CONTEXTS, "rows": ROWS, "drawing": PLAIN},
    "back": {"contexts": CONTEXTS[:9:-1], "rows": ROWS[:9:-1], "drawing": PLAIN},
    "front": {"contexts": CONTEXTS[:10], "rows": ROWS[:10], "drawing": PLAIN},
    "likeliest": {"contexts": CONTEXTS, "rows": ROWS, "drawing": PLAIN | {"temperature": 0}},
    "top_k": {"contexts": CONTEXTS, "rows": ROWS, "drawing": PLAIN | {"top_k": 3}},
    "top_p": {"contexts": CONTEXTS, "rows": ROWS, "drawing": PLAIN | {"top_p": 0.7, "temperature": 1.5}},
    "min_p": {"contexts": CONTEXTS, "rows": ROWS, "drawing": PLAIN | {"min_p": 0.2}},
    # A server is not told which ids the reader has; here every id of the head may be drawn.
    "as a server": {"contexts": CONTEXTS, "rows": ROWS, "drawing": PLAIN | {"vocab_limit": tiny.VOCABULARY_ROWS}},
    # 9,600 tokens of prompts, more than vLLM reads in one pass: on a CPU it must not stop within a prompt.
    "long": {
        "contexts": [CONTEXTS[row % 24] * (160 // len(CONTEXTS[row % 24])) for row in range(60)],
        "rows": list(range(60)),
        "drawing": PLAIN,
    },
    "many": {
        "contexts": [CONTEXTS[1]] * 4000,
        "rows": list(range(4000)),
        "drawing": PLAIN | {"max_new_tokens": 1, "temperature": 1.3},
    },
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model that ends in two ways, and whose head has ids that its tokenizer does not."""
    made = save_model(tmp_path_factory.mktemp("model"), 5)
    GenerationConfig(eos_token_id=list(ENDINGS), pad_token_id=tiny.PAD).save_pretrained(made)
    assert LIMIT < tiny.VOCABULARY_ROWS
    return made


@pytest.fixture(scope="module")
def answers(folder, tmp_path_factory):
    """What one vLLM in a process of its own says to all of `REQUESTS`."""
    out = tmp_path_factory.mktemp("answers")
    (out / "requests.json").write_text(json.dumps(list(REQUESTS.values())))
    worker = str(Path(__file__).with_name("writer_worker.py"))
    command = [sys.executable, worker, str(folder), str(out / "requests.json"), str(out / "answers.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr[-3000:]
    found = json.loads((out / "answers.json").read_text())
    assert found["described"]["dtype"] == "float32"
    return dict(zip(REQUESTS, found["answers"], strict=True))


@pytest.fixture(scope="module")
def model(folder):
    return AutoModelForCausalLM.from_pretrained(folder)


def test_a_response_is_its_address_s_alone(answers):
    whole = answers["whole"]
    assert answers["back"] == whole[:9:-1] and answers["front"] == whole[:10]
    assert len({tuple(response) for response in whole}) > 20


def test_long_prompts_by_the_dozen_have_seeds_too(answers):
    assert len({tuple(response) for response in answers["long"]}) > 50


def test_a_response_ends_with_the_first_of_all_endings_and_stays_in_the_readers_vocabulary(answers):
    responses = [response for name in REQUESTS if name not in ("many", "as a server") for response in answers[name]]
    last = [response[-1] for response in responses if response[-1] in ENDINGS]
    assert set(last) == set(ENDINGS)
    assert not any(token in ENDINGS for response in responses for token in response[:-1])
    assert all(response[-1] in ENDINGS or len(response) == 24 for response in responses)
    assert max(max(response) for response in responses) < LIMIT


def test_the_likeliest_tokens_are_those_of_transformers(answers, model):
    noise = AddressedNoise(3, 0, BENCHMARK_STREAM, [(row, 0) for row in ROWS])
    assert answers["likeliest"] == TransformersWriter(model).write(CONTEXTS, noise, Drawing(**PLAIN, temperature=0))


def allowed_of(probs, top_k=0, top_p=1.0, min_p=0.0):
    """Which of a softmax may be drawn, by the definition of each cut, with room for rounding at its border."""
    ranked, order = probs.sort(descending=True)
    before = ranked.cumsum(0) - ranked
    keep = (before < top_p + 1e-5) & (ranked >= min_p * ranked[0] - 1e-5)
    if top_k:
        keep &= ranked >= ranked[top_k - 1] - 1e-5
    return set(order[keep].tolist())


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p"])
def test_what_cuts_the_softmax_leaves_what_it_leaves_in_transformers(answers, model, name):
    asked = {key: value for key, value in REQUESTS[name]["drawing"].items() if key not in PLAIN}
    temperature, sizes = asked.pop("temperature", 1.0), []
    for context, response in zip(CONTEXTS, answers[name], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([context + response])).logits[0, len(context) - 1 : -1, :LIMIT]
        for probs, token in zip((logits / temperature).softmax(-1), response, strict=True):
            allowed = allowed_of(probs, **asked)
            assert token in allowed
            sizes.append(len(allowed))
    assert 1 < sum(sizes) / len(sizes) < LIMIT / 2, "the cut took something, and left a choice"


def test_first_tokens_are_as_frequent_as_they_are_likely(answers, model):
    with torch.no_grad():
        probs = (model(torch.tensor([CONTEXTS[1]])).logits[0, -1, :LIMIT] / 1.3).softmax(-1)
    drawn = torch.bincount(torch.tensor([response[0] for response in answers["many"]]), minlength=LIMIT) / 4000
    # Of 4,000 draws from 52 tokens the expected total variation is at most √(52 / (2π · 4000)) = 0.046.
    assert (probs - drawn).abs().sum() / 2 < 0.06


# ---------------------------------------------------------------------- a server


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    made = Vllm(tmp_path_factory.mktemp("log") / "vllm.log")
    made.start(folder)
    try:
        made.wait()
        yield made
    finally:
        made.kill()


def test_a_server_writes_what_the_engine_in_this_process_does(server, answers):
    args = {name: default or None for name, (default, _) in SERVER.items()}
    connected = connect(
        server.url, SimpleNamespace(**args), tokenizer=tiny.tokenizer(), student_rows=tiny.VOCABULARY_ROWS, role=ENGINE
    )
    writer = ServerWriter(connected.teacher, server.url)
    noise = AddressedNoise(3, 0, BENCHMARK_STREAM, [(row, 0) for row in ROWS])
    drawing = Drawing(**REQUESTS["as a server"]["drawing"])
    assert writer.write(CONTEXTS, noise, drawing) == answers["as a server"]
    cut = writer.write(CONTEXTS, noise, Drawing(**PLAIN))
    for response, whole in zip(cut, answers["as a server"], strict=True):
        beyond = next((place for place, token in enumerate(whole) if token >= LIMIT), len(whole))
        assert response == whole[:beyond]


def test_a_server_tells_its_precision_and_release(server):
    engine = object.__new__(StudentEngine)
    engine.mode, engine.temperature, engine.server_base_url = "server", 1.0, server.url.removesuffix("/v1")

    def info():
        with urllib.request.urlopen(f"{engine.server_base_url}/server_info?config_format=json", timeout=30) as answer:
            return json.loads(answer.read())["vllm_config"]

    engine._read_server(SimpleNamespace(get_server_info=info))
    described = engine.describe()
    assert described["dtype"] == "float32" and installed_release()[1].startswith(described["version"].split("+")[0])


# ---------------------------------------------------------------------- the commands


def tropd(*words, cwd):
    command = [sys.executable, "-m", "tropd", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=cwd)


def killed_after_a_batch(path, *words, cwd):
    """The same command, killed once `path` has something in it."""
    command = [sys.executable, "-m", "tropd", *map(str, words)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=ENVIRONMENT, cwd=cwd)
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.005)
    process.kill()
    process.wait()


def test_teacher_responses_killed_on_the_way_are_completed_to_the_same_file(folder, tmp_path):
    prompts = [{"prompt": f"{a}{b}="} for a in "abcdefgh" for b in "abcdefgh"]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    words = ["generate", "--teacher", folder, "--data", "prompts.jsonl", "--engine", "vllm", "--vllm_enforce_eager"]
    words += ["--max_new_tokens", 64, "--vllm_gpu_memory_utilization", 0.3]
    whole = tropd(*words, "--out", "whole.jsonl", cwd=tmp_path)
    assert whole.returncode == 0 and "Traceback" not in whole.stderr, whole.stderr[-3000:]
    part = tmp_path / "part.jsonl"
    killed_after_a_batch(part, *words, "--batch_size", 2, "--out", part, cwd=tmp_path)
    assert 0 < part.read_bytes().count(b"\n") < 64, "it was killed on the way"
    resumed = tropd(*words, "--batch_size", 2, "--out", part, cwd=tmp_path)
    assert resumed.returncode == 0 and "responses are already there" in resumed.stderr, resumed.stderr[-3000:]
    assert part.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_an_evaluation_by_a_server_outlives_a_restart(folder, server, tmp_path):
    rows = [{"id": f"{a}{b}", "problem": f"{a}{b}=", "answer": "1"} for a in "abcdef" for b in "abcdef"]
    (tmp_path / "aime24").mkdir()
    (tmp_path / "aime24/test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["evaluate", folder, "--benchmarks", "aime24", "--samples", 1, "--data", ".", "--engine", server.url]
    words += ["--max_new_tokens", 32, "--temperature", 1, "--batch_size", 4]
    whole = tropd(*words, "--out", "whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr[-3000:]
    command = [sys.executable, "-m", "tropd", *map(str, words), "--out", "killed"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT, cwd=tmp_path)
    path = tmp_path / "killed/responses/aime24.jsonl"
    while process.poll() is None and not (path.exists() and path.stat().st_size):
        time.sleep(0.005)
    server.kill()
    assert 0 < path.read_bytes().count(b"\n") < 36, "the server was killed on the way"
    server.start(folder)
    said = process.communicate(timeout=900)[1]
    assert process.returncode == 0 and "does not answer" in said, said[-3000:]
    for name in ("responses/aime24.jsonl", "scores.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
