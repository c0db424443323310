"""Keep the libraries' chatter off the screen; their errors still come through."""

import logging
import warnings


def quiet_libraries() -> None:
    """Errors only from Transformers, TRL and datasets, no progress bars of theirs; warnings of ours stay."""
    import datasets
    import transformers

    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"(torch|transformers|trl|accelerate|peft)\.")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    datasets.disable_progress_bars()
    for name in ("trl", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
