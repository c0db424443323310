"""`tropd methods` says what each method does to each kind of token, as the table of methods is."""

import json

import pytest

from tropd.cli.methods import guidance_words, outlier_words, trust_words
from tropd.objective.methods import METHODS, SETTINGS, Method, describe, get_method


def test_every_method_is_listed(tropd):
    listed = tropd("methods").out
    assert all(f"\n{name} " in listed for name in METHODS)


@pytest.mark.parametrize(
    ("method", "trusted", "outliers", "prefix"),
    [
        (get_method("opd"), "K1 everywhere", "–", "–"),
        (get_method("tropd"), "K1 where u < min(ρ, 1)", "top-64 forward KL", "0.001 · NLL, cosine, cap"),
        (
            get_method("tropd", gate="expected"),
            "K1 weighted by min(ρ, 1)",
            "top-64 forward KL",
            "0.001 · NLL, cosine, cap",
        ),
        (get_method("mask_outlier"), "K1 where r > -2", "nothing", "–"),
        (get_method("reopold", outlier_tau=-3.5), "K1 where r > -3.5", "K1 with max(r, -3.5)", "–"),
        (get_method("fkl"), "–", "top-64 forward KL", "–"),
        (get_method("eopd"), "K1 everywhere", "and top-16 forward KL where H_T > 0.8", "–"),
        (
            get_method("reopold_2stage"),
            "K1 where r ≥ -1.72, then K1 with max(r, -1.72) on the 20% of highest student entropy",
            "nothing",
            "–",
        ),
        (get_method("opd", advantage_floor=-2), "K1 with max(r, -2) everywhere", "–", "–"),
        (
            Method("own", "", "", gate="teacher_entropy", teacher_entropy_tau=0.8, outlier="mask"),
            "K1 where H_T ≤ 0.8",
            "nothing",
            "–",
        ),
        (
            Method("own", "", "", gate="bernoulli", outlier="k1_and_fkl", fkl_top_k=8),
            "K1 where u < min(ρ, 1)",
            "K1 and top-8 forward KL",
            "–",
        ),
        (get_method("tv_opd"), "K1 with the sign of r, scaled by the total variation, everywhere", "–", "–"),
        (get_method("gkd"), "full-vocabulary divergence everywhere", "–", "–"),
        (get_method("tropd_support"), "reverse KL on the teacher's top-16", "K1 with max(r, -2)", "–"),
        (
            get_method("tropd_support", support="union", fkl_top_k=8),
            "reverse KL on both models' top-8",
            "K1 with max(r, -2)",
            "–",
        ),
        (
            get_method("fkl_outlier", outlier="rkl_direct", fkl_top_k=16),
            "K1 where u < min(ρ, 1)",
            "reverse KL on the teacher's top-16, its tail clipped at -2",
            "–",
        ),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_a_method_is_said_in_words(method, trusted, outliers, prefix):
    assert (trust_words(method), outlier_words(method), guidance_words(method)) == (trusted, outliers, prefix)


def test_a_method_is_explained_with_its_settings(tropd):
    told = tropd("methods", "eopd").out
    settings = {key: value for key, value in describe(METHODS["eopd"]).items() if key in SETTINGS}
    assert "arXiv 2603.07079" in told
    for name, value in settings.items():
        assert f"  {name:<22}{value}\n" in told


def test_the_json_is_what_a_run_directory_holds(tropd):
    read = json.loads(tropd("methods", "--json").out)
    assert read == {name: json.loads(json.dumps(describe(method))) for name, method in METHODS.items()}
    assert list(json.loads(tropd("methods", "aopd", "--json").out)) == ["aopd"]
