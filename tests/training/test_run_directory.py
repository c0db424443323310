"""A run directory explains itself: what ran, what it logged, what it wrote, and a model that anyone can load."""

import json
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from training import tiny
from training.tiny import clone, ids, largest_difference, recorded, replay, run
from tropd.atomic_files import append_jsonl, read_jsonl
from tropd.report.run_folder import read_run
from tropd.training.logging.model_card import with_benchmarks
from tropd.training.logging.run_directory import drop_after_step

ROWS = [{"prompt": p, "teacher_response": "xyz+"} for p in tiny.PROMPTS]


def jsonl(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, student, teacher):
    directory = tmp_path_factory.mktemp("run")
    settings = {"max_steps": 3, "rollout_log_steps": 2, "rollouts_per_log": 3, "save_final_model": True}
    script = replay(recorded(8, seed=1), recorded(8, seed=2), recorded(8, seed=3))
    return directory, run(directory, student, teacher, rows=ROWS, script=script, gate="expected", **settings)


def test_run_json_holds_the_resolved_method_the_configuration_and_the_versions(finished):
    directory, _ = finished
    described = json.loads((directory / "run.json").read_text())
    assert described["engine"] is None
    assert described["method"]["name"] == "tropd"
    assert (described["method"]["gate"], described["method"]["fkl_top_k"]) == ("expected", 64)
    assert described["configuration"]["gate"] == "expected" and described["configuration"]["fkl_top_k"] is None
    assert described["configuration"]["learning_rate"] == 1e-3
    assert described["versions"]["torch"] == torch.__version__.split("+")[0] or described["versions"]["torch"]
    assert {"tropd", "trl", "transformers"} <= described["versions"].keys()


def test_metrics_are_one_line_for_each_logged_step(finished):
    directory, done = finished
    steps = [record for record in jsonl(directory / "metrics.jsonl") if "loss" in record]
    assert [record["step"] for record in steps] == [1, 2, 3]
    assert [record["loss"] for record in steps] == [entry["loss"] for entry in done.logs]


@pytest.mark.parametrize("evaluates", [False, True])
@pytest.mark.parametrize("every", [10, 2])
def test_the_steps_since_the_last_logged_one_are_read_from_the_summary(tmp_path, student, teacher, every, evaluates):
    """Three steps, of which `logging_steps` logs none or the first two; also where the last one is evaluated."""
    script = [recorded(8, seed=seed) for seed in (1, 2, 3)]
    run(tmp_path / "each", student, teacher, "opd", script=replay(*script), max_steps=3)
    options = {"max_steps": 3, "logging_steps": every}
    if evaluates:
        options |= {"eval_strategy": "steps", "eval_steps": 3, "trainer_options": {"eval_dataset": tiny.same_dataset()}}
        script.append(recorded(8, seed=4))
    done = run(tmp_path / "some", student, teacher, "opd", script=replay(*script), **options)
    each, found = read_run(tmp_path / "each").steps, read_run(tmp_path / "some").steps
    parts = [each] if every > 3 else [each[:2], each[2:]]
    assert [entry["step"] for entry in found] == [part[-1]["step"] for part in parts]
    for entry, part in zip(found, parts, strict=True):
        for name in ("loss/trust", "kl/k1", "trust/fraction", "response/length", "regions/num_trust"):
            assert entry[name] == pytest.approx(sum(step[name] for step in part) / len(part), abs=1e-5)
    assert done.trainer.model.training is not evaluates, "the mode is as the last step left it"


def test_rollouts_are_written_at_their_interval_and_within_their_limit(finished):
    directory, _ = finished
    assert sorted(path.name for path in (directory / "rollouts").iterdir()) == [
        "step-000001.jsonl",
        "step-000003.jsonl",
    ]
    assert [record["row"] for record in jsonl(directory / "rollouts" / "step-000001.jsonl")] == [0, 1, 2]


def test_a_logged_rollout_says_who_wrote_what_in_which_context(finished):
    directory, _ = finished
    record = jsonl(directory / "rollouts" / "step-000001.jsonl")[0]
    assert record["prompt"] == record["teacher_context"] == "ab="
    assert record["prefix_length"] == 3 and record["included"]
    written = [*ids("xyz"), *recorded(8, seed=1)[0]]
    assert [token["id"] for token in record["tokens"]] == written
    assert record["response"] == tiny.tokenizer().decode(written)
    assert "".join(token["text"] for token in record["tokens"]) == record["response"]


