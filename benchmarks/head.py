"""Time and memory of the output layer (hidden states → loss → gradients, student and teacher) beside its peers.

    python benchmarks/head.py                                                 # vocabulary 151,936, hidden 1,024
    python benchmarks/head.py --vocabulary 32768 --hidden 2048 --tokens 1024 --dtypes float32
    python benchmarks/head.py --memory --tokens 16384 --peers fused           # peak memory in a forked process
    python benchmarks/head.py --peers fused --endings 1 2 8                   # what endings as one action cost

Peers run in one process, in turns; the table gives medians of their seconds (CPU seconds with one thread, so that
neighbours do not count; wall-clock on a GPU) and ratios within the run.

- `products`: the four matrix products alone, their results written where there is room already. In bfloat16 the results
  are rounded to it, which log-probabilities cannot afford.
- `exact`: the same with the logits to float32, as every peer below needs them (not TRL's `chunked_logprob`).
- `trl`: TRL's `ChunkedDivergenceFunction`; for the policy gradient `ChunkedLogProbFunction`, twice.
- `liger`: Liger's fused JSD, where it is installed and the work is equal.
- `naive`: all logits at once. `plain`: our per-token path. `fused`: ours.
- `endings n`: `fused`, with n ids that are one action in both heads.

Work: `reverse`, `forward` and `jsd` are divergences over the whole vocabulary on every token; `k1` is OPD (the
teacher's log-probability, and the policy gradient); `tropd` has the teacher's top-64 forward KL where a token is not
trusted, and `support` the reverse KL on the teacher's top-k and a bucket for the rest on every token (of which those
that are not trusted lie outside), which TRL has no functions for: `trl` does the work of `k1` there.
"""

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tropd.objective import (
    FullVocabularyTerm,
    Head,
    Method,
    RegionCounts,
    TokenSignals,
    full_function,
    fused_loss,
    gather_logps,
    get_method,
    logps_of,
    reduce_losses,
    region_counts,
    student_terms,
    token_losses,
    topk_of,
    topk_term,
)
from tropd.objective.head.matmul import add_weight_gradient, product_dtype, project_into, states_gradient, wide
from tropd.teacher.local import TopKRequest, _score_states

BETAS = {"forward": 0.0, "reverse": 1.0, "jsd": 0.5}
WORK = (*BETAS, "k1", "tropd", "support")
PEERS = ("products", "exact", "trl", "liger", "naive", "plain", "fused")


@dataclass(frozen=True)
class Setting:
    """One row of the table."""

    work: str
    vocabulary: int
    hidden: int
    tokens: int
    dtype: str
    trust: float
    k: int = 64


