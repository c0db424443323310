"""A real vLLM server on loopback, and tiny models for it; what `VLLM_…` says of a CPU that is shared."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from training import tiny

QUIET = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
}


class Vllm:
    """A server process, always at one port."""

    def __init__(self, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self._log, self._process = f"http://127.0.0.1:{self.port}/v1", log, None

    def start(self, folder):
        words = "--served-model-name teacher --dtype float32 --enforce-eager --max-logprobs 64 --max-model-len 200"
        words += " --enable-scale-out"
        command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder)]
        command += ["--host", "127.0.0.1", "--port", str(self.port), *words.split()]
        with self._log.open("a") as log:
            environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | QUIET
            environment["VLLM_SERVER_DEV_MODE"] = "1"  # it tells of itself, as TRL wants it
            self._process = subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    def wait(self):
        for _ in range(600):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=5).close()
                return
            assert self._process.poll() is None, self._log.read_text()[-3000:]
            time.sleep(1)
        raise TimeoutError(self._log.read_text()[-3000:])

    def kill(self):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def save_model(folder: Path, seed: int, **changes) -> Path:
    """A random model with the tiny tokenizer, two endings and a padded head; vLLM's CPU attention wants heads of 32."""
    torch.manual_seed(seed)
    settings = {
        "vocab_size": tiny.VOCABULARY_ROWS,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": 256,
        "initializer_range": 0.25,
        "bos_token_id": tiny.BOS,
        "eos_token_id": tiny.EOS,
        "pad_token_id": tiny.PAD,
    }
    model = LlamaForCausalLM(LlamaConfig(**settings | changes))
    model.save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder
