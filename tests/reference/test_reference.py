"""The reference against itself: finite differences, arithmetic by hand, and the facts it should obey."""

import math

import numpy as np
import pytest

from reference import (
    DEFAULTS,
    GATED,
    OUTLIERS,
    TRUNCATIONS,
    Array,
    coarsened,
    differences,
    entropy,
    events_of_ids,
    expected_gradient,
    expected_guidance_gradient,
    expected_loss,
    forward_kl,
    generalised_jsd,
    guidance_gradient,
    head_logp,
    highest_entropy_share,
    hybrid_jsd_topk_gradient,
    hybrid_jsd_topk_part,
    jsd_gradient,
    k1,
    k2,
    k3,
    log_softmax,
    logp_of,
    pair,
    per_region_mean,
    per_turn_mean,
    policy_gradient,
    prefix_length,
    reopold_floor,
    reverse_kl,
    reverse_kl_gradient,
    selected_mean,
    settings_of,
    shared_mean,
    skew_forward_kl,
    skew_forward_kl_gradient,
    skew_reverse_kl,
    skew_reverse_kl_gradient,
    spread_over_ids,
    surrogate,
    takeover_probabilities,
    teacher_is_uncertain,
    top_k,
    topk_forward_kl,
    topk_forward_kl_gradient,
    total_variation,
    trust_probability,
    trust_weight,
    turn_trusts,
)

V = 6
EXACT = 1e-12
DIFFERENCED = 2e-8  # central differences with a step of 1e-5: (1e-5)² times a third derivative, and rounding


# Values by hand.


def test_the_direction_is_in_the_name():
    student, teacher = np.log([0.5, 0.5]), np.log([0.9, 0.1])
    # KL(π_S‖π_T) = ½ log(.5/.9) + ½ log(.5/.1) = 0.5108;  KL(π_T‖π_S) = .9 log(.9/.5) + .1 log(.1/.5) = 0.3681
    assert reverse_kl(student, teacher) == pytest.approx(0.510826, abs=1e-6)
    assert forward_kl(student, teacher) == pytest.approx(0.368064, abs=1e-6)


def test_log_softmax_takes_bias_scale_softcap_and_temperature_in_this_order():
    # bias: (1, 1); scale 2: (2, 2 + 2 log 3); no cap; temperature 2: (1, 1 + log 3): probabilities ¼ and ¾
    logp = log_softmax([1.0, 0.0], bias=[0.0, 1.0 + math.log(3)], scale=2.0, temperature=2.0)
    assert np.exp(logp) == pytest.approx([0.25, 0.75], abs=EXACT)
    capped = log_softmax([0.0, 1e9], softcap=math.log(3))  # tanh(∞) = 1: logits 0 and log 3
    assert np.exp(capped) == pytest.approx([0.25, 0.75], abs=EXACT)


def test_a_head_is_a_matrix_product_and_a_softmax():
    weight = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    expected = log_softmax([2.0, -1.0, 1.0])
    assert head_logp(np.array([[2.0, -1.0]]), weight)[0] == pytest.approx(expected, abs=EXACT)


def test_probability_zero_contributes_nothing():
    teacher = log_softmax([0.0, -math.inf, 0.0])
    student = log_softmax([0.0, 0.0, 0.0])
    assert entropy(teacher) == pytest.approx(math.log(2))
    assert forward_kl(student, teacher) == pytest.approx(math.log(1.5))
    assert reverse_kl(student, teacher) == math.inf
    assert topk_forward_kl(student, teacher, 3) == pytest.approx(math.log(1.5))


def test_top_k_is_sorted_and_prefers_the_lower_id():
    assert top_k([0.0, 2.0, 1.0, 2.0], 3) == [1, 3, 2]
    assert top_k([0.0, 2.0], 64) == [1, 0]
    assert logp_of([-1.0, -2.0, -3.0], [2, 0]).tolist() == [-3.0, -1.0]


def test_k1_and_k3_average_to_the_reverse_kl():
    student, teacher = map(log_softmax, pair(0))
    for estimator in (k1, k3):
        mean = sum(math.exp(s) * estimator(t - s) for s, t in zip(student, teacher, strict=True))
        assert mean == pytest.approx(reverse_kl(student, teacher), abs=EXACT)


