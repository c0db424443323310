"""The shipped family loads with plain Transformers and is what its record says."""

import json
from statistics import fmean

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.proving_ground.measuring import accuracy
from tools.proving_ground.tokenizer import build_tokenizer
from tropd.proving_ground import family
from tropd.proving_ground.domains import DOMAINS
from tropd.proving_ground.family import GENERALIST, MODELS, PRUNED, SPECIALISTS, STUDENT, model_path

SHIPPED_BYTES = 24_000_000
FOLDER = family.family_path()
SHIPPED = pytest.mark.skipif(not (FOLDER / "BUILD.json").is_file(), reason="the family is not in this package yet")


@SHIPPED
@pytest.mark.parametrize("name", MODELS)
def test_a_model_loads_as_float32_with_the_one_tokenizer(name):
    model, tokenizer = (kind.from_pretrained(model_path(name)) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.dtype == torch.float32
    assert tokenizer.get_vocab() == build_tokenizer().get_vocab()
    assert model.config.vocab_size == len(tokenizer)
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@SHIPPED
def test_the_family_fits_the_package():
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) < SHIPPED_BYTES


@SHIPPED
def test_the_record_meets_what_was_wanted():
    record = json.loads((FOLDER / "BUILD.json").read_text())
    reached = {name: record["models"][name]["test_accuracy_greedy"] for name in MODELS}
    for domain in DOMAINS:
        assert reached[GENERALIST][domain] >= 0.95
        assert reached[SPECIALISTS[domain]][domain] >= 0.95
        assert 0.2 <= reached[STUDENT][domain] <= 0.5


@SHIPPED
def test_the_pairs_have_the_papers_problem():
    """Far apart in the mean over domains, and everywhere OPD's first gradient is many times that without outliers."""
    pairs = json.loads((FOLDER / "BUILD.json").read_text())["pairs"]
    assert len(pairs) == 2 + len(DOMAINS)
    settings = [[pairs[f"{name} from {GENERALIST}"]] for name in (STUDENT, PRUNED)]
    settings.append([pairs[f"{STUDENT} from {SPECIALISTS[domain]}"] for domain in DOMAINS])
    for records in settings:
        distances = [found for record in records for found in record["distance"].values()]
        assert len(distances) == len(DOMAINS)
        assert fmean(distance["total_variation"] for distance in distances) > 0.08
        norms = [norm for record in records for seeds in record["first_gradient_norms"].values() for norm in seeds]
        assert norms and all(norm["opd_over_mask_outlier"] >= 5 for norm in norms)


@SHIPPED
@pytest.mark.slow
@pytest.mark.parametrize("domain", DOMAINS)
def test_the_teacher_is_far_better_than_both_students(domain):
    tokenizer = build_tokenizer()
    teacher, student, pruned = (
        accuracy(AutoModelForCausalLM.from_pretrained(model_path(name)), tokenizer, domain, "test", 40)
        for name in (GENERALIST, STUDENT, PRUNED)
    )
    assert teacher >= 0.85
    assert max(student, pruned) <= 0.65


def test_an_unknown_or_missing_model_is_answered_in_a_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"name is .teacher.; the family has no such model\. Choose generalist"):
        model_path("teacher")
    monkeypatch.setattr("tropd.shipped.MODELS", tmp_path)
    with pytest.raises(ValueError, match=r"'shipped:pruned', which is not in this .* only in tropd's repository"):
        model_path("pruned")
