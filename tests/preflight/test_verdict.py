"""The verdict at its boundaries, and on real pairs: the shipped one, the same model twice, and broken teachers."""

import json
from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

import shipped
from tropd import TrOPDConfig, TrOPDTrainer
from tropd.objective.methods import get_method
from tropd.preflight import advice, verdict
from tropd.preflight.advice import full_prefix_share, has_unbounded_k1
from tropd.preflight.measure import measure
from tropd.preflight.measurement import Endings, EndingUse, Episodes, GradientForecast, PairMeasurement, PositionBucket
from tropd.preflight.probe import probe
from tropd.preflight.verdict import judge

CLOSE = PairMeasurement(
    num_prompts=16,
    num_rollouts=64,
    num_tokens=4000,
    nonfinite_tokens=0,
    trust_fraction=0.95,
    trust_standard_error=0.01,
    positions=(PositionBucket(0, 16, 1000, 0.97, 0.1), PositionBucket(16, 64, 3000, 0.94, 0.2)),
    k1=0.17,
    k1_standard_error=0.02,
    mean_abs_gap=0.2,
    student_nll=1.2,
    teacher_nll=1.4,
    student_entropy=1.2,
    teacher_entropy=1.1,
    chance_nll=6.2,
    outlier_share=0.02,
    deep_outlier_share=0.01,
    log_ratio_median=0.0,
    log_ratio_min=-11.0,
    outlier_p50=-4.0,
    outlier_p01=-10.0,
    gradient=GradientForecast(0.9, 3.2),
    top_k=64,
    teacher_topk_mass=0.99,
    student_topk_mass=0.98,
    k_for_99=40,
    vocab_size=500,
    prompt_tokens=100,
    student_prompt_nll=1.0,
    teacher_prompt_nll=0.9,
    mean_length=80.0,
    max_length=100,
    ended_length=80.0,
    truncated_share=0.1,
    repetitive_share=0.0,
    collapsed_share=0.0,
    excluded_share=0.0,
    endings=Endings(
        merged=False,
        known=(2,),
        differ=False,
        uses=(EndingUse(2, ("student", "teacher"), 0.9, 0.9, 0.9, 0.9),),
        num_ended=58,
        num_at_teachers=60,
        last_outlier_share=0.0,
    ),
)
OTHER = replace(
    CLOSE.endings,
    differ=True,
    known=(2, 3),
    uses=(EndingUse(2, ("student",), 0.9, 0.0, 0.9, 0.0), EndingUse(3, ("teacher",), 0.0, 0.9, 0.0, 0.9)),
    last_outlier_share=1.0,
)
MERGED = replace(OTHER, merged=True, last_outlier_share=0.0)
OPD, TROPD = get_method("opd"), get_method("tropd")


def judged(method=TROPD, budget=100, lengths=None, **changes):
    return judge(replace(CLOSE, **changes), method, max_completion_length=budget, teacher_response_lengths=lengths)


# ---------------------------------------------------------------------- kinds


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"mean_abs_gap": verdict.IDENTICAL_GAP - 1e-9, "trust_fraction": 1.0}, "identical"),
        ({"mean_abs_gap": verdict.IDENTICAL_GAP}, "safe"),
        ({"trust_fraction": verdict.SAFE_TRUST}, "safe"),
        ({"trust_fraction": verdict.SAFE_TRUST - 1e-9}, "outliers"),
        ({"trust_fraction": verdict.FAR_TRUST}, "outliers"),
        ({"trust_fraction": verdict.FAR_TRUST - 1e-9}, "far"),
        ({"nonfinite_tokens": 4000}, "safe"),
        ({"nonfinite_tokens": 4001}, "will_not_work"),
        ({"num_tokens": 0, "nonfinite_tokens": 9, "trust_fraction": None, "mean_abs_gap": None}, "will_not_work"),
        ({"num_tokens": 0, "trust_fraction": None, "mean_abs_gap": None}, "will_not_work"),
        ({"collapsed_share": 0.9}, "will_not_work"),
        ({"teacher_nll": 6.2, "teacher_prompt_nll": 6.2}, "will_not_work"),
        ({"teacher_nll": 6.2, "teacher_prompt_nll": 5.8}, "safe"),
        ({"teacher_nll": 5.8, "teacher_prompt_nll": 6.2}, "safe"),
        ({"teacher_nll": 6.2, "teacher_prompt_nll": 6.2, "prompt_tokens": 15}, "safe"),
    ],
)
def test_the_kind_changes_where_it_should(changes, kind):
    found = judged(**changes)
    assert found.kind == kind
    assert found.works == (kind != "will_not_work")
    assert json.dumps(found.as_dict())


