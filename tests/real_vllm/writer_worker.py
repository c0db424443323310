"""One vLLM in this process that answers a list of requests: `python writer_worker.py MODEL REQUESTS.json OUT.json`."""

import json
import sys
from pathlib import Path

from real_vllm.server import QUIET  # before vLLM is imported

if __name__ == "__main__":
    import os

    os.environ |= QUIET

from tropd.engines.drawing import Drawing
from tropd.engines.vllm import VllmWriter
from tropd.models.files import read_model_files
from tropd.rollout.engine.noise import BENCHMARK_STREAM, AddressedNoise


def main(model: str, requests: list[dict], out: Path) -> None:
    """Each request has `contexts`, `rows` (their addresses) and `drawing`; its answer is the responses."""
    own = {"gpu_memory_utilization": 0.3, "tensor_parallel_size": 1, "enforce_eager": True, "trust_remote_code": False}
    writer = VllmWriter(read_model_files(model), "model", dtype="auto", max_model_len=200, **own)
    answers = []
    for one in requests:
        noise = AddressedNoise(3, 0, BENCHMARK_STREAM, [(row, 0) for row in one["rows"]])
        drawing = Drawing(**one["drawing"] | {"eos_ids": tuple(one["drawing"]["eos_ids"])})
        answers.append(writer.write(one["contexts"], noise, drawing))
    out.write_text(json.dumps({"answers": answers, "described": writer.describe()}))
    writer.close()


if __name__ == "__main__":
    main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text()), Path(sys.argv[3]))