class Bench:
    """Inputs of one setting, and every peer as a function that leaves the gradients on the leaves."""

    def __init__(self, setting: Setting, device: str):
        self.setting = setting
        dtype = getattr(torch, setting.dtype)
        random = torch.Generator(device).manual_seed(0)

        def normal(*shape: int, scale: float = 1.0) -> Tensor:
            return (torch.randn(*shape, generator=random, device=device) * scale).to(dtype)

        n, v, h = setting.tokens, setting.vocabulary, setting.hidden
        # Logits of standard deviation 2, and a teacher that is close.
        self.hidden = normal(n, h).requires_grad_(True)
        self.weight = normal(v, h, scale=2 * h**-0.5).requires_grad_(True)
        self.teacher_hidden = (self.hidden.detach() + normal(n, h, scale=0.3)).to(dtype)
        self.teacher_weight = self.weight.detach().clone()
        self.tokens = torch.randint(v, (n,), generator=random, device=device)
        self.trusted = torch.rand(n, generator=random, device=device) < setting.trust
        self.rollout_logp = torch.full((n,), -8.0, device=device)  # a ratio near 1 is not needed for the time
        self.method = self._method()

    def _method(self) -> Method:
        if self.setting.work in BETAS:
            return get_method("gkd", jsd_beta=BETAS[self.setting.work])
        if self.setting.work == "k1":
            return get_method("opd")
        return get_method(
            "tropd_support" if self.setting.work == "support" else "fkl_outlier", fkl_top_k=self.setting.k
        )

    def peers(self, wanted: list[str], endings: list[int]) -> dict[str, Callable[[], Any]]:
        """The peers that can do this work here."""
        divergence = self.setting.work in BETAS
        has_liger = importlib.util.find_spec("liger_kernel") is not None and torch.cuda.is_available() and divergence
        known: dict[str, Callable[[], Any] | None] = {
            "products": self._products(),
            "exact": self._exact_products(),
            "trl": self._trl_divergence if divergence else self._trl_logprobs,
            "liger": self._liger if has_liger else None,
            "naive": self._naive,
            "plain": lambda: self._ours(fused=False),
            "fused": lambda: self._ours(fused=True),
        }
        chosen = {name: peer for name, peer in known.items() if name in wanted and peer is not None}
        return chosen | {f"endings {count}": partial(self._ours, True, count) for count in endings}

    def _products(self) -> Callable[[], Any]:
        room: dict[str, Tensor] = {}

        def run() -> None:
            hidden, weight = self.hidden.detach(), self.weight.detach()
            if not room:
                room["logits"] = hidden.new_empty(len(hidden), len(weight))
                room["hidden"], room["weight"] = torch.empty_like(hidden), torch.empty_like(weight)
            torch.mm(self.teacher_hidden, self.teacher_weight.t(), out=room["logits"])
            torch.mm(hidden, weight.t(), out=room["logits"])
            torch.mm(room["logits"], weight, out=room["hidden"])
            torch.mm(room["logits"].t(), hidden, out=room["weight"])

        return run

    def _exact_products(self) -> Callable[[], Any]:
        room: dict[str, Tensor] = {}

        def run() -> None:
            hidden, weight = self.hidden.detach(), self.weight.detach()
            if not room:
                room["logits"] = hidden.new_empty(len(hidden), len(weight), dtype=wide(weight.dtype))
                room["grad"] = hidden.new_empty(
                    len(hidden), len(weight), dtype=product_dtype(weight, of_gradient=True)
                ).zero_()
                room["weight"] = torch.empty_like(weight, dtype=wide(weight.dtype))
            project_into(room["logits"], self.teacher_hidden, self.teacher_weight, None)
            project_into(room["logits"], hidden, weight, None)
            states_gradient(room["grad"], weight)
            add_weight_gradient(room["weight"], room["grad"], hidden, first=True)

        return run

    def _trl_divergence(self) -> Tensor:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        beta = BETAS[self.setting.work]
        teacher = (self.teacher_hidden, self.teacher_weight, None)
        values, _ = ChunkedDivergenceFunction.apply(self.hidden, self.weight, None, *teacher, beta)
        return self._backward(values.mean())

    def _trl_logprobs(self) -> Tensor:
        from trl.kernels.chunked_logprob import ChunkedLogProbFunction

        with torch.no_grad():
            teacher, *_ = ChunkedLogProbFunction.apply(
                self.teacher_hidden, self.teacher_weight, None, self.tokens, 1.0, 32768, None, 1.0, ("entropy",)
            )
        student, *_ = ChunkedLogProbFunction.apply(
            self.hidden, self.weight, None, self.tokens, 1.0, 32768, None, 1.0, ()
        )
        ratio = torch.exp(student - self.rollout_logp)
        return self._backward((-ratio * (teacher - self.rollout_logp)).mean())

    def _liger(self) -> Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, beta=BETAS[self.setting.work])
        value = loss(self.hidden, self.weight, self.teacher_hidden, self.teacher_weight, self.tokens)
        return self._backward(value)

    def _naive(self) -> Tensor:
        logps = logps_of(self.hidden.float() @ self.weight.float().t())
        with torch.no_grad():
            teacher = logps_of(self.teacher_hidden.float() @ self.teacher_weight.float().t())
        if self.setting.work in BETAS:
            return self._backward(full_function(self.method)(logps, teacher).mean())
        signals = self._signals(gather_logps(teacher, self.tokens))
        direct = torch.zeros_like(signals.teacher_logp)
        if self.method.needs_topk:
            index = self._wants_topk.nonzero().squeeze(-1)
            ids, logp = topk_of(teacher[index], self.setting.k, self.setting.vocabulary)
            term = topk_term(self.method, signals, index, ids, logp)
            direct = direct.index_put((index,), term(logps[index], slice(None))[0])
        losses = token_losses(self.method, signals, gather_logps(logps, self.tokens), direct)
        return self._backward(reduce_losses(losses, self._counts(signals)))

    def _ours(self, fused: bool, endings: int = 0) -> Tensor:
        ids = tuple(range(0, len(self.weight), len(self.weight) // max(endings, 1)))[:endings]
        head, teacher_head = (Head(weight, endings=ids) for weight in (self.weight, self.teacher_weight))
        if self.setting.work in BETAS:
            signals = self._signals(self.rollout_logp)
            every = torch.arange(len(self.tokens), device=self.tokens.device)
            direct: Any = FullVocabularyTerm(every, self.teacher_hidden, teacher_head, full_function(self.method))
        else:
            request = None
            if self.method.needs_topk:
                request = TopKRequest(
                    self.setting.k, len(self.weight), lambda _logp, _entropy, at: self._wants_topk[at]
                )
            with torch.no_grad():
                (logp, _, index, ids, topk_logp), *_ = _score_states(
                    self.teacher_hidden, teacher_head, self.tokens, 0, request
                )
            signals = self._signals(logp)
            direct = None if request is None else topk_term(self.method, signals, index, ids, topk_logp)
        counts = self._counts(signals)
        if fused:
            terms = fused_loss(self.hidden, head, self.tokens, self.method, signals, counts, direct)
            return self._backward(terms.loss)
        student, values, _ = student_terms(self.hidden, head, self.tokens, direct)
        return self._backward(reduce_losses(token_losses(self.method, signals, student, values), counts))

    @property
    def _wants_topk(self) -> Tensor:
        return torch.ones_like(self.trusted) if self.setting.work == "support" else ~self.trusted

    def _signals(self, teacher_logp: Tensor) -> TokenSignals:
        trust = self.trusted.float() if self.method.needs_topk else torch.ones_like(self.rollout_logp)
        return TokenSignals(self.rollout_logp, teacher_logp, trust, 1 - trust, torch.zeros_like(trust))

    def _counts(self, signals: TokenSignals) -> RegionCounts:
        return RegionCounts(*region_counts(signals).tolist())

    def _backward(self, loss: Tensor) -> Tensor:
        self.hidden.grad = self.weight.grad = None
        loss.backward()
        return loss.detach()


def timed(bench: Bench, peers: dict[str, Callable[[], Any]], repeats: int, device: str) -> dict[str, Any]:
    """Median seconds of each peer, in turns, and the losses that show equal work."""
    seconds: dict[str, list[float]] = {name: [] for name in peers}
    losses: dict[str, float] = {}
    for turn in range(repeats + 1):
        for name, peer in peers.items():
            taken, value = _seconds(peer, device)
            if turn:  # the first one warms up
                seconds[name].append(taken)
            if isinstance(value, Tensor):
                losses[name] = value.item()
            bench.hidden.grad = bench.weight.grad = None
    return {"seconds": {name: statistics.median(values) for name, values in seconds.items()}, "losses": losses}


def _seconds(peer: Callable[[], Any], device: str) -> tuple[float, Any]:
    if device == "cuda":
        torch.cuda.synchronize()
        started = time.perf_counter()
        value = peer()
        torch.cuda.synchronize()
        return time.perf_counter() - started, value
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    started = clock()
    value = peer()
    return clock() - started, value


def memory(bench: Bench, name: str, peer: Callable[[], Any], device: str) -> dict[str, float]:
    """Peak bytes of one run beyond its inputs; the weight's gradient in float32, its cast and the states' gradient;
    and the rest as a share of all logits in float32."""
    peak = _peak_on_gpu(peer) if device == "cuda" else _peak_in_fork(peer)
    size, wide_size = bench.weight.element_size(), wide(bench.weight.dtype).itemsize
    known = bench.weight.numel() * (wide_size + (size if size != wide_size else 0)) + bench.hidden.numel() * size
    share = (peak - known) / (4 * bench.setting.tokens * bench.setting.vocabulary)
    return {"peak": peak, "outputs": known, "share": share}


def _peak_on_gpu(peer: Callable[[], Any]) -> int:
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    peer()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _peak_in_fork(peer: Callable[[], Any]) -> int:
    """Highest resident memory of a forked process over what it began with: what the libraries take counts too."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
        before = _high_water()
        peer()
        os.write(write, str(_high_water() - before).encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    return int(os.read(read, 64) or -1)


def _high_water() -> int:
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def table(rows: list[dict[str, Any]]) -> str:
    """One line a setting: seconds, the ratios of the goals, and what endings take of the time without them."""
    with_endings = [name for name in rows[0]["seconds"] if name not in PEERS]
    lines = [
        "| work | V | H | N | dtype | trust | "
        + " | ".join(PEERS)
        + " | fused / products | fused / exact | fused / trl |"
        + "".join(f" {name} / fused |" for name in with_endings)
    ]
    lines.append("|---" * lines[0].count(" | ") + "|---|")
    for row in rows:
        s, seconds = Setting(**row["setting"]), row["seconds"]
        cells = [f"{seconds[name]:.2f}" if name in seconds else "" for name in PEERS]
        ratios = [
            f"{seconds['fused'] / seconds[name]:.2f}" if {"fused", name} <= seconds.keys() else ""
            for name in ("products", "exact", "trl")
        ]
        ratios += [f"{seconds[name] / seconds['fused']:.3f}" if "fused" in seconds else "" for name in with_endings]
        first = [s.work, s.vocabulary, s.hidden, s.tokens, s.dtype, s.trust]
        lines.append("| " + " | ".join(map(str, [*first, *cells, *ratios])) + " |")
    return "\n".join(lines)


def _release_what_is_freed() -> None:
    """Start again with a glibc that returns freed memory at once: reused or scattered heaps hide what a peer takes."""
    if "GLIBC_TUNABLES" not in os.environ:
        names = ("mmap_threshold", "trim_threshold")
        os.environ["GLIBC_TUNABLES"] = ":".join(f"glibc.malloc.{name}=65536" for name in names)
        os.execv(sys.executable, [sys.executable, *sys.argv])


def main() -> None:
    options = _options()
    if options.memory:
        _release_what_is_freed()
    torch.set_num_threads(options.threads)
    device = "cuda" if torch.cuda.is_available() and not options.cpu else "cpu"
    rows: list[dict[str, Any]] = []
    for setting in _settings(options):
        bench = Bench(setting, device)
        peers = bench.peers(options.peers, options.endings)
        row: dict[str, Any] = {"setting": vars(setting)}
        if options.memory:
            row["memory"] = {name: memory(bench, name, peer, device) for name, peer in peers.items()}
            print(setting, json.dumps(row["memory"], indent=1), flush=True)
        else:
            row |= timed(bench, peers, options.repeats, device)
            print(f"{setting}: {row['losses']}", file=sys.stderr, flush=True)
        rows.append(row)
        if options.json:
            Path(options.json).write_text(json.dumps({"torch": torch.__version__, "rows": rows}, indent=1))
    if not options.memory:
        print(table(rows))


def _settings(options: argparse.Namespace) -> list[Setting]:
    return [
        Setting(work, vocabulary, hidden, tokens, dtype, trust, options.k)
        for vocabulary in options.vocabulary
        for hidden in options.hidden
        for dtype in options.dtypes
        for tokens in options.tokens
        for work in options.work
        for trust in (options.trust if work in ("tropd", "support") else [1.0])
    ]


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="+", choices=WORK, default=["reverse", "k1", "tropd"])
    parser.add_argument("--vocabulary", nargs="+", type=int, default=[151_936])
    parser.add_argument("--hidden", nargs="+", type=int, default=[1024])
    parser.add_argument("--tokens", nargs="+", type=int, default=[512])
    parser.add_argument("--dtypes", nargs="+", choices=("float32", "bfloat16"), default=["float32", "bfloat16"])
    parser.add_argument("--trust", nargs="+", type=float, default=[0.8, 1.0])
    parser.add_argument("--k", type=int, default=64)
    parser.add_argument("--peers", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--endings", nargs="+", type=int, default=[], help="numbers of endings to take as one action")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="PyTorch threads")
    parser.add_argument("--cpu", action="store_true", help="leave a GPU alone")
    parser.add_argument("--memory", action="store_true", help="peak memory instead of time")
    parser.add_argument("--json", help="write every figure to this file")
    return parser.parse_args()


if __name__ == "__main__":
    main()