def test_a_verdict_says_what_was_seen():
    said = " ".join(judged(trust_fraction=0.6, outlier_share=0.25).sentences)
    assert "accepts 60 ± 1% of what the student writes" in said
    assert "25.0% of the tokens have r < −2 and carry 90% of OPD's squared gradient" in said
    assert "at least about 3.2 times that of mask_outlier" in said


def test_trust_that_falls_along_the_response_is_said():
    falling = (PositionBucket(0, 16, 9, 0.8, 0.1), PositionBucket(16, 64, 9, 0.5, 0.9))
    assert "Trust falls along the response, from 80%" in " ".join(
        judged(trust_fraction=0.6, positions=falling).sentences
    )
    assert "Trust falls" not in " ".join(judged(trust_fraction=0.6).sentences)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_tokens": 0, "nonfinite_tokens": 9}, "no finite score for 9 of 9 tokens"),
        ({"num_tokens": 0}, "All 64 rollouts are excluded from the loss"),
        ({"collapsed_share": 0.95}, "95% of the student's rollouts are empty or only repeat"),
        ({"teacher_nll": 18.0, "teacher_prompt_nll": 16.0}, "guessing among 500 tokens costs 6.2"),
    ],
)
def test_why_a_pair_cannot_work_is_one_sentence_and_no_advice(changes, words):
    found = judged(**changes)
    assert len(found.sentences) == 1 and words in found.sentences[0]
    assert (found.method, found.settings) == (None, {})


def test_an_untrained_student_is_called_so():
    said = " ".join(judged(student_nll=6.1, trust_fraction=0.1).sentences)
    assert "student itself is at chance" in said
    assert "at chance" not in " ".join(judged(student_prompt_nll=14.0).sentences)


# ---------------------------------------------------------------------- endings


@pytest.mark.parametrize(
    ("endings", "trust", "kind"),
    [
        (MERGED, 0.95, "endings"),
        (MERGED, 0.7, "outliers"),
        (MERGED, 0.3, "far"),
        (OTHER, 0.95, "endings_apart"),
        (OTHER, 0.3, "endings_apart"),
        (replace(CLOSE.endings, differ=True), 0.95, "endings_apart"),
        (replace(MERGED, known=(2, 4)), 0.95, "endings_apart"),  # 3 is used, and outside of E
        (replace(MERGED, differ=False), 0.95, "endings"),  # Gemma's: one declared set, two that are used
    ],
)
def test_a_pair_whose_endings_differ_is_never_called_safe(endings, trust, kind):
    found = judged(OPD, trust_fraction=trust, endings=endings)
    assert found.kind == kind
    assert ("plain OPD is safe" in " ".join(found.sentences)) is False
    assert ("ending" in found.settings) is (kind == "endings_apart"), "what follows names what works"


def test_endings_that_are_used_and_not_declared_are_named_with_what_to_type():
    found = judged(OPD, endings=replace(MERGED, known=(2, 4)))
    assert found.settings == {"ending": "one_action", "ending_ids": "2 3 4"}
    said = " ".join(found.sentences)
    assert "3 is used as an ending, but neither model declares it" in said and "ending_ids: [2, 3, 4]" in said


def test_a_declared_ending_that_is_not_used_is_named():
    both = replace(MERGED.uses[0], declared_by=("student", "teacher"))
    said = " ".join(judged(OPD, endings=replace(MERGED, uses=(both, MERGED.uses[1]))).sentences)
    assert "2 is declared by the teacher, which does not end with it." in said
    assert "the student ends with 2 and the teacher with 3" in said
    few = replace(MERGED, uses=(both, MERGED.uses[1]), num_at_teachers=3)
    assert "does not end with it" not in " ".join(judged(OPD, endings=few).sentences)


def test_outliers_have_two_denominators():
    said = " ".join(judged(OPD, endings=OTHER).sentences)
    assert "Of the responses that end, 100% have such a token as their ending" in said


# ---------------------------------------------------------------------- method


