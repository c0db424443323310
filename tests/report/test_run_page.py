"""The page of a run: what is on it, that nothing of a model's becomes part of it, and who may ask for it."""

import base64
import hashlib
import http.client
import json
import re
import threading
from itertools import pairwise
from pathlib import Path

import pytest

from report.run_folders import HOSTILE, logged_rollouts, rollout, token, write_run
from report.test_page import parsed
from tropd.report.choice import MOST_OF_ONE, MOST_TOKENS, choose_rollouts, spread
from tropd.report.follow import serve
from tropd.report.outcome import outcome
from tropd.report.run_folder import read_run
from tropd.report.run_page import run_page


def data_of(page: str) -> dict:
    return json.loads(re.search(r'id="rollouts">(.*?)</script>', page, re.DOTALL)[1])


def policy_of(page: str) -> str:
    found = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    return found.replace("&#39;", "'")


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_run(tmp_path / "run", rollouts=logged_rollouts())


def test_the_page_of_a_run_has_its_outcome_curves_evaluations_and_regions(folder):
    page = run_page([folder])
    for words in ("run: tropd", "Step 4 of 4.", "Before and after", "evaluation, step 4", "Every evaluation"):
        assert words in page
    for chart in ("Trust fraction, 1 − TV", "Share of trained tokens", "Gradient norm before clipping (log)"):
        assert f'aria-label="{chart}"' in page
    assert {"svg", "script", "section"} <= parsed(page).seen