def test_jensen_shannon_is_a_mixture_of_two_divergences():
    student, teacher = map(log_softmax, pair(1))
    assert generalised_jsd(student, teacher, 0.5) == pytest.approx(generalised_jsd(teacher, student, 0.5))
    assert generalised_jsd(student, teacher, 0.0) == forward_kl(student, teacher)
    assert generalised_jsd(student, teacher, 1.0) == reverse_kl(student, teacher)
    # The endpoints are the limits up to a factor: JSD_β / β tends to forward KL as β falls to 0.
    assert generalised_jsd(student, teacher, 1e-6) / 1e-6 == pytest.approx(forward_kl(student, teacher), rel=1e-4)


def test_skew_divergences_tend_to_the_plain_ones():
    student, teacher = map(log_softmax, pair(2))
    assert skew_forward_kl(student, teacher, 0.0) == pytest.approx(forward_kl(student, teacher), abs=EXACT)
    assert skew_reverse_kl(student, teacher, 0.0) == pytest.approx(reverse_kl(student, teacher), abs=EXACT)
    assert skew_forward_kl(student, teacher, 1.0) == pytest.approx(0.0, abs=EXACT)


def test_gates_by_hand():
    half = math.log(0.5)
    assert trust_probability(half) == pytest.approx(0.5)
    assert trust_probability(3.0) == 1.0
    assert trust_probability(-math.inf) == 0.0
    assert trust_weight(half, "bernoulli", uniform=0.49) == 1.0
    assert trust_weight(half, "bernoulli", uniform=0.5) == 0.0
    assert trust_weight(-math.inf, "bernoulli", uniform=0.0) == 0.0
    assert trust_weight(half, "expected") == pytest.approx(0.5)
    assert trust_weight(-2.0, "hard", threshold=-2.0) == 0.0


def test_the_entropy_share_is_taken_from_the_whole_batch():
    assert highest_entropy_share([0.1, 0.9, 0.3, 0.2, 0.8], 0.2) == [False, True, False, False, False]
    assert sum(highest_entropy_share(range(100), 0.07)) == 7
    assert highest_entropy_share([1.0, 1.0, 0.0], 0.2) == [True, True, False]
    assert highest_entropy_share([], 0.2) == []
    assert teacher_is_uncertain(log_softmax([0.0, 0.0, 0.0]))
    assert not teacher_is_uncertain(log_softmax([0.0, 0.0]))


def test_reopold_floors_are_the_published_ones():
    assert reopold_floor(0.3) == pytest.approx(-1.72, abs=0.005)
    assert reopold_floor(0.1) == pytest.approx(-2.56, abs=0.005)


# Analytic gradients against finite differences.


@pytest.mark.parametrize("k", [1, 2, V])
@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_topk_forward_kl_gradient(truncation, k):
    logits, teacher_logits = pair(3)
    teacher = log_softmax(teacher_logits)
    numeric = differences(lambda z: topk_forward_kl(log_softmax(z), teacher, k, truncation), logits)
    analytic = topk_forward_kl_gradient(log_softmax(logits), teacher, k, truncation)
    assert analytic == pytest.approx(numeric, abs=DIFFERENCED)


@pytest.mark.parametrize(
    ("value", "gradient"),
    [
        (reverse_kl, reverse_kl_gradient),
        *[
            (lambda s, t, b=b: generalised_jsd(s, t, b), lambda s, t, b=b: jsd_gradient(s, t, b))
            for b in (0.0, 0.1, 0.5, 0.9, 1.0)
        ],
        *[
            (
                lambda s, t, k=k: hybrid_jsd_topk_part(s, t, k, 0.3),
                lambda s, t, k=k: hybrid_jsd_topk_gradient(s, t, k, 0.3),
            )
            for k in (1, 3, V)
        ],
        (skew_forward_kl, skew_forward_kl_gradient),
        (skew_reverse_kl, skew_reverse_kl_gradient),
    ],
)
def test_divergence_gradients(value, gradient):
    logits, teacher_logits = pair(4)
    teacher = log_softmax(teacher_logits)
    numeric = differences(lambda z: value(log_softmax(z), teacher), logits)
    assert gradient(log_softmax(logits), teacher) == pytest.approx(numeric, abs=DIFFERENCED)


