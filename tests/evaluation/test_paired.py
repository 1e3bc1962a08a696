"""Paired bootstrap: against the closed form of the paired difference, seeds, and evaluations that cannot be compared."""

from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from bliss_ops.evaluation import measures
from bliss_ops.evaluation.paired import paired_differences
from tests.evaluation.answers import evaluation_of, random_rows, rows_of

N = 800


@pytest.fixture
def two(tmp_path: Path) -> tuple[UPath, UPath]:
    a = evaluation_of(tmp_path / "a", random_rows("sciq", N, 2, ease=1.0), random_rows("piqa", 300, 3, ease=0.5))
    b = evaluation_of(tmp_path / "b", random_rows("sciq", N, 4, ease=0.3), random_rows("piqa", 300, 5, ease=0.5))
    return a, b


def test_errors_and_intervals_are_those_of_the_normal_approximation(two: tuple[UPath, UPath]) -> None:
    found = {(one.task, one.metric): one for one in paired_differences(*two, num_resamples=20_000)}
    (sciq_a, _), (sciq_b, _) = (measures.read(directory) for directory in two)
    for metric in ("accuracy", "accuracy_norm", "log_likelihood"):
        difference_N = sciq_a.ratios[metric][0] - sciq_b.ratios[metric][0]
        error = difference_N.std() / np.sqrt(N)
        one = found["sciq", metric]
        assert one.difference == pytest.approx(difference_N.mean())
        assert one.standard_error == pytest.approx(error, rel=0.02)  # 20,000 resamples know a deviation to 0.5 %
        assert one.low == pytest.approx(one.difference - 1.96 * error, abs=0.1 * error)
        assert one.high == pytest.approx(one.difference + 1.96 * error, abs=0.1 * error)
        assert one.num_questions == N
    bits = found["sciq", "bits_per_byte"]  # all continuations are 4 bytes long: the ratio is a mean
    assert bits.difference == pytest.approx(-found["sciq", "log_likelihood"].difference / np.log(2) / 4)
    assert bits.standard_error == pytest.approx(found["sciq", "log_likelihood"].standard_error / np.log(2) / 4)


def test_the_average_is_over_tasks_and_their_resamples_are_independent(two: tuple[UPath, UPath]) -> None:
    found = {(one.task, one.metric): one for one in paired_differences(*two)}
    sciq, piqa, average = (found[task, "accuracy"] for task in ("sciq", "piqa", "average"))
    assert average.difference == pytest.approx((sciq.difference + piqa.difference) / 2)
    assert average.standard_error == pytest.approx(np.hypot(sciq.standard_error, piqa.standard_error) / 2, rel=0.05)
    assert average.num_questions == N + 300


def test_equal_seeds_give_equal_results_and_a_run_does_not_differ_from_itself(two: tuple[UPath, UPath]) -> None:
    assert paired_differences(*two, seed=3, num_resamples=500) == paired_differences(*two, seed=3, num_resamples=500)
    assert paired_differences(*two, seed=3, num_resamples=500) != paired_differences(*two, seed=4, num_resamples=500)
    same = paired_differences(two[0], two[0], num_resamples=500)
    assert all((one.difference, one.standard_error, one.low, one.high) == (0, 0, 0, 0) for one in same)


def test_pairing_takes_out_what_is_hard_for_both(tmp_path: Path) -> None:
    """Two runs that answer alike but for a tenth of the questions differ with less error than each has by itself."""
    a = random_rows("sciq", N, 2, ease=1.0)
    almost = random_rows("sciq", N, 9, ease=1.0).slice(0, 4 * (N // 10)).to_pylist() + a.slice(4 * (N // 10)).to_pylist()
    b = a.from_pylist(almost, schema=a.schema)
    first, second = evaluation_of(tmp_path / "a", a), evaluation_of(tmp_path / "b", b)
    (accuracy,) = (one for one in paired_differences(first, second) if (one.task, one.metric) == ("sciq", "accuracy"))
    alone = measures.read(first)[0].standard_error("accuracy")
    assert alone is not None
    assert 0 < accuracy.standard_error < 0.5 * alone


def test_the_last_model_is_compared(tmp_path: Path) -> None:
    early, late = random_rows("sciq", 50, 2, step=10), random_rows("sciq", 50, 3, step=20)
    a, b = evaluation_of(tmp_path / "a", early, late), evaluation_of(tmp_path / "b", late)
    assert all(one.difference == 0 for one in paired_differences(a, b, num_resamples=50))


def test_evaluations_that_cannot_be_compared_say_why(tmp_path: Path) -> None:
    sciq = evaluation_of(tmp_path / "sciq", random_rows("sciq", 50, 2))
    piqa = evaluation_of(tmp_path / "piqa", random_rows("piqa", 50, 2))
    other = evaluation_of(tmp_path / "other", rows_of("sciq", [[-1.0, -2.0]] * 50, [0] * 50))
    with pytest.raises(ValueError, match=r"no task in common \(one has sciq, the other piqa\)"):
        paired_differences(sciq, piqa)
    with pytest.raises(ValueError, match=r"not asked the same questions of sciq \(200 and 100 choices"):
        paired_differences(sciq, other)
    (tmp_path / "none").mkdir()
    with pytest.raises(ValueError, match="evaluated without tasks"):
        paired_differences(sciq, UPath(tmp_path / "none"))
