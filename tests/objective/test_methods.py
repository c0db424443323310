"""The published settings under the papers' names, and the refusal of changes that mean nothing."""

import pytest

import reference
from tropd import objective
from tropd.objective import METHODS, SETTINGS, Method, get_method, register_method

PAPER_NAMES = {
    "opd", "gkd", "fkl", "jsd", "entropy_opd", "eopd", "reopold", "reopold_2stage", "mask_outlier", "fkl_outlier",
    "tropd_mask", "tropd_clip", "tropd", "aopd", "resopd",
    "vopd", "mixture_opd", "tv_opd", "power_opd",
}  # fmt: skip
OURS = {"tropd_share", "tropd_support", "tropd_released"}


def test_the_methods_are_those_of_the_papers_and_ours():
    assert set(METHODS) == PAPER_NAMES | OURS
    assert all(name == method.name for name, method in METHODS.items())


@pytest.mark.parametrize("name", ["fkl", "jsd", "fkl_outlier", "tropd", "aopd"])
def test_the_paper_uses_the_teachers_top_64(name):
    assert get_method(name).fkl_top_k == 64


@pytest.mark.parametrize("name", sorted(PAPER_NAMES))
def test_only_the_tropd_family_is_guided(name):
    method = get_method(name)
    assert method.guided == name.startswith("tropd")
    if method.guided:
        assert (method.guidance_schedule, method.guidance_length, method.guidance_beta) == ("cosine", "cap", 0.001)


def test_ours_is_tropd_with_another_prefix():
    assert get_method("tropd_share").source.startswith("ours"), "no paper is named for it"
    changed = get_method("tropd", guidance_length="share", guidance_beta=0.1)
    differing = {key for key, value in vars(changed).items() if value != getattr(get_method("tropd_share"), key)}
    assert differing == {"name", "summary", "source"}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("tropd", {"gate": "bernoulli", "outlier": "fkl_direct", "fkl_truncation": "none"}),
        ("fkl_outlier", {"gate": "bernoulli", "outlier": "fkl_direct", "fkl_truncation": "none"}),
        ("tropd_mask", {"gate": "bernoulli", "outlier": "mask"}),
        ("tropd_clip", {"gate": "hard", "outlier": "clip", "outlier_tau": -2.0}),
        ("mask_outlier", {"gate": "hard", "outlier": "mask", "outlier_tau": -2.0}),
        ("reopold", {"outlier": "clip", "outlier_tau": -2.0}),
        ("aopd", {"gate": "hard", "outlier": "fkl_direct", "outlier_tau": 0.0}),
        ("eopd", {"teacher_entropy_tau": 0.8, "fkl_weight": 1.0, "fkl_top_k": 16, "fkl_truncation": "teacher_renorm"}),
        ("jsd", {"jsd_beta": 0.5}),
        ("entropy_opd", {"entropy_share": 0.2}),
        ("fkl", {"outlier": "fkl_direct", "fkl_truncation": "none"}),
    ],
)
def test_a_name_is_its_published_setting(name, settings):
    method = get_method(name)
    assert {key: getattr(method, key) for key in settings} == settings


def test_eopd_clips_the_ratio_as_published():
    assert get_method("eopd").ratio_clip == 0.2


def test_reopold_changes_its_mask_between_a_third_and_a_half_of_training():
    method = get_method("reopold_2stage")
    assert 1 / 3 <= method.switch_at <= 1 / 2
    first, second = method.stage(0.0), method.stage(1.0)
    assert (first.gate, second.gate) == ("floor", "student_entropy")
    assert first.outlier_tau == second.advantage_floor == pytest.approx(reference.reopold_floor(0.3), abs=0.005)
    assert second.entropy_share == 0.2
    assert first.reduction == second.reduction == "selected"
    assert method.stage(method.switch_at) is second and method.stage(method.switch_at - 1e-9) is first


def test_one_floor_serves_both_phases_of_reopold():
    method = get_method("reopold_2stage", outlier_tau=-2.56)
    assert method.stage(0.0).outlier_tau == method.stage(1.0).advantage_floor == -2.56


@pytest.mark.parametrize(
    "changes",
    [{"ratio_clip": 0.1}, {"guidance_schedule": "cosine", "reduction": "shared"}, {"reduction": "per_region"}],
)
def test_a_setting_without_a_phase_of_its_own_holds_in_both(changes):
    method = get_method("reopold_2stage", **changes)
    for key in changes:
        assert getattr(method.stage(0.0), key) == getattr(method.stage(1.0), key) == changes[key]


def test_a_method_of_one_stage_stays_the_same():
    method = get_method("tropd")
    assert all(method.stage(progress) is method for progress in (0.0, 0.5, 1.0))


@pytest.mark.parametrize("name", sorted(PAPER_NAMES))
def test_a_method_knows_what_it_must_ask_of_the_teacher(name):
    method = get_method(name)
    assert method.needs_topk == (name in {"fkl", "jsd", "eopd", "fkl_outlier", "tropd", "aopd", "resopd"})
    assert method.needs_full_teacher == (name in {"gkd", "vopd"})


