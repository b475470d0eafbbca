"""Statistics of the report against closed forms, numpy and rliable itself."""

from __future__ import annotations

import numpy as np
import pytest

from saddlepoint.constrained.budget import CostBudget
from saddlepoint.report import stats
from saddlepoint.report.numbers import decimals, duration, fixed, number, plural, spread
from saddlepoint.report.palette import COLOURS, KNOWN, styles
from saddlepoint.report.scale import Scale, budget_scale, tick_labels, ticks


def test_student_quantiles_are_those_of_scipy() -> None:
    quantile = pytest.importorskip("scipy.stats").t.ppf(0.975, np.arange(1, len(stats.T_975) + 1))
    np.testing.assert_allclose(stats.T_975, quantile, atol=5e-5)


def test_mean_interval_is_students() -> None:
    values = np.random.default_rng(0).normal(size=(5, 4))
    found = stats.mean_interval(values)
    half = 2.7764 * values.std(0, ddof=1) / np.sqrt(5)
    np.testing.assert_allclose(found.value, values.mean(0))
    np.testing.assert_allclose(found.low, values.mean(0) - half)
    np.testing.assert_allclose(found.high, values.mean(0) + half)


def test_runs_on_one_axis_keep_their_values_and_are_interpolated_in_between() -> None:
    x, y = stats.align([(np.array([0.0, 10, 20]), np.array([0.0, 1, 4])), (np.array([5.0, 10, 30]), np.array([2.0, 3, 7]))])
    np.testing.assert_allclose(x, [5, 10, 20])  # only where both have values
    np.testing.assert_allclose(y, [[0.5, 1, 4], [2, 3, 5]])


def test_runs_without_a_common_stretch_have_no_axis() -> None:
    x, _ = stats.align([(np.array([0.0, 1]), np.zeros(2)), (np.array([2.0, 3]), np.zeros(2))])
    assert len(x) == 0


def test_thinning_keeps_the_ends() -> None:
    thinned = stats.thin(np.arange(10_001.0))
    assert len(thinned) == stats.MOST_POINTS
    assert (thinned[0], thinned[-1]) == (0, 10_000)


def test_cost_ratio_is_of_the_tightest_budget_in_its_own_semantics() -> None:
    discounted = CostBudget(4.0, discounted=True)
    line = {"eval/cost_mean": 30.0, "eval/discounted_cost_mean": 6.0}
    assert stats.cost_ratio(line, "eval", (CostBudget(20.0),)) == 1.5
    assert stats.cost_ratio(line, "eval", (discounted,)) == 1.5
    two = {"eval/cost_0_mean": 30.0, "eval/discounted_cost_1_mean": 8.0}
    assert stats.cost_ratio(two, "eval", (CostBudget(20.0), discounted)) == 2.0
    assert np.isnan(stats.cost_ratio(line, "eval", (CostBudget(0.0),)))


def test_training_violations_weigh_episodes_and_not_lines() -> None:
    assert stats.training_violations(np.array([1.0, 0.0]), np.array([1.0, 9.0])) == pytest.approx(0.1)
    assert np.isnan(stats.training_violations(np.zeros(0), np.zeros(0)))


def test_normalised_scores_go_from_the_worst_run_to_the_best() -> None:
    found = stats.normalise({"a": np.array([0.0, 10.0]), "b": np.array([5.0])})
    np.testing.assert_allclose(found["a"], [0, 1])
    np.testing.assert_allclose(found["b"], [0.5])
    np.testing.assert_allclose(stats.normalise({"a": np.ones(2)})["a"], [0.5, 0.5])


@pytest.mark.parametrize("shape", [(3, 1), (5, 4)])
def test_improvement_is_rliables(shape: tuple[int, int]) -> None:
    metrics = pytest.importorskip("rliable.metrics")
    rng = np.random.default_rng(1)
    x, y = rng.integers(0, 6, shape).astype(float), rng.integers(0, 6, (4, shape[1])).astype(float)
    assert stats.improvement(x, y) == pytest.approx(metrics.probability_of_improvement(x, y))
    assert stats.improvement(x, x) == pytest.approx(0.5)


def test_interquartile_mean_and_its_interval() -> None:
    pytest.importorskip("rliable")
    scores = np.random.default_rng(2).normal(size=(8, 3))
    found = stats.interquartile_mean({"a": scores})["a"]
    ordered = np.sort(scores.ravel())
    assert found.value == pytest.approx(ordered[6:-6].mean())  # 24 numbers without 6 at either end
    # The same bootstrap by hand: each task's runs are drawn anew.
    rng = np.random.default_rng(3)
    means = []
    for _ in range(2000):
        rows = rng.integers(0, 8, scores.shape)
        means.append(np.sort(scores[rows, np.arange(3)].ravel())[6:-6].mean())
    np.testing.assert_allclose([found.low, found.high], np.quantile(means, [0.025, 0.975]), atol=0.06)


