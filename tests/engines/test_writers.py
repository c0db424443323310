"""Engines that write responses: what vLLM and a server are asked for, and that a response is its address's alone."""

import doctest
from types import SimpleNamespace

import pytest
import torch

from played_vllm import play
from served_fake import FakeServer
from training import tiny
from tropd.cli import writers
from tropd.engines.drawing import Drawing
from tropd.engines.server import ServerWriter
from tropd.engines.transformers import TransformersWriter
from tropd.engines.vllm import VllmWriter
from tropd.models.files import ModelFiles
from tropd.rollout.engine.noise import BENCHMARK_STREAM, AddressedNoise
from tropd.teacher.served import address
from tropd.teacher.served.address import ENGINE
from tropd.teacher.served.connect import connect

CONTEXTS = [[5, 6], [7], [8, 9, 10], [5, 6]]
DRAWING = Drawing(max_new_tokens=4, eos_ids=(tiny.EOS, 30), vocab_limit=60, temperature=0.7, top_p=0.9, min_p=0.01)
OPTIONS = {name: default for name, (default, _) in (writers.VLLM | writers.SERVER).items()} | {
    "engine": "hf",
    "dtype": "auto",
    "use_cpu": False,
}


def noise(rows):
    return AddressedNoise(seed=3, step=0, stream=BENCHMARK_STREAM, places=[(row, 0) for row in rows])


def files(dtype=torch.float32):
    config = tiny.qwen(3, rows=64).config
    config.dtype = dtype
    return ModelFiles("models/tiny", tiny.tokenizer(), config, None)


def vllm_writer(dtype="auto", stored=torch.float32):
    own = {"gpu_memory_utilization": 0.5, "tensor_parallel_size": 2, "enforce_eager": True, "trust_remote_code": False}
    return VllmWriter(files(stored), "model", dtype=dtype, max_model_len=99, **own)


@pytest.fixture
def server():
    def write(body):
        return [10 + (body["seed"] + sum(body["prompt"])) % 40, *body["stop_token_ids"][:1]]

    with FakeServer(writer=write) as one:
        yield one


def server_writer(server, **changes):
    args = SimpleNamespace(**OPTIONS | {"server_api_key_env": None, "server_model_name": None} | changes)
    connected = connect(server.url, args, tokenizer=tiny.tokenizer(), student_rows=64, role=ENGINE)
    return ServerWriter(connected.teacher, server.url)


def test_the_examples_run():
    assert doctest.testmod(address).failed == 0


@pytest.mark.parametrize("engine", ["hf", "vllm", "server"])
def test_a_response_is_its_address_s_alone(engine, server, monkeypatch):
    play(monkeypatch, head_rows=64, ids=range(10, 60))
    make = {
        "hf": lambda: TransformersWriter(tiny.qwen(3, rows=64)),
        "vllm": vllm_writer,
        "server": lambda: server_writer(server),
    }
    writer = make[engine]()
    whole = writer.write(CONTEXTS, noise(range(4)), DRAWING)
    split = writer.write(CONTEXTS[2:], noise([2, 3]), DRAWING) + writer.write(CONTEXTS[:2], noise([0, 1]), DRAWING)
    assert split == [*whole[2:], *whole[:2]] and whole[0] != whole[3]
    assert all(1 <= len(response) <= 4 and max(response) < 60 for response in whole)
    writer.close()


def test_vllm_is_asked_for_what_the_other_engine_does(monkeypatch):
    played = play(monkeypatch, head_rows=64, ids=range(10, 60))
    writer = vllm_writer()
    writer.write(CONTEXTS, noise(range(4)), DRAWING)
    prompts, asked = zip(*played.calls[0], strict=True)
    assert list(prompts) == CONTEXTS and len({own.seed for own in asked}) == 4
    assert {(own.temperature, own.top_p, own.top_k, own.min_p, own.max_tokens) for own in asked} == {
        (0.7, 0.9, 0, 0.01, 4)
    }
    assert asked[0].stop_token_ids == [tiny.EOS, 30] and asked[0].allowed_token_ids == list(range(60))
    (started,) = played.started
    assert started["dtype"] == "float32" and started["max_model_len"] == 99 and started["generation_config"] == "vllm"
    assert writer.describe() == {"engine": "vllm", "version": "0.32.0", "dtype": "float32", "tensor_parallel_size": 2}
    writer.close()
    assert played.ended == 1


def test_the_likeliest_token_is_asked_for_without_what_cuts_the_softmax(server, monkeypatch):
    played = play(monkeypatch, head_rows=60, ids=range(10, 60))
    greedy = Drawing(4, (tiny.EOS,), vocab_limit=60, temperature=0, top_p=0.9, top_k=5)
    vllm_writer().write(CONTEXTS, noise(range(4)), greedy)
    own = played.calls[0][0][1]
    assert (own.temperature, own.top_p, own.top_k, own.allowed_token_ids) == (0, 1.0, 0, None)
    server_writer(server).write(CONTEXTS, noise(range(4)), greedy)
    assert (server.asked[-1]["temperature"], server.asked[-1]["top_p"], server.asked[-1]["top_k"]) == (0, 1.0, -1)


