"""Charts: every point where it belongs, looks that differ in more than colour, and sentences where nothing is."""

import re

import pytest

from tropd.report.axes import Axis, axis, linear_ticks, log_ticks
from tropd.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Line, interval_chart, legend, line_chart
from tropd.report.palette import look


def line(means, label="opd", number=0, band=0.0):
    xs = list(range(1, len(means) + 1))
    return Line(label, number, xs, means, [m - band for m in means], [m + band for m in means])


def points(chart):
    return [tuple(map(float, pair.split(","))) for pair in re.search(r'<polyline points="([^"]+)"', chart)[1].split()]


def test_points_lie_inside_the_axes_and_larger_values_lie_higher():
    drawn = points(line_chart("x", [line([0.0, 1.0, 0.5])]))
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT - BOTTOM for x, y in drawn)
    assert drawn[1][1] < drawn[2][1] < drawn[0][1]


def test_an_axis_is_linear_or_logarithmic():
    assert Axis(0, 10, 100, 200)(5) == 150
    assert Axis(1, 100, 100, 200, log=True)(10) == pytest.approx(150)
    assert axis([3.0, 4.0], 0, 1, zero=True).low == 0.0


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.013, 0.027), (3, 4000), (0.9999, 1.0001), (5, 5.1)])
def test_ticks_are_few_and_inside(low, high):
    assert 3 <= len(linear_ticks(low, high)) <= 7
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in linear_ticks(low, high))


@pytest.mark.parametrize(("low", "high"), [(0.5, 40), (1e-6, 1e3), (2.1, 2.4)])
def test_a_logarithmic_axis_has_at_least_two_ticks(low, high):
    assert len(log_ticks(low, high)) >= 2


def test_values_that_have_no_logarithm_are_left_out():
    assert len(points(line_chart("x", [line([0.0, 1.0, 10.0])], log=True))) == 2
    assert "nothing was logged" in line_chart("x", [line([0.0])], log=True)


@pytest.mark.parametrize("means", [[], [2.0], [2.0, 2.0], [0.0, 0.0]])
def test_a_line_of_no_one_or_equal_points_is_no_accident(means):
    chart = line_chart("x", [line(means)], zero=True)
    assert "nan" not in chart and ("polyline" in chart) is bool(means)


def test_a_band_reaches_from_the_smallest_to_the_largest():
    chart = line_chart("x", [line([1.0, 2.0], band=0.5)])
    ys = [float(pair.split(",")[1]) for pair in re.search(r'<polygon points="([^"]+)"', chart)[1].split()]
    assert len(ys) == 4 and ys[3] > ys[0], "its lower edge lies below its upper edge"


def test_the_first_twelve_lines_differ_in_colour_and_neighbours_in_dashes_and_markers():
    looks = [look(number) for number in range(14)]
    assert len({one.colour for one in looks[:12]}) == 12 and len(set(looks)) == 14
    for one, other in zip(looks, looks[1:]):  # noqa: B905, RUF007
        assert one.dashes != other.dashes and one.marker != other.marker


def test_lines_of_one_colour_differ_in_dashes_and_markers():
    looks = [look(number) for number in range(32)]
    for number, one in enumerate(looks):
        for other in looks[:number]:
            assert one.colour != other.colour or (one.dashes != other.dashes and one.marker != other.marker)


def test_an_interval_chart_has_a_row_for_each_method_and_a_line_at_zero():
    chart = interval_chart("x", [("tropd", 1, -0.2, -0.3, -0.1), ("a & b", 2, 0.1, None, None)])
    assert chart.count("<path") == 1 and "a &amp; b" in chart and 'class="zero"' in chart
    assert "nothing to compare" in interval_chart("x", [])


def test_labels_and_titles_are_escaped():
    hostile = "<script>1</script>"
    for text in (line_chart(hostile, [line([1.0], label=hostile)]), legend([(hostile, 0)]), line_chart(hostile, [])):
        assert "<script" not in text and "&lt;script" in text
