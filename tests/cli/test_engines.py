"""`tropd evaluate` and `tropd generate` with vLLM and with a server: resumed, recorded, and never mixed."""

import json

import pytest
from transformers import AutoTokenizer

import shipped
from played_vllm import play
from served_fake import FakeServer


@pytest.fixture
def played(monkeypatch):
    rows = AutoTokenizer.from_pretrained(shipped.teacher_path()).vocab_size
    return play(monkeypatch, head_rows=rows, ids=range(5, rows))


@pytest.fixture
def server():
    tokenizer = AutoTokenizer.from_pretrained(shipped.teacher_path())

    def write(body):
        return [*tokenizer(f"{body['seed'] % 97}")["input_ids"], tokenizer.eos_token_id]

    with FakeServer(
        vocab_size=tokenizer.vocab_size,
        tokenize=lambda text: tokenizer(text, add_special_tokens=False)["input_ids"],
        writer=write,
        key="a-secret-key",
    ) as one:
        yield one


@pytest.fixture
def evaluate(workspace, tropd):
    folder = workspace.root / "data/aime24"
    folder.mkdir(parents=True)
    rows = [{"id": n, "problem": f"{10 + n}+{20 + n}=", "answer": f"0{30 + 2 * n}"} for n in range(6)]
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def run(out, *words):
        asked = ("teacher", "--benchmarks", "aime24", "--data", "data", "--samples", 2, "--max_new_tokens", 30)
        return tropd("evaluate", *map(str, (*asked, "--temperature", 1, "--out", out, *words)))

    return run


def responses(root, out):
    return (root / out / "responses/aime24.jsonl").read_text().splitlines()


def record(root, out):
    return json.loads((root / out / "evaluation.json").read_text())["benchmarks"]["aime24"]


def test_vllm_writes_an_evaluation_that_goes_on_where_the_engine_died(workspace, evaluate, played):
    words = ("--engine", "vllm", "--batch_size", 5, "--top_k", 20)
    whole = evaluate("whole", *words)
    assert whole.code == 0, whole.err
    assert "in vLLM 0.32.0 in float32" in whole.err and played.ended == 1
    assert played.started[0]["max_model_len"] == 30 + max(len(prompt) for call in played.calls for prompt, _ in call)
    written = record(workspace.root, "whole")
    assert written["engine"] == "vllm" and written["written_by"]["version"] == "0.32.0"

    played.calls.clear()
    played.fails_in = 2
    died = evaluate("died", *words)
    assert died.code == 2 and "the same command resumes" in died.err and "Traceback" not in died.err
    assert len(responses(workspace.root, "died")) == 5 and played.ended == 2
    resumed = evaluate("died", *words)
    assert resumed.code == 0 and "5 of 12 responses are already there" in resumed.err
    assert responses(workspace.root, "died") == responses(workspace.root, "whole")
    other_batches = evaluate("other", *words[:2], "--batch_size", 12, "--top_k", 20)
    assert other_batches.code == 0 and responses(workspace.root, "other") == responses(workspace.root, "whole")

    mixed = evaluate("whole", "--engine", "hf", "--batch_size", 5, "--top_k", 20)
    assert mixed.code == 2 and "engine was vllm and is hf" in " ".join(mixed.err.split())


def test_a_server_writes_an_evaluation_and_its_key_is_in_no_file(workspace, evaluate, server, monkeypatch):
    refused = evaluate("eval", "--engine", server.url)
    assert refused.code == 2 and "it requires a key. Export the variable that server_api_key_env" in refused.err
    monkeypatch.setenv("TROPD_SERVER_API_KEY", "a-secret-key")
    done = evaluate("eval", "--engine", server.url)
    assert done.code == 0, done.err
    assert f"teacher at {server.url}" in done.err and len(responses(workspace.root, "eval")) == 12
    assert record(workspace.root, "eval")["written_by"]["fingerprint"]
    for path in (workspace.root / "eval").rglob("*.*"):
        assert "a-secret-key" not in path.read_text()
    assert "a-secret-key" not in done.err + done.out + refused.err


def test_a_server_that_got_another_model_does_not_go_on(workspace, evaluate, server, monkeypatch):
    monkeypatch.setenv("TROPD_SERVER_API_KEY", "a-secret-key")
    words = ("--engine", server.url, "--batch_size", 5)
    assert evaluate("eval", *words).code == 0
    path = workspace.root / "eval/responses/aime24.jsonl"
    path.write_text("".join(line + "\n" for line in responses(workspace.root, "eval")[:5]))
    flat = server.scorer
    server.scorer = lambda ids, k: [
        one and {token: entry | {"logprob": entry["logprob"] - 0.2} for token, entry in one.items()}
        for one in flat(ids, k)
    ]
    other = evaluate("eval", *words)
    assert other.code == 2 and "a different model than the one that wrote" in " ".join(other.err.split())
    server.scorer = flat
    assert evaluate("eval", *words).code == 0 and len(responses(workspace.root, "eval")) == 12


def test_a_context_that_the_server_does_not_have_is_refused(evaluate, server, monkeypatch):
    monkeypatch.setenv("TROPD_SERVER_API_KEY", "a-secret-key")
    long = evaluate("eval", "--engine", server.url, "--max_new_tokens", 300)
    words = "the server's context has 256. Start it with --max-model-len 323"
    assert long.code == 2 and words in " ".join(long.err.split())


def test_vllm_writes_teacher_responses_that_go_on(workspace, tropd, played):
    words = ["--teacher", "teacher", "--data", "prompts.jsonl", "--max_new_tokens", "12", "--engine", "vllm"]
    whole = tropd("generate", *words, "--batch_size", "3", "--out", "whole.jsonl")
    assert whole.code == 0, whole.err
    assert "teacher in vLLM 0.32.0 in float32" in whole.err and played.ended == 1
    seeds = [own.seed for call in played.calls for _, own in call]
    assert len(set(seeds)) == 8 and {own.temperature for call in played.calls for _, own in call} == {1.0}
    played.calls.clear()
    played.fails_in = 2
    assert tropd("generate", *words, "--batch_size", "3", "--out", "died.jsonl").code == 2
    assert len((workspace.root / "died.jsonl").read_text().splitlines()) == 3
    resumed = tropd("generate", *words, "--batch_size", "3", "--out", "died.jsonl")
    assert resumed.code == 0 and "3 of 8 responses are already there" in resumed.err
    whole_lines = (workspace.root / "whole.jsonl").read_text()
    assert (workspace.root / "died.jsonl").read_text() == whole_lines
    assert tropd("generate", *words, "--out", "together.jsonl").code == 0
    assert len(played.calls[-1]) == 8 and (workspace.root / "together.jsonl").read_text() == whole_lines
    mixed = tropd("generate", *words[:-2], "--batch_size", "3", "--out", "whole.jsonl")
    assert mixed.code == 2 and "engine was vllm and is hf" in mixed.err