def test_switching_the_outlier_treatment_fills_in_what_it_needs():
    assert get_method("tropd", outlier="clip").outlier_tau == -2.0
    assert get_method("tropd_mask", outlier="fkl_direct").fkl_top_k == 64
    assert get_method("tropd", gate="hard").outlier_tau == -2.0
    assert get_method("opd", guidance_schedule="cosine").guidance_beta == 0.001
    inside = get_method("tropd_mask", outlier="rkl_direct")
    assert (inside.outlier_tau, inside.fkl_top_k) == (-2.0, 64) and inside.needs_topk
    union = get_method("tropd_support", support="union")
    assert union.needs_full_teacher and not union.needs_topk and union.fkl_top_k == 16


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("topd", {}, "did you mean 'tropd'"),
        ("tropd", {"gates": "hard"}, "did you mean 'gate'"),
        ("tropd", {"gate": "bernouli"}, "did you mean 'bernoulli'"),
        ("tropd", {"fkl_top_k": 0}, "fkl_top_k is 0"),
        ("tropd", {"outlier_tau": -2.0}, "would have no effect"),
        ("opd", {"gate": "hard"}, "it has no trust gate"),  # it would be mask_outlier under a wrong name
        ("fkl", {"gate": "bernoulli"}, "it has no trust gate"),
        ("eopd", {"outlier": "mask"}, "would have no effect"),
        ("opd", {"fkl_top_k": 8}, "would have no effect"),
        ("tropd", {"support": "union"}, "it has no support: its tokens are split by `gate: bernoulli`"),
        ("tropd_support", {"support": "both"}, "support is 'both'. Choose one of: teacher, union"),
        ("tropd_support", {"outlier": "rkl_direct"}, "only one divergence"),
        ("tropd", {"outlier": "rkl_direct", "fkl_truncation": "tail"}, "it has no top-k forward KL"),
        ("opd", {"guidance_beta": 0.1}, "set `guidance_schedule` first"),
        ("fkl", {"outlier": "mask"}, "nothing would be learned"),
        ("jsd", {"jsd_beta": 0.0}, "0 < jsd_beta < 1"),
        ("tropd", {"reduction": "selected"}, "shared"),
        ("entropy_opd", {"entropy_share": 1.5}, r"in \(0, 1\]"),
        ("mask_outlier", {"outlier_tau": float("nan")}, "outlier_tau is nan"),
        ("fkl", {"advantage_floor": -2.0}, "would have no effect"),  # no token is trusted
        ("gkd", {"advantage_floor": -2.0}, "would have no effect"),  # no advantage
        ("aopd", {"advantage_floor": -2.0}, "already bounded"),  # r > 0 of what is trusted
        ("opd", {"advantage_floor": 0.5}, "at most 0"),
        ("opd", {"advantage_floor": "low"}, "advantage_floor is 'low'"),
        ("opd", {"advantage_scale": "total_variation"}, "with advantage 'log_ratio': .* Set advantage sign"),
        ("tv_opd", {"advantage": "power"}, "with advantage 'power': .* or advantage_scale none"),
        ("gkd", {"advantage_scale": "total_variation"}, "would have no effect"),
        ("tv_opd", {"advantage_scale": "totalvariation"}, "did you mean 'total_variation'"),
    ],
)
def test_a_change_that_means_nothing_is_refused_with_advice(name, changes, words):
    with pytest.raises(ValueError, match=words):
        get_method(name, **changes)


def test_both_stages_take_a_scale_with_their_advantage():
    method = get_method("reopold_2stage", advantage="sign", advantage_scale="total_variation")
    assert method.stage(0.0).advantage_scale == method.stage(1.0).advantage_scale == "total_variation"
    assert get_method("tv_opd", advantage="log_ratio", advantage_scale="none").advantage == "log_ratio"


def test_none_keeps_the_methods_own_setting():
    assert get_method("tropd", **dict.fromkeys(SETTINGS)) == METHODS["tropd"]


def test_a_method_describes_itself_as_plain_data():
    plain = objective.describe(get_method("reopold_2stage"))
    assert plain["second_stage"]["gate"] == "student_entropy"
    assert None not in plain.values()


def test_a_record_from_before_a_part_existed_is_that_of_the_same_method():
    """A run that began without `support` can be resumed; checkpoints compare these records."""
    assert describe_parts("opd") == {
        "gate": "open", "trust": "k1", "outlier": "mask", "advantage": "log_ratio", "baseline": "none",
        "fkl_weight": 1.0, "guidance_schedule": "none", "guidance_length": "cap", "guidance_term": "nll",
        "reduction": "shared", "turn_trust": "none",
    }  # fmt: skip
    assert "support" not in describe_parts("tropd_support")
    assert describe_parts("tropd_support", support="union")["support"] == "union"
    assert "advantage_scale" not in describe_parts("tv_opd", advantage_scale="none")
    assert describe_parts("tv_opd")["advantage_scale"] == "total_variation"