@pytest.mark.parametrize("gate", ["bernoulli", "expected"])
def test_region_labels_weights_and_terms_of_a_token_match(tmp_path, student, teacher, gate):
    settings = {"gate": gate, "rollout_log_steps": 1, "rollouts_per_log": 8}
    done = run(tmp_path, student, teacher, rows=ROWS, script=replay(recorded(8)), **settings)
    records = jsonl(tmp_path / "rollouts" / "step-000001.jsonl")
    seen = set()
    for record in records:
        for position, token in enumerate(record["tokens"]):
            trust, outlier = token["trust_weight"], token["outlier_weight"]
            seen.add(token["region"])
            assert (token["region"] == "guidance") == (position < record["prefix_length"])
            if token["region"] == "guidance":
                assert trust == outlier == 0
                assert token["loss"] == pytest.approx(-0.001 * token["student_logp"], abs=2e-6)
                continue
            assert trust + outlier == pytest.approx(1, abs=2e-6)
            assert token["region"] == ("trust" if trust >= outlier else "outlier")
            assert token["log_ratio"] == pytest.approx(token["teacher_logp"] - token["rollout_logp"], abs=2e-6)
            if trust == 1:
                assert token["loss"] == pytest.approx(-token["log_ratio"], abs=1e-5)
    assert seen == {"guidance", "trust", "outlier"}
    # The terms are per token and before the reduction; all eight rows are here, so their mean is the loss.
    terms = [token["loss"] for record in records for token in record["tokens"]]
    assert sum(terms) / len(terms) == pytest.approx(done.logs[0]["loss"], abs=1e-5)


@pytest.mark.parametrize("method", ["tropd", "opd", "jsd"])
def test_a_logged_token_has_the_teachers_likeliest_and_its_divergence(tmp_path, student, teacher, method):
    settings = {"rollout_log_steps": 1, "rollouts_per_log": 3, "alternatives_per_token": 4}
    run(tmp_path, student, teacher, method, rows=ROWS, script=replay(recorded(8)), **settings)
    records = jsonl(tmp_path / "rollouts" / "step-000001.jsonl")
    assert len(records) == 3
    for record in records:
        response = [token["id"] for token in record["tokens"]]
        logps = tiny.plain_logps(teacher, ids(record["prompt"]), response)
        for token, row in zip(record["tokens"], logps, strict=True):
            logp, likeliest = row.topk(4)
            assert [text for text, _ in token["alternatives"]] == [tiny.tokenizer().decode([i]) for i in likeliest]
            assert [value for _, value in token["alternatives"]] == pytest.approx(logp.tolist(), abs=1e-3)
            has_one = {"tropd": token["region"] == "outlier", "opd": False, "jsd": token["region"] != "guidance"}
            assert (token["direct"] is not None) == has_one[method]


@pytest.mark.parametrize("method", ["tropd", "opd", "jsd", "gkd"])
def test_what_is_logged_beside_a_token_changes_nothing(tmp_path, student, teacher, method):
    """To the bit: the top-k of logged tokens is set aside before anything is computed from it."""
    settings = {"max_steps": 3, "rows": ROWS, "rollout_log_steps": 1, "rollouts_per_log": 8}
    with_them, without = (
        run(tmp_path / str(count), student, teacher, method, alternatives_per_token=count, **settings)
        for count in (5, 0)
    )
    weights = [tiny.weights_of(done.trainer.model) for done in (with_them, without)]
    assert largest_difference(*weights) == 0
    name = "teacher/topk_mass"
    assert [log.get(name) for log in with_them.logs] == [log.get(name) for log in without.logs]
    first = jsonl(tmp_path / "0" / "rollouts" / "step-000001.jsonl")[0]
    assert "alternatives" not in first["tokens"][-1]


def test_later_updates_of_a_batch_are_logged_with_what_was_noted_at_its_first(tmp_path, student, teacher):
    settings = {"num_iterations": 2, "max_steps": 2, "rollout_log_steps": 1}
    run(tmp_path, student, teacher, "opd", script=replay(recorded(8)), **settings)
    first, second = (jsonl(tmp_path / "rollouts" / f"step-00000{step}.jsonl")[0]["tokens"][0] for step in (1, 2))
    assert first["alternatives"] == second["alternatives"] and first["loss"] != second["loss"]


def test_a_rollout_that_is_left_out_is_written_without_tokens(tmp_path, student, teacher):
    settings = {"rollout_log_steps": 1, "mask_truncated_completions": True}
    run(tmp_path, student, teacher, "opd", script=replay(recorded(8)), **settings)
    first, second, *_ = jsonl(tmp_path / "rollouts" / "step-000001.jsonl")
    assert first["included"] and len(first["tokens"]) == len(recorded(8)[0])
    assert not second["included"] and second["tokens"] == [] and second["response"]