def test_bootstrap_is_repeatable_and_leaves_numpys_generator_alone() -> None:
    pytest.importorskip("rliable")
    scores = {"a": np.arange(6.0)[:, None], "b": np.arange(6.0)[:, None] ** 1.2}
    np.random.seed(7)  # noqa: NPY002
    first = stats.probability_of_improvement({"a > b": (scores["a"], scores["b"])})
    drawn = np.random.random()  # noqa: NPY002
    np.random.seed(7)  # noqa: NPY002
    assert drawn == np.random.random()  # noqa: NPY002
    assert first == stats.probability_of_improvement({"a > b": (scores["a"], scores["b"])})
    assert 0 <= first["a > b"].low <= first["a > b"].value <= first["a > b"].high <= 1


def test_ticks_are_round_and_inside() -> None:
    assert ticks(0, 10, 5) == [0, 2, 4, 6, 8, 10]
    np.testing.assert_allclose(ticks(-0.03, 0.11, 5), [0, 0.05, 0.1])
    assert ticks(1000, 30_000, 5) == [10_000, 20_000, 30_000]


def test_numbers_in_words() -> None:
    assert [number(v, 4) for v in (-1.23456, 12345.6, 0.0, float("nan"))] == ["−1.235", "12,346", "0", "–"]
    assert [number(v, 2) for v in (228.7, 99.7, 0.0123)] == ["230", "100", "0.012"]
    assert [duration(v) for v in (42, 150, 11_100)] == ["42 s", "2 min", "3 h 05 min"]
    assert (plural(1, "run"), plural(2, "run")) == ("1 run", "2 runs")


def test_a_column_has_one_number_of_decimals() -> None:
    assert [decimals(v) for v in ([1234.5, 0.1], [12.0, -3.0], [1.0], [0.2, 0.01], [], [float("nan")])] == [0, 1, 2, 3, 2, 2]
    assert [fixed(v, 1) for v in (-0.04, 1234.56, -2.25)] == ["0.0", "1,234.6", "−2.2"]
    assert spread([1.0, 3.0], 1) == "1.0 · 3.0"  # two seeds make no deviation that says anything
    assert spread([1.0, 2.0, 3.0], 1) == '2.0 <span class="pm">± 1.0</span>'


def test_a_scale_is_linear_or_bent_at_the_budget() -> None:
    assert Scale(0, 10, 100, 200)(2.5) == 125
    bent = Scale(0, np.e, 0.0, 2.0, bent=True)
    np.testing.assert_allclose(bent(np.array([0, 0.5, 1, np.e])), [0, 0.5, 1, 2])  # 1 + ln x beyond one budget
    assert bent.ticks() == [0, 0.5, 1, 2]
    spike = budget_scale(12.0, 0.0, 100.0)
    assert spike.bent
    assert float(spike(1.0)) > 25  # a spike of twelve budgets leaves the budget a quarter of the height
    assert not budget_scale(2.0, 0.0, 100.0).bent


def test_ticks_of_an_axis_have_one_unit() -> None:
    assert tick_labels([0, 5000, 10_000]) == ["0", "5k", "10k"]
    assert tick_labels([-1000, 0, 1000]) == ["−1,000", "0", "1,000"]
    assert tick_labels([0, 1_500_000, 3_000_000]) == ["0", "1.5M", "3M"]


def test_colours_stay_when_a_method_joins() -> None:
    for known, slot in KNOWN.items():
        assert styles([known])[known] == slot
    before = styles(["algd", "sac-lag", "my method"])
    after = styles(["algd", "sac-lag", "my method", "cal", "sac", "mbdpo", "sac-pid"])
    assert {label: after[label] for label in before} == before
    many = styles([f"method {i}" for i in range(14)])
    assert sorted(many.values()) == list(range(14))  # beyond the colours come dashes
    assert max(many.values()) >= COLOURS
    assert styles(["algd energy=augmented", "algd energy=plain"])["algd energy=augmented"] == KNOWN["algd"]


def test_within_is_each_budget_in_its_own_semantics() -> None:
    budgets = (CostBudget(20.0), CostBudget(4.0, discounted=True))
    line = {"eval/cost_0_mean": 20.0, "eval/discounted_cost_1_mean": 4.0}
    assert stats.within(line, "eval", budgets)
    assert not stats.within(line | {"eval/discounted_cost_1_mean": 4.1}, "eval", budgets)