CASES = [
    *[(method, {}) for method in DEFAULTS],
    *[
        (method, {"gate": gate, "outlier": outlier})
        for method in ("tropd", "mask_outlier", "tropd_clip")
        for gate in ("bernoulli", "expected", "hard")
        for outlier in OUTLIERS
    ],
    *[("tropd", {"truncation": truncation}) for truncation in TRUNCATIONS],
    *[("gkd", {"beta": beta}) for beta in (0.0, 0.3, 1.0)],
    ("eopd", {"selected": False}),
    ("entropy_opd", {"selected": False}),
    ("reopold_2stage", {"phase": 2}),
    ("reopold_2stage", {"phase": 2, "selected": False}),
    ("fkl", {"outlier": "fkl_scalar"}),
    ("tropd_support", {"union": True, "k": 1}),
]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize(("method", "options"), CASES)
def test_expected_gradient_is_that_of_the_surrogate(method, options, temperature):
    options = {"k": 3, "threshold": -0.5, "floor": -0.5} | options
    if method == "aopd":
        options["threshold"] = 0.0
    logits, teacher_logits = pair(5)
    overrides = {name: value for name, value in options.items() if name != "selected"}
    frozen = log_softmax(logits, temperature=temperature)
    teacher = log_softmax(teacher_logits, temperature=temperature)

    def function(z: Array) -> float:
        student = log_softmax(z, temperature=temperature)
        settings = settings_of(method, **overrides)
        return surrogate(method, student, frozen, teacher, settings, options.get("selected", True))

    analytic = expected_gradient(method, logits, teacher_logits, temperature=temperature, **options)
    assert analytic == pytest.approx(differences(function, logits), abs=DIFFERENCED)
    assert analytic.sum() == pytest.approx(0.0, abs=EXACT)  # shifting all logits changes nothing


def test_guidance_gradient():
    logits, teacher_logits = pair(6)
    numeric = differences(lambda z: -0.3 * log_softmax(z, temperature=0.7)[2], logits)
    assert guidance_gradient(logits, 2, 0.3, temperature=0.7) == pytest.approx(numeric, abs=DIFFERENCED)
    kl = differences(lambda z: 0.3 * forward_kl(log_softmax(z), log_softmax(teacher_logits)), logits)
    assert expected_guidance_gradient(logits, teacher_logits, 0.3) == pytest.approx(kl, abs=DIFFERENCED)


def test_guidance_as_a_detached_advantage_would_push_teacher_tokens_down():
    student, teacher = log_softmax([0.0, 0.0, 0.0]), log_softmax([3.0, 0.0, 0.0])
    right = guidance_gradient([0.0, 0.0, 0.0], 0, 1.0)
    wrong = -(student[0] - teacher[0]) * -right  # −A ∇log π_S with A = log π_S − log π_T < 0
    assert right[0] < 0 < wrong[0]


# The facts.


@pytest.mark.parametrize("seed", range(5))
def test_outlier_rate_is_total_variation(seed):
    student, teacher = map(log_softmax, pair(seed))
    trusted = sum(math.exp(s) * trust_probability(t - s) for s, t in zip(student, teacher, strict=True))
    assert trusted == pytest.approx(1 - total_variation(student, teacher), abs=EXACT)


@pytest.mark.parametrize("outlier", OUTLIERS)
@pytest.mark.parametrize("method", GATED)
def test_the_expected_gate_is_the_bernoulli_gate_averaged(method, outlier):
    logits, teacher_logits = pair(7)
    bernoulli = expected_gradient(method, logits, teacher_logits, gate="bernoulli", outlier=outlier, k=2)
    averaged = expected_gradient(method, logits, teacher_logits, gate="expected", outlier=outlier, k=2)
    assert bernoulli == pytest.approx(averaged, abs=EXACT)


def test_scalar_forward_kl_on_every_token_has_no_expected_gradient():
    logits, teacher_logits = pair(8)
    gradient = expected_gradient("fkl", logits, teacher_logits, outlier="fkl_scalar", k=3)
    assert gradient == pytest.approx(np.zeros(V), abs=EXACT)
    assert np.abs(expected_gradient("fkl", logits, teacher_logits, k=3)).max() > 0.05


@pytest.mark.parametrize("k", [1, 3, V])
def test_direct_forward_kl_is_bounded_where_its_value_diverges(k):
    teacher_logits = np.array([4.0, 3.0, 2.0, 0.0, 0.0, 0.0])
    logits = np.array([-500.0, -500.0, -500.0, 0.0, 0.0, 0.0])  # no mass on the teacher's top-3
    student, teacher = log_softmax(logits), log_softmax(teacher_logits)
    mass = sum(math.exp(teacher[v]) for v in top_k(teacher, k))
    gradient = expected_gradient("fkl", logits, teacher_logits, k=k)
    printed = mass * np.exp(student)
    printed[top_k(teacher, k)] -= np.exp(teacher[top_k(teacher, k)])
    assert gradient == pytest.approx(printed, abs=EXACT)
    assert np.abs(gradient).sum() <= 2 * mass + EXACT
    assert topk_forward_kl(student, teacher, k) > 400 * mass
    assert np.abs(gradient).sum() > mass  # the value diverges, and the gradient does not vanish either