def test_a_server_is_asked_for_what_the_other_engine_does(server):
    server_writer(server).write(CONTEXTS, noise(range(4)), DRAWING)
    own = server.asked[-1]
    assert (own["temperature"], own["top_p"], own["top_k"], own["min_p"], own["max_tokens"]) == (0.7, 0.9, -1, 0.01, 4)
    assert own["stop_token_ids"] == [tiny.EOS, 30]


@pytest.mark.parametrize(
    ("dtype", "stored", "computes"),
    [("auto", torch.float16, "float16"), ("auto", torch.bfloat16, "bfloat16"), ("float32", torch.bfloat16, "float32")],
)
def test_vllm_computes_as_stored_unless_asked_otherwise(monkeypatch, dtype, stored, computes):
    played = play(monkeypatch, head_rows=64, ids=range(10, 60))
    assert vllm_writer(dtype, stored).describe()["dtype"] == computes == played.started[0]["dtype"]


@pytest.mark.parametrize(("on_cpu", "asked"), [(True, False), (False, None)])
def test_vllm_on_a_cpu_reads_whole_prompts(monkeypatch, on_cpu, asked):
    """Where it reads one in parts, the generator of a request's seed stops it."""
    played = play(monkeypatch, head_rows=64, ids=range(10, 60), on_cpu=on_cpu)
    vllm_writer()
    assert played.started[0].get("enable_chunked_prefill") is asked


def test_what_vllm_raises_is_a_sentence(monkeypatch):
    played = play(monkeypatch, head_rows=64, ids=range(10, 60), fails_in=1)
    with pytest.raises(ValueError, match=r"vLLM failed while it wrote \(RuntimeError: EngineCore .*command goes on"):
        vllm_writer().write(CONTEXTS, noise(range(4)), DRAWING)
    played.refuses = True
    with pytest.raises(ValueError, match=r"^model is 'models/tiny', and vLLM does not start .*No available memory"):
        vllm_writer()
    with pytest.raises(ValueError, match=r"config.json does not say in which dtype .*Set dtype"):
        vllm_writer(stored=None)


@pytest.mark.parametrize("script", [["503"], ["hang_up", "half_json"], ["busy"]])
def test_a_server_is_asked_again_until_it_answers(server, script):
    writer = server_writer(server)
    expected = writer.write(CONTEXTS, noise(range(4)), DRAWING)
    server.script = list(script)
    assert writer.write(CONTEXTS, noise(range(4)), DRAWING) == expected and not server.script


def test_a_server_that_is_gone_is_a_sentence_in_the_words_of_the_engine(server):
    writer = server_writer(server, server_patience=0.3)
    server.stop()
    with pytest.raises(ValueError, match=r"^the server at .* does not answer .*the same command goes on") as raised:
        writer.write(CONTEXTS, noise(range(4)), DRAWING)
    server.start()
    assert "teacher" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine": "vlm"}, r"engine is 'vlm' \(did you mean 'vllm'\?\); choose hf, vllm, or a server's address"),
        (
            {"engine": "http://10.0.0.1/v1"},
            r"engine is 'http://10.0.0.1/v1', another machine .*server_allow_remote",
        ),
        ({"engine": "tropd://127.0.0.1:8001"}, r"engine is 'tropd://127.0.0.1:8001', a `tropd serve`.*vLLM"),
        ({"engine": "http://a:b@127.0.0.1/v1"}, r"engine has an address with a user .*TROPD_SERVER_API_KEY"),
        ({"engine": "http://127.0.0.1/v1", "server_api_key_env": "NOT_THERE"}, "server_api_key_env is 'NOT_THERE'"),
        ({"engine": "http://127.0.0.1/v1", "dtype": "float32"}, "the engine is a server, which has its own"),
        ({"engine": "http://127.0.0.1/v1", "server_timeout": 0.0}, "server_timeout is 0.0; use a number above 0"),
        ({"vllm_tensor_parallel_size": 0}, "vllm_tensor_parallel_size is 0; give a number of GPUs"),
        ({"vllm_gpu_memory_utilization": 90.0}, r"vllm_gpu_memory_utilization is 90.0; it is a share .*\(0, 1\]"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(changes, words):
    with pytest.raises(ValueError, match=words):
        writers.check(OPTIONS | changes)


def test_vllm_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"engine is 'vllm', and vLLM is not installed.*tropd\[vllm\]"):
        writers.check(OPTIONS | {"engine": "vllm"})


def test_an_option_of_another_engine_is_said(capfd):
    writers.check(OPTIONS | {"server_concurrency": 3, "vllm_enforce_eager": True})
    said = capfd.readouterr().err
    assert "server_concurrency has no effect with engine hf" in said
    assert "vllm_enforce_eager has no effect with engine hf" in said
