"""The output layer at speed: the equations of `tropd.objective` without ever holding all logits.

`layer`: the layer itself, and per-token terms a slice of tokens at a time. `matmul`: its three matrix products.
`fused_loss`: loss and gradients in one pass. `slice_losses`: what that pass does with one slice. None of it states a
new equation; `tropd.objective.loss` is what it is held to.
"""

from .layer import Head, entropy_of, gather_logps, logps_of, sampled_logps, scan_vocabulary, topk_logps

__all__ = ["Head", "entropy_of", "gather_logps", "logps_of", "sampled_logps", "scan_vocabulary", "topk_logps"]