@pytest.mark.parametrize("k", range(1, V + 1))
@pytest.mark.parametrize("seed", range(5))
def test_the_topk_sum_is_bounded_below_by_the_two_masses(seed, k):
    student, teacher = map(log_softmax, pair(seed))
    kept = top_k(teacher, k)
    mass_teacher, mass_student = np.exp(teacher[kept]).sum(), np.exp(student[kept]).sum()
    bound = mass_teacher * math.log(mass_teacher / mass_student)
    assert topk_forward_kl(student, teacher, k) >= bound - EXACT
    assert topk_forward_kl(student, teacher, k, "teacher_renorm") >= -EXACT
    assert topk_forward_kl(student, teacher, k, "tail") >= -EXACT
    assert topk_forward_kl(student, teacher, k, "tail") <= forward_kl(student, teacher) + EXACT


def test_the_topk_sum_as_printed_can_be_negative():
    student, teacher = np.log([0.8, 0.1, 0.1]), np.log([0.4, 0.3, 0.3])
    assert topk_forward_kl(student, teacher, 1) == pytest.approx(0.4 * math.log(0.5))


@pytest.mark.parametrize("truncation", TRUNCATIONS)
def test_every_truncation_is_the_forward_kl_at_full_k(truncation):
    student, teacher = map(log_softmax, pair(9))
    exact = forward_kl(student, teacher)
    assert topk_forward_kl(student, teacher, V, truncation) == pytest.approx(exact, abs=EXACT)


@pytest.mark.parametrize("k", [1, 2, 4])
def test_teacher_renorm_divides_the_gradient_by_the_teachers_mass(k):
    student, teacher = map(log_softmax, pair(10))
    mass = np.exp(teacher[top_k(teacher, k)]).sum()
    printed = topk_forward_kl_gradient(student, teacher, k, "none")
    renormalised = differences(lambda z: topk_forward_kl(log_softmax(z), teacher, k, "teacher_renorm"), student)
    assert renormalised == pytest.approx(printed / mass, abs=DIFFERENCED)


def test_a_token_trusted_by_its_ratio_never_weighs_more_than_one_over_e():
    weights = [r * trust_probability(r) for r in np.linspace(-30, 0, 10_001)]
    assert min(weights) >= -1 / math.e
    assert min(weights) == pytest.approx(-1 / math.e, abs=1e-6)


def test_direct_gradients_of_the_estimators():
    logits, teacher_logits = pair(11)
    student, teacher = log_softmax(logits), log_softmax(teacher_logits)

    def averaged(estimator) -> Array:  # Σ_x π_S(x) ∇estimator(x), the sampling probability detached
        def function(z: Array) -> float:
            new = log_softmax(z)
            return sum(math.exp(s) * estimator(t - n) for s, t, n in zip(student, teacher, new, strict=True))

        return differences(function, logits)

    assert averaged(k1) == pytest.approx(np.zeros(V), abs=DIFFERENCED)
    assert averaged(k2) == pytest.approx(reverse_kl_gradient(student, teacher), abs=DIFFERENCED)
    assert averaged(k3) == pytest.approx(np.exp(student) - np.exp(teacher), abs=DIFFERENCED)


def test_opd_is_the_reverse_kl():
    logits, teacher_logits = pair(12)
    student, teacher = log_softmax(logits), log_softmax(teacher_logits)
    exact = reverse_kl_gradient(student, teacher)
    assert expected_gradient("opd", logits, teacher_logits) == pytest.approx(exact, abs=EXACT)
    assert expected_loss("opd", logits, teacher_logits) == pytest.approx(reverse_kl(student, teacher))


