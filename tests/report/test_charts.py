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