def test_its_one_script_is_its_own_and_may_load_and_send_nothing(folder):
    page = run_page([folder])
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    assert len(scripts) == 1 and "src=" not in re.sub(r'id="rollouts">.*?</script>', "", page, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(scripts[0].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy_of(page) and policy_of(page).startswith("default-src 'none'")
    assert "unsafe" not in policy_of(page)


def test_what_models_wrote_is_data_and_never_markup(folder):
    page = run_page([folder])
    assert "img" not in parsed(page).seen and "onerror" not in parsed(page).attributes
    assert not {"\u202e", "\x1b", "\u2028"} & set(page), "spelled out, not obeyed"
    (hostile,) = [one for one in data_of(page)["rollouts"] if one["step"] == 3]
    shown = HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")
    assert hostile["prompt"] == shown and hostile["tokens"][0][0] == shown


def test_a_token_brings_what_the_log_has_of_it(folder):
    data = data_of(run_page([folder]))
    text, region, r, sampled, teacher, student, direct, loss, number, likeliest = data["rollouts"][0]["tokens"][2]
    assert (text, data["regions"][region], data["marks"][region]) == (" 9", "outlier", "o")
    assert (r, sampled, teacher, student, direct, loss, number) == (-7.25, -0.5, -7.75, -0.5, 1.5, 0.25, 7)
    assert likeliest[0] == [" 3", -0.01] and len(likeliest) == 2
    left_out = data["rollouts"][0]["tokens"][4]
    assert left_out[2] is None and data["regions"][left_out[1]] == "left out"
    assert data["divergences"] == ["forward KL over the top-k"]


def test_an_episode_has_its_authors_and_what_the_tools_said(tmp_path):
    episode = [
        {"author": "teacher", "at": 0, "text": "look"},
        {"author": "tool", "at": 1, "text": f"3 {HOSTILE}"},
        {"author": "student", "at": 1, "text": "take 3"},
    ]
    record = rollout(1, 0, [token("look", "guidance"), token("take"), token(" 3")]) | {"episode": episode}
    page = run_page([write_run(tmp_path / "run", rollouts=[record])])
    assert "img" not in parsed(page).seen and not {"\u202e", "\x1b"} & set(page)
    hostile = HOSTILE.replace("\u202e", "\\u202e").replace("\x1b", "\\x1b")
    shown = data_of(page)["rollouts"][0]["episode"]
    assert shown == [[0, "teacher", ""], [1, "tool", f"3 {hostile}"], [1, "student", ""]]


def test_several_runs_stand_side_by_side(tmp_path):
    folders = [write_run(tmp_path / name / "out", rollouts=logged_rollouts(), name=name) for name in ("opd", "tropd")]
    page = run_page(folders)
    assert "opd/out beside tropd/out" in page and "Settings that differ" in page
    assert data_of(page)["runs"] == ["opd/out", "tropd/out"]
    assert {one["run"] for one in data_of(page)["rollouts"]} == {0, 1}


def test_a_run_that_has_logged_nothing_yet_has_a_page(tmp_path):
    folder = write_run(tmp_path / "run", steps=0)
    (folder / "metrics.jsonl").unlink()
    assert "No step is logged yet." in run_page([folder])


def test_a_run_that_ended_before_its_last_step_says_so(folder):
    lines = [{"step": 3, "loss": 0.5}, {"step": 3, "train_runtime": 4.5, "train_loss": 0.5}]
    (folder / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert "Step 3 of 4." in run_page([folder])
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "Ended at step 3, of at most 4." in run_page([folder])


def test_a_run_shorter_than_its_logging_steps_is_read_from_its_summary(folder):
    metrics = {"loss/trust": 0.5, "kl/k1": 0.3, "trust/fraction": 0.75, "response/length": 12.5}
    summary = {"step": 4, "train_runtime": 4.5, "train_loss": 0.5, **metrics, "regions/num_trust": 60.0}
    (folder / "metrics.jsonl").write_text(json.dumps(summary) + "\n")
    run = read_run(folder)
    assert run.steps == [summary] and outcome(run.steps, {}).rows[0].values == ("0.300", "0.300")
    page = run_page([folder])
    assert "Step 4 of 4." in page and 'aria-label="Trust fraction, 1 − TV"' in page and "12.5" in page


def test_a_summary_without_metrics_of_steps_is_no_step(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "train_runtime": 4.5, "train_loss": 0.5}\n')
    assert [step["step"] for step in read_run(folder).steps] == [1, 2, 3, 4]


def test_a_line_that_is_being_written_is_not_read_yet(folder):
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert [step["step"] for step in read_run(folder).steps] == [1, 2, 3, 4]


def test_a_folder_that_is_no_run_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"has no run\.json.*output_dir of `tropd train`"):
        run_page([tmp_path])


@pytest.mark.parametrize("text", ["[1]", "{", '{"method": 3}', "{}"])
def test_a_damaged_description_is_named(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(ValueError, match=r"run\.json"):
        run_page([tmp_path])


# ---------------------------------------------------------------------- which rollouts


def test_a_long_run_is_thinned_out_evenly_and_its_ends_stay(tmp_path):
    many = [rollout(step, 0, [token("x")] * 1500) for step in range(1, 41)]
    run = read_run(write_run(tmp_path / "run", rollouts=many))
    (kept,), (left_out,) = choose_rollouts([run])
    steps = [record["step"] for record in kept]
    assert steps[0] == 1 and steps[-1] == 40 and len(steps) == MOST_TOKENS // 1500 == 40 - left_out
    assert max(b - a for a, b in pairwise(steps)) <= 6
    assert f"of {left_out} more logged steps" in run_page([run.path])


def test_a_rollout_longer_than_the_page_takes_is_cut_and_says_so(tmp_path):
    folder = write_run(tmp_path / "run", rollouts=[rollout(1, 0, [token("x")] * (MOST_OF_ONE + 3))])
    (only,) = data_of(run_page([folder]))["rollouts"]
    assert len(only["tokens"]) == MOST_OF_ONE and only["cut"] == 3


def test_spreading_visits_every_number_once():
    assert all(sorted(spread(count)) == list(range(count)) for count in range(20))


# ---------------------------------------------------------------------- before and after


def steps(*prefixes: float) -> list[dict]:
    return [{"loss": 0.0, "kl/k1": 0.2, "guidance/prefix_length": prefix} for prefix in prefixes]


def moved(found, label="reverse KL, K1 estimate (nats)"):
    (row,) = [row for row in found.rows if row.label == label]
    return row.values, row.moved, row.well


def test_without_a_prefix_the_last_steps_compare_with_the_preflight():
    found = outcome(steps(0, 0), {"k1": 0.4})
    assert found.titles == ("preflight", "last steps") and moved(found) == (("0.400", "0.200"), "↓", True)
    assert found.note == ""


def test_behind_a_prefix_nothing_is_said_to_have_moved():
    found = outcome(steps(30, 12), {"k1": 0.4})
    assert moved(found) == (("0.400", "0.200"), "", None)
    assert "12.0 tokens" in found.note and "eval_data" in found.note


def test_an_evaluation_is_what_a_guided_run_compares():
    found = outcome([*steps(30, 12), {"step": 2, "eval_loss": 0.0, "eval_kl/k1": 0.5}], {"k1": 0.4})
    assert found.titles == ("preflight", "evaluation, step 2", "last steps")
    assert moved(found) == (("0.400", "0.500", "0.200"), "↑", False)


def test_without_a_preflight_the_first_evaluation_stands_for_it():
    evaluations = [{"step": n, "eval_loss": 0.0, "eval_kl/k1": 1.0 - 0.1 * n} for n in (1, 2)]
    found = outcome([*steps(30, 12), *evaluations], {})
    assert found.titles == ("evaluation, step 1", "evaluation, step 2", "last steps")
    assert moved(found) == (("0.900", "0.800", "0.200"), "↓", True)


def test_one_evaluation_alone_is_not_compared_with_guided_steps():
    found = outcome([*steps(30, 12), {"step": 2, "eval_loss": 0.0, "eval_kl/k1": 0.5}], {})
    assert moved(found)[1:] == ("", None) and "No arrows" in found.note


# ---------------------------------------------------------------------- following a run


@pytest.fixture
def ask(folder):
    server = serve([folder], 0, seconds=7)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()

    def ask(path="/", host=None, method="GET"):
        connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
        connection.request(method, path, headers={} if host is None else {"Host": host})
        answer = connection.getresponse()
        return answer, answer.read().decode()

    yield ask
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_page_that_follows_a_run_has_its_news(ask, folder):
    answer, page = ask()
    assert answer.status == 200 and 'data-follow="7"' in page and "Step 4 of 4." in page
    assert answer.getheader("Cache-Control") == "no-store"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "loss": 0.1}\n')
    assert "Step 5 of 4." in ask()[1]


def test_it_is_for_this_machine_alone(ask):
    assert ask(host="evil.example")[0].status == 403
    assert ask("/run.json")[0].status == ask("/../run.json")[0].status == 404
    assert ask(method="POST")[0].status == 501


def test_before_a_run_has_begun_the_page_waits(ask, folder):
    (folder / "run.json").unlink()
    answer, page = ask()
    assert answer.status == 503 and "has no run.json" in page and 'content="7"' in page