def describe_parts(name, **changes):
    plain = objective.describe(get_method(name, **changes))
    return {key: value for key, value in plain.items() if key not in ("name", "summary", "source")}


# ---------------------------------------------------------------------- methods of one's own


@pytest.fixture
def own():
    """METHODS as it was, afterwards."""
    before = dict(METHODS)
    yield
    METHODS.clear()
    METHODS.update(before)


@pytest.mark.parametrize("name", METHODS)
def test_every_published_method_could_be_registered(name):
    assert register_method(METHODS[name]) == METHODS[name]


def test_a_registered_method_is_one_of_the_methods(own):
    cautious = Method("cautious", "K1 with max(r, −3)", "ours", gate="open", advantage_floor=-3.0)
    assert register_method(cautious) is METHODS["cautious"]
    assert get_method("cautious") == cautious and get_method("cautious", advantage_floor=-1.0).advantage_floor == -1.0


def test_what_a_registered_method_reads_is_filled_in(own):
    method = register_method(Method("mine", "", "", gate="hard", outlier="fkl_direct", guidance_schedule="linear"))
    assert (method.outlier_tau, method.fkl_top_k, method.fkl_truncation) == (-2.0, 64, "none")
    assert method.guidance_beta == 0.001


SECOND = Method("mine", "", "", gate="open")
SCALED = Method("mine", "", "", gate="open", advantage_scale="total_variation")


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"name": "tropd"}, "name is 'tropd', which another method already has"),
        ({"name": "my:own"}, "use letters, digits and _"),
        ({"gate": "trust"}, "gate is 'trust'"),
        ({"trust": "k2"}, "trust is 'k2'"),
        ({"gate": "bernoulli", "outlier": "fkl_dir"}, "did you mean 'fkl_direct'"),
        ({"gate": "student_entropy"}, "entropy_share is None"),
        ({"gate": "teacher_entropy"}, "teacher_entropy_tau is None"),
        ({"trust": "jsd"}, "jsd_beta is None"),
        ({"trust": "jsd", "jsd_beta": 0.5, "gate": "bernoulli", "outlier": "fkl_direct"}, "one divergence"),
        ({"gate": "closed"}, "nothing would be learned"),
        ({"ratio_clip": 2.0}, "ratio_clip is 2.0"),
        ({"fkl_weight": 2.0}, "fkl_weight is 2.0, which would have no effect"),
        ({"switch_at": 0.5}, "switch_at is 0.5, which would have no effect under method 'mine': it has one phase"),
        ({"advantage_scale": "total_variation"}, "with advantage 'log_ratio'"),
        ({"second_stage": SCALED, "switch_at": 0.5}, "with advantage 'log_ratio'"),
        ({"second_stage": SECOND}, "switch_at is None and second_stage is not None"),
        (
            {"guidance_schedule": "cosine", "second_stage": SECOND, "switch_at": 0.5},
            "Give both stages guidance",
        ),
    ],
)
def test_a_method_of_ones_own_that_cannot_work_is_refused(own, parts, words):
    with pytest.raises(ValueError, match=words):
        register_method(Method(**{"name": "mine", "summary": "", "source": "", "gate": "open"} | parts))
    assert "mine" not in METHODS


MODULE = """
from tropd import Method, get_method

CAUTIOUS = Method("cautious", "K1 with max(r, -3)", "ours", gate="open", advantage_floor=-3.0)
TAKEN = get_method("tropd", outlier_tau=None, guidance_beta=0.1)
NUMBER = 3
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """A module in the working directory; its name is no other test's."""
    name = f"methods_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_a_method_is_named_by_where_python_finds_it(module):
    assert get_method(f"{module}:CAUTIOUS").advantage_floor == -3.0
    changed = get_method(f"{module}:CAUTIOUS", advantage_floor=-1.0)
    assert (changed.name, changed.advantage_floor) == ("cautious", -1.0) and "cautious" not in METHODS


@pytest.mark.parametrize(
    ("attribute", "words"),
    [
        ("CAREFUL", "has no attribute 'CAREFUL'"),
        ("NUMBER", "which is of type int"),
        ("TAKEN", "name is 'tropd', which another method already has"),
    ],
)
def test_what_is_no_method_is_refused_with_its_path(module, attribute, words):
    with pytest.raises(ValueError, match=f"^method is '{module}:{attribute}', .*{words}"):
        get_method(f"{module}:{attribute}")


@pytest.mark.parametrize("path", ["no_such_module:CAUTIOUS", ":CAUTIOUS", "tropd.objective.methods:"])
def test_a_path_that_leads_nowhere_is_refused(path):
    with pytest.raises(ValueError, match=f"^method is '{path}', but .*Write package.module:NAME"):
        get_method(path)
