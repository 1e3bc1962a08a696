"""Charts: round ticks inside the range, lines where the numbers are, nothing from outside unescaped."""

import itertools
import re

import pytest

from bliss_ops.report import charts


@pytest.mark.parametrize(("low", "high"), [(0, 1), (4.03, 4.61), (-0.0434, 0.0403), (0, 40_000), (1e-7, 3e-7), (-1e5, -0.9e5)])
def test_ticks_are_round_and_inside(low: float, high: float) -> None:
    values = charts.ticks(low, high)
    assert 3 <= len(values) <= 11
    margin = (high - low) * 1e-6
    assert low - margin <= values[0] < values[-1] <= high + margin
    assert all(float(f"{value:.5g}") == value for value in values)


def test_steps_have_whole_ticks() -> None:
    assert charts.ticks(1, 5, 7, whole=True) == [1, 2, 3, 4, 5]


def test_numbers_carry_no_more_digits_than_they_need() -> None:
    assert [charts.number(value) for value in (0, 0.5, 1500, 0.00002, -0.25, 2_000_000)] == ["0", "0.5", "1,500", "2e-5", "-0.25", "2e6"]
    assert charts.signed(-0.3054) == "\N{MINUS SIGN}0.305"


def test_a_line_goes_through_its_points() -> None:
    frame = charts.Frame(520, 220, (0, 10), (0, 1))
    chart = charts.line_chart([charts.Series("loss", [[(0, 0), (10, 1)]])], title="t", y_range=(0, 1))
    path = re.search(r'class="line first" d="M([\d.]+) ([\d.]+) L([\d.]+) ([\d.]+)"', chart)
    assert path is not None
    assert [float(value) for value in path.groups()] == pytest.approx([frame.x(0), frame.y(0), frame.x(10), frame.y(1)], abs=0.06)


def test_one_point_and_flat_lines_are_drawn() -> None:
    for points in ([(5, 2.0)], [(0, 2.0), (10, 2.0)], [(0, 0.0), (10, 0.0)]):
        assert "nan" not in charts.line_chart([charts.Series("flat", [points], markers=True)], title="t")


def test_names_are_escaped() -> None:
    chart = charts.line_chart([charts.Series("<b>&", [[(0, 0), (1, 1)]])], title='"><script>', right=100)
    assert "<b>" not in chart
    assert "<script>" not in chart


def test_names_at_the_ends_do_not_overlap() -> None:
    series = [charts.Series(name, [[(0, 1), (1, 1)]]) for name in "abc"]
    heights = sorted(charts.spread_labels([(one, 100.0) for one in series], gap=16).values())
    assert [after - before for before, after in itertools.pairwise(heights)] == [16, 16]


def test_long_lines_are_thinned_to_means() -> None:
    points = charts.thinned([(float(step), 1.0 if step % 2 else 3.0) for step in range(10_000)], most=100)
    assert len(points) == 100
    assert {round(y, 6) for _, y in points} == {2.0}


def test_a_band_spans_its_quantiles_and_names_its_members() -> None:
    columns = [charts.Band("1\N{EN DASH}2", 1234, 0.0, 1.0, 2.0, 1.5), charts.Band("<3>", 5, 3.0, 3.0, 3.0, 3.0)]
    chart = charts.bands(columns, 2.5, title="t", x_label="tokens")
    frame = charts.Frame(1080, 280, (0, 2), charts.padded([0.0, 3.0], 0.06), left=64, bottom=54)
    box = re.search(r'class="box" x="[\d.]+" y="([\d.]+)" width="46.0" height="([\d.]+)"', chart)
    assert box is not None
    assert [float(value) for value in box.groups()] == pytest.approx([frame.y(2.0), frame.y(0.0) - frame.y(2.0)], abs=0.06)
    assert "1,234 documents, mean 1.5" in chart
    assert "threshold 2.5" in chart
    assert "<3>" not in chart


def test_no_band_at_all_is_an_empty_chart() -> None:
    assert "nan" not in charts.bands([], title="t", x_label="tokens")


def test_a_matrix_is_deeper_where_the_value_is_larger() -> None:
    chart = charts.matrix(["<a>", "b"], ["1", "2"], [[1.0, 0.25], [None, 0.0]], title="t", format_value=lambda value: f"{value:.0%}")
    assert re.findall(r'fill-opacity="([\d.]+)"', chart) == ["0.550", "0.175", "0.050"]
    assert re.findall(r'"cell-value"[^>]*>([^<]+)<', chart) == ["100%", "25%", "0%"]
    assert "<a>" not in chart


def test_stacked_parts_are_side_by_side_on_one_scale() -> None:
    rows = [("a", [charts.Part("stayed", 6, "6 stayed"), charts.Part("left", 2, "2 left")]), ("b", [charts.Part("entered", 4, "<4>")])]
    chart = charts.stacked_bars(rows, title="t")
    boxes = [(float(x), float(width)) for x, width in re.findall(r'<rect class="\w+" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', chart)]
    (first, six), (second, two), (third, four) = boxes
    assert (six / two, six / four) == pytest.approx((3, 1.5), abs=0.01)
    assert (second, third) == pytest.approx((first + six, first), abs=0.11)
    assert "<4>" not in chart