def test_the_sampled_part_of_the_hybrid_is_already_the_whole_jensen_shannon_gradient():
    # β π_T/M ∇M and (1 − β) π_S/M ∇M sum to ∇Σ M = 0, so detaching M in the sampled part alone leaves ∇JSD, and
    # the direct top-k part comes on top of it: at k = V the hybrid is not an estimator of ∇JSD.
    logits, teacher_logits = pair(13)
    student, teacher = log_softmax(logits), log_softmax(teacher_logits)
    hybrid = expected_gradient("jsd", logits, teacher_logits, k=V)
    direct = hybrid_jsd_topk_gradient(student, teacher, V, 0.5)
    assert hybrid - direct == pytest.approx(jsd_gradient(student, teacher, 0.5), abs=EXACT)
    assert np.abs(direct).max() > 0.01
    assert expected_loss("jsd", logits, teacher_logits, k=V) == pytest.approx(generalised_jsd(student, teacher, 0.5))


# Limits that must coincide.


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("eopd", {"selected": False}),
        ("entropy_opd", {}),
        ("reopold", {"floor": -math.inf}),
        ("reopold_2stage", {"floor": -math.inf}),
        ("reopold_2stage", {"floor": -math.inf, "phase": 2}),
        *[(method, {"gate": "hard", "threshold": -math.inf}) for method in GATED],
    ],
)
def test_these_limits_are_opd(method, options):
    logits, teacher_logits = pair(14)
    opd = expected_gradient("opd", logits, teacher_logits)
    assert expected_gradient(method, logits, teacher_logits, **options) == pytest.approx(opd, abs=EXACT)


def test_the_gate_forced_shut_is_forward_kl():
    logits, teacher_logits = pair(15)
    fkl = expected_gradient("fkl", logits, teacher_logits, k=3)
    shut = expected_gradient("tropd", logits, teacher_logits, gate="hard", threshold=math.inf, k=3)
    assert shut == pytest.approx(fkl, abs=EXACT)


def test_rows_of_the_table_by_their_literal_formulas():
    logits, teacher_logits = pair(16)
    student, teacher = log_softmax(logits), log_softmax(teacher_logits)
    r = teacher - student
    tau = -0.4
    clip = policy_gradient(student, np.maximum(r, tau))
    mask = policy_gradient(student, np.where(r > tau, r, 0.0))
    assert min(r) < tau < max(r)
    arguments = (logits, teacher_logits)
    assert expected_gradient("reopold", *arguments, floor=tau) == pytest.approx(clip, abs=EXACT)
    assert expected_gradient("tropd_clip", *arguments, floor=tau, threshold=tau) == pytest.approx(clip)
    assert expected_gradient("mask_outlier", *arguments, threshold=tau) == pytest.approx(mask, abs=EXACT)
    trust = np.minimum(np.exp(r), 1.0)
    fkl = topk_forward_kl_gradient(student, teacher, 3, "none")
    tropd = policy_gradient(student, trust * r) + total_variation(student, teacher) * fkl
    assert expected_gradient("tropd", *arguments, k=3) == pytest.approx(tropd, abs=EXACT)
    aopd = policy_gradient(student, np.maximum(r, 0.0)) + np.exp(student)[r <= 0].sum() * fkl
    assert expected_gradient("aopd", *arguments, k=3) == pytest.approx(aopd, abs=EXACT)


@pytest.mark.parametrize(
    "method", ["opd", "gkd", "entropy_opd", "reopold", "reopold_2stage", "mask_outlier", "tropd_clip", "tropd"]
)
def test_a_student_equal_to_its_teacher_learns_nothing(method):
    logits, _ = pair(17)
    assert expected_gradient(method, logits, logits) == pytest.approx(np.zeros(V), abs=EXACT)


def test_an_impossible_token_of_the_teacher_is_an_outlier_and_breaks_nothing():
    logits, teacher_logits = pair(18)
    teacher_logits[2] = -math.inf
    for gate in ("bernoulli", "expected", "hard"):
        for outlier in ("fkl_direct", "fkl_scalar", "mask", "clip"):
            gradient = expected_gradient("tropd", logits, teacher_logits, gate=gate, outlier=outlier)
            assert np.isfinite(gradient).all()


# The ending as one event.


def test_ids_become_events_by_hand():
    assert events_of_ids(5, (3, 1)) == [0, 3, 1, 3, 2]
    assert events_of_ids(3, (1,)) == [0, 2, 1]  # one ending moves to the end and is an event of its own
    assert events_of_ids(3, ()) == [0, 1, 2]
    coarse = np.exp(coarsened(np.log([0.1, 0.2, 0.3, 0.25, 0.15]), (3, 1)))
    assert coarse == pytest.approx([0.1, 0.3, 0.15, 0.45], abs=EXACT)
    # A gradient of 9 on stop, which ids 3 and 1 have 5/9 and 4/9 of.
    spread = spread_over_ids([1.0, 2.0, 3.0, 9.0], np.log([0.1, 0.2, 0.3, 0.25, 0.15]), (3, 1))
    assert spread == pytest.approx([1.0, 4.0, 2.0, 5.0, 3.0], abs=EXACT)