def test_tokens_without_a_teacher_score_are_labelled_as_left_out(tmp_path):
    written = [[20, 70, 21, tiny.EOS], *recorded(8)[1:]]
    run(tmp_path, tiny.llama(0, rows=72), tiny.qwen(1), "opd", script=replay(written), rollout_log_steps=1)
    first = jsonl(tmp_path / "rollouts" / "step-000001.jsonl")[0]
    assert [token["region"] for token in first["tokens"]] == ["trust", "left out", "left out", "left out"]
    assert [token["teacher_logp"] is None for token in first["tokens"]] == [False, True, True, True]


def test_the_final_folder_is_a_model_that_loads_and_writes(finished):
    directory, done = finished
    model = AutoModelForCausalLM.from_pretrained(directory)
    assert largest_difference(dict(model.named_parameters()), tiny.weights_of(done.trainer.model)) == 0
    tokenizer = AutoTokenizer.from_pretrained(directory)
    inputs = tokenizer("ab=", return_tensors="pt")
    assert inputs["input_ids"].tolist() == [ids("ab=")]
    assert model.generate(**inputs, max_new_tokens=4, do_sample=False).shape[1] > inputs["input_ids"].shape[1]


def test_no_final_model_is_written_where_none_is_asked_for(tmp_path, student, teacher):
    run(tmp_path, student, teacher, "opd", script=replay(recorded(8)))
    assert not (tmp_path / "model.safetensors").exists()


def test_a_run_into_a_used_directory_starts_its_metrics_afresh(tmp_path, student, teacher):
    for _ in range(2):
        run(tmp_path, student, teacher, "opd", script=replay(recorded(8)), max_steps=2)
    records = jsonl(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in records if "loss" in record] == [1, 2]


def test_records_of_later_steps_are_dropped_and_the_others_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    drop_after_step(path, 3)  # nothing there yet
    append_jsonl(path, [{"step": step, "loss": step / 2} for step in range(1, 6)])
    drop_after_step(path, 3)
    assert [record["step"] for record in jsonl(path)] == [1, 2, 3]


def test_text_with_any_separator_stays_in_its_record(tmp_path):
    """Prompts from the web hold U+2028, U+0085 and their like, at which Python splits lines and JSON does not."""
    path, text = tmp_path / "rollouts.jsonl", "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\r\nh"
    append_jsonl(path, [{"step": 1, "text": text}, {"step": 2, "text": text}])
    assert [record["text"] for record in read_jsonl(path)] == [text, text]
    drop_after_step(path, 1)
    assert read_jsonl(path) == [{"step": 1, "text": text}]


def test_a_line_cut_by_a_crash_is_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, [{"step": 1}, {"step": 2}])
    path.write_text(path.read_text() + '{"step": 3, "lo')
    drop_after_step(path, 2)
    append_jsonl(path, [{"step": 3}])
    assert [record["step"] for record in jsonl(path)] == [1, 2, 3]


def test_a_last_line_that_lacks_only_its_newline_is_kept_and_completed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    append_jsonl(path, [{"step": 1}, {"step": 2}])
    path.write_text(path.read_text()[:-1])
    drop_after_step(path, 2)
    append_jsonl(path, [{"step": 3}])
    assert [record["step"] for record in jsonl(path)] == [1, 2, 3]


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        append_jsonl(tmp_path / "x.jsonl", [{"step": float("nan")}])


def test_the_student_that_was_handed_over_is_the_one_that_is_trained(tmp_path, student, teacher):
    pupil = clone(student)
    trainer = tiny.build(tmp_path, pupil, clone(teacher), "opd", script=replay(recorded(8)))
    trainer.train()
    assert largest_difference(tiny.weights_of(pupil), tiny.weights_of(student)) > 0


@pytest.mark.parametrize(("best", "step", "accuracy"), [(None, 3, 0.4), (2, 2, 0.625)])
def test_a_card_shows_the_benchmarks_of_the_step_that_the_model_is_of(tmp_path, best, step, accuracy):
    accuracies = {0: 0.5, 2: 0.625, 3: 0.4}
    log = [{"step": n, "eval_benchmark/sums/accuracy": value} for n, value in accuracies.items()]
    kept = None if best is None else f"checkpoint-{best}"
    state = SimpleNamespace(best_model_checkpoint=kept, best_global_step=best, global_step=3, log_history=log)
    metric = "eval_benchmark/sums/accuracy"
    args = SimpleNamespace(load_best_model_at_end=best is not None, metric_for_best_model=metric, output_dir=tmp_path)
    card = with_benchmarks("---\ntags:\n- tropd\n---\n# A student\n", args, state)
    assert f"| benchmark | after step {step} | before training |" in card
    assert f"| sums | {100 * accuracy:.1f} | 50.0 |" in card
    assert ("they flatter it" in card) == (best is not None)
    read = ModelCard(card).data
    assert read.tags == ["tropd"]
    assert [(one.dataset_name, one.metric_value) for one in read.eval_results] == [("sums", accuracy)]
