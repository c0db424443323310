"""Every family of the zoo is what docs/supported_models.md says of it."""

import pytest
import transformers

from training import zoo

QUICK = ("Llama", "Gemma2", "Qwen3Moe", "Mamba2", "RecurrentGemma")
"""Our loop, windows and a soft cap, experts, a recurrent state, and one that padding changes."""


def there(family: str) -> bool:
    """Does the installed Transformers have the family?"""
    return hasattr(transformers, zoo.FAMILIES[family].get("model", f"{family}ForCausalLM"))


def test_the_page_lists_families_of_the_zoo_and_the_quick_ones():
    assert set(QUICK) <= set(zoo.listed()) <= set(zoo.FAMILIES)


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=() if family in QUICK else pytest.mark.slow) for family in zoo.listed()],
)
def test_a_family_trains_scores_and_writes_as_the_page_says(family, tmp_path, monkeypatch):
    if not there(family):
        pytest.skip(f"Transformers {transformers.__version__} has no {family}")
    assert zoo.examined(family, tmp_path, monkeypatch.setattr) == zoo.listed()[family]