def test_an_ending_without_probability_has_no_share_and_an_impossible_stop_is_minus_infinity():
    logp = log_softmax([0.0, -math.inf, 1.0, -math.inf])
    assert coarsened(logp, (1, 3))[-1] == -math.inf
    assert spread_over_ids([1.0, 2.0, 9.0], logp, (1, 3)).tolist() == [1.0, 0.0, 2.0, 0.0]
    assert spread_over_ids([1.0, 2.0, 9.0], logp, (2, 3)) == pytest.approx([1.0, 2.0, 9.0, 0.0], abs=EXACT)


@pytest.mark.parametrize("endings", [(), (2,), (4, 1), (5, 0, 3), tuple(range(V))])
@pytest.mark.parametrize("method", DEFAULTS)
def test_spreading_the_gradient_over_ids_is_differentiating_the_objective_over_events(method, endings):
    logits, teacher_logits = pair(19)
    student, teacher = log_softmax(logits), coarsened(log_softmax(teacher_logits), endings)
    settings, frozen = settings_of(method, k=2), coarsened(student, endings)
    by_event = expected_gradient(method, frozen, teacher, k=2)
    numeric = differences(
        lambda z: surrogate(method, coarsened(log_softmax(z), endings), frozen, teacher, settings, True), logits
    )
    assert spread_over_ids(by_event, student, endings) == pytest.approx(numeric, abs=DIFFERENCED)


# Reductions and schedules, by hand.


def test_reductions_over_ragged_sequences():
    losses = [[1.0, 2.0, 3.0], [], [10.0]]
    regions = [["guidance", "on", None], [], ["on"]]
    assert shared_mean(losses, regions) == pytest.approx(13 / 3)
    assert per_region_mean(losses, regions) == pytest.approx(1.0 + 6.0)
    assert selected_mean(losses, [[True, False, True], [], [False]]) == pytest.approx(2.0)
    assert shared_mean([[]], [[]]) == per_region_mean([[]], [[]]) == selected_mean([[]], [[]]) == 0.0


def test_cap_and_share_differ_where_responses_are_short():
    short = {"response_length": 100, "max_length": 8192}
    assert prefix_length(100, 200, reading="cap", **short) == 100  # ⌊½ · 8192⌋ = 4096 > 100
    assert prefix_length(100, 200, reading="share", **short) == 50
    assert prefix_length(0, 200, **short) == 100
    assert prefix_length(200, 200, **short) == prefix_length(250, 200, **short) == 0


def test_other_schedules_and_the_room_left_for_the_student():
    room = {"response_length": 10, "max_length": 10}
    assert [prefix_length(t, 10, schedule="linear", **room) for t in range(11)] == list(range(10, -1, -1))
    assert prefix_length(7, 10, schedule="constant", constant=0.3, **room) == 3
    assert prefix_length(0, 10, schedule="none", **room) == 0
    assert prefix_length(0, 10, ends_with_eos=True, **room) == 9
    assert prefix_length(0, 10, ends_with_eos=True, min_tail=4, **room) == 5
    assert prefix_length(0, 10, min_tail=4, response_length=100, max_length=10) == 6
    assert prefix_length(0, 10, min_tail=20, **room) == 0
    assert prefix_length(0, 10, ends_with_eos=True, response_length=0, max_length=10) == 0


def test_a_mean_over_turns_and_the_trust_of_a_turn_by_hand():
    episode, alone = [[1.0, 2.0, None], [6.0], [None]], [[4.0, 0.0]]
    assert per_turn_mean([episode, alone]) == pytest.approx((3 * (1.5 + 6) / 2 + 2 * 2) / 5)
    assert per_turn_mean([alone]) == 2.0 and per_turn_mean([]) == per_turn_mean([[[None]]]) == 0.0
    assert turn_trusts([[1.0, 0.5, None], [0.0], [1.0]]) == pytest.approx([1.0, 0.75, 0.5])
    assert takeover_probabilities([[1.0, 0.5], [0.0], [1.0]], 0.8) == pytest.approx([0.0, 0.2, 0.4])