@pytest.mark.parametrize("name", ["opd", "entropy_opd", "eopd", "vopd", "resopd"])
def test_unbounded_k1_is_a_poor_choice_once_outliers_matter(name):
    method = get_method(name)
    assert has_unbounded_k1(method)
    assert judged(method).method == name
    found = judged(method, trust_fraction=0.7)
    assert found.method == "tropd_support" and f"{name} is a poor choice" in " ".join(found.sentences)
    far = judged(method, trust_fraction=0.3)
    assert far.method == "tropd" and f"{name} is a poor choice" in " ".join(far.sentences)


def test_a_far_pair_says_what_became_of_a_support_there():
    said = "one of three, ended farther"
    assert said in " ".join(judged(get_method("tropd_support"), trust_fraction=0.3).sentences)
    assert said not in " ".join(judged(get_method("tropd_support"), trust_fraction=0.7).sentences)


@pytest.mark.parametrize(
    "name",
    [
        "tropd", "fkl_outlier", "tropd_clip", "reopold", "reopold_2stage", "fkl", "gkd", "jsd", "tropd_support",
        "mixture_opd", "tv_opd", "power_opd",
    ],
)  # fmt: skip
def test_methods_that_bound_their_outliers_stay(name):
    assert not has_unbounded_k1(get_method(name))
    assert judged(get_method(name), trust_fraction=0.3).method == name


def test_masking_takes_the_signal_from_a_far_student():
    method = get_method("mask_outlier")
    assert judged(method, trust_fraction=0.7).method == "mask_outlier"
    found = judged(method, trust_fraction=0.3)
    assert found.method == "tropd" and "removes the signal" in " ".join(found.sentences)


def test_a_close_pair_needs_no_prefixes():
    assert "opd is simpler" in " ".join(judged(TROPD).sentences)
    assert "simpler" not in " ".join(judged(OPD).sentences)


@pytest.mark.parametrize(("name", "told"), [("opd", True), ("tropd", True), ("gkd", False), ("tropd_support", False)])
def test_what_learned_more_on_close_pairs_is_named_and_not_set(name, told):
    found = judged(get_method(name))
    assert ("tropd_support, which reads" in " ".join(found.sentences)) == told and found.method == name


# ---------------------------------------------------------------------- settings


def test_a_top_k_that_misses_the_teacher_is_widened():
    assert judged(teacher_topk_mass=0.94).settings["fkl_top_k"] == 256
    assert judged(teacher_topk_mass=0.94, vocab_size=100).settings["fkl_top_k"] == 100
    assert "fkl_top_k" not in judged(teacher_topk_mass=advice.LOW_TOPK_MASS).settings
    assert "fkl_top_k" not in judged(OPD, teacher_topk_mass=0.5).settings
    assert "fkl_top_k" not in judged(get_method("tropd_support"), teacher_topk_mass=0.5).settings, "it samples the rest"
    assert "fkl_top_k" not in judged(OPD, teacher_topk_mass=0.5, trust_fraction=0.6).settings, "nor does what follows"
    masks = get_method("mask_outlier")
    assert judged(masks, teacher_topk_mass=0.5, trust_fraction=0.3).settings["fkl_top_k"] == 256


def test_a_small_k_that_suffices_is_said():
    assert "top 8 already hold 99%" in " ".join(judged(k_for_99=8).sentences)
    assert "already hold" not in " ".join(judged(k_for_99=17).sentences)


def test_short_responses_want_the_share_reading():
    assert judged(budget=1000, lengths=[100, 90, 110]).settings["guidance_length"] == "share"
    assert "guidance_length" not in judged(budget=100, lengths=[90]).settings
    assert "guidance_length" not in judged(OPD, budget=1000, lengths=[90]).settings
    shared = get_method("tropd", guidance_length="share")
    assert "guidance_length" not in judged(shared, budget=1000, lengths=[90]).settings


def test_without_given_responses_the_students_stand_for_them():
    found = judged(budget=1000, ended_length=90.0)
    assert found.settings["guidance_length"] == "share"
    assert "If the teacher's responses are like the student's, 90 tokens long" in " ".join(found.sentences)
    assert "guidance_length" not in judged(budget=1000, ended_length=None).settings


def test_the_share_of_turns_that_nobody_recorded_is_not_set():
    """A run would refuse it."""
    played = Episodes(mean_turns=5.0, cut_share=0.0, num_calls=9, parsed_share=1.0, turns=())
    found = judged(budget=1000, ended_length=90.0, episodes=played)
    assert "guidance_length" not in found.settings
    assert "all turns but the last in 81% of the steps" in " ".join(found.sentences)
    assert judged(budget=1000, lengths=[90], episodes=played).settings["guidance_length"] == "share"


def test_the_share_of_whole_prefixes_is_that_of_the_schedule():
    # cos(πt/T) ≥ 2·(L−1)/L_max − 1 holds for t/T up to arccos(−0.02)/π = 0.506.
    assert full_prefix_share("cosine", 50, 100) == pytest.approx(0.506, abs=0.005)
    assert full_prefix_share("constant", 50, 100) == 1.0


def test_rollouts_that_do_not_end_want_a_longer_budget_unless_they_repeat():
    assert judged(truncated_share=0.6).settings["max_completion_length"] == 200
    assert "max_completion_length" not in judged(truncated_share=advice.TRUNCATED_SHARE).settings
    repeating = judged(truncated_share=0.6, repetitive_share=0.4)
    assert "max_completion_length" not in repeating.settings
    assert "only repeat themselves" in " ".join(repeating.sentences)


def test_advised_settings_are_accepted_by_the_advised_method():
    masks = get_method("mask_outlier")
    found = judged(masks, 1000, [90], trust_fraction=0.3, teacher_topk_mass=0.5, truncated_share=0.9)
    settings = {name: value for name, value in found.settings.items() if name != "max_completion_length"}
    assert settings.keys() == {"fkl_top_k", "guidance_length"}
    assert get_method(found.method, **settings).fkl_top_k == 256


# ---------------------------------------------------------------------- real pairs


def probed(tmp_path, teacher, method="opd"):
    """The shipped student with `teacher`: 8 prompts, 2 rollouts each."""
    tokenizer = AutoTokenizer.from_pretrained(shipped.student_path())
    args = TrOPDConfig(
        str(tmp_path),
        method=method,
        per_device_train_batch_size=16,
        per_device_eval_batch_size=16,
        num_generations=2,
        max_completion_length=72,
        use_cpu=True,
        bf16=False,
        report_to="none",
        disable_tqdm=True,
    )
    rows = shipped.rows(8)
    trainer = TrOPDTrainer(
        str(shipped.student_path()),
        teacher,
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        teacher_processing_class=tokenizer,
    )
    measurement = measure(probe(trainer, rows))
    return measurement, judge(measurement, trainer.method, max_completion_length=72)


def loaded(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


def test_the_shipped_pair_is_close(tmp_path):
    m, found = probed(tmp_path, str(shipped.teacher_path()))
    assert (found.kind, found.method, found.settings) == ("safe", "opd", {})
    assert m.teacher_prompt_nll > m.chance_nll  # random digits that it was never trained to write


def test_the_same_model_twice_has_nothing_to_learn(tmp_path):
    m, found = probed(tmp_path, loaded(shipped.student_path()))
    assert (found.kind, found.method) == ("identical", None)
    assert (m.mean_abs_gap, m.trust_fraction, m.num_prompts, m.num_rollouts) == (0.0, 1.0, 8, 16)
    assert "Did you give the same folder twice?" in found.sentences[0]


def test_a_teacher_that_was_never_trained_is_refused(tmp_path):
    torch.manual_seed(0)
    m, found = probed(tmp_path, AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(shipped.teacher_path())))
    assert found.kind == "will_not_work"
    assert m.teacher_nll == pytest.approx(m.chance_nll, abs=0.3)


def test_a_teacher_with_another_vocabulary_under_the_same_tokens_is_refused(tmp_path):
    teacher = loaded(shipped.teacher_path())
    rows = teacher.get_input_embeddings().weight.data
    rows.copy_(rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))].clone())
    assert probed(tmp_path, teacher)[1].kind == "will_not_work"


def test_a_teacher_without_finite_scores_is_refused(tmp_path):
    teacher = loaded(shipped.teacher_path())
    teacher.model.norm.weight.data.fill_(torch.nan)
    m, found = probed(tmp_path, teacher)
    assert (m.num_tokens, found.kind) == (0, "will_not_work")
    assert "no finite score" in found.sentences[0]
