"""What the comparison's page computes, on numbers small enough to be done by hand."""

import pytest

from bliss_ops.evaluation.paired import PairedDifference
from bliss_ops.report.comparison.curves import Crossing, Curve, SpeedUp, comparable, crossing, speed_up
from bliss_ops.report.comparison.lines import lines_by_tokens, mean_line
from bliss_ops.report.comparison.losses import Mean, coverage, losses_by_method, mean_of, verdict
from bliss_ops.report.comparison.overlap import by_chance, by_method, jaccard, numbered
from bliss_ops.report.comparison.rows import Row
from bliss_ops.report.comparison.summary import caveats, method_rows, ratio
from bliss_ops.report.comparison.table import flops, memory, seconds
from bliss_ops.report.comparison.tasks import task_results

CURVE = [(100.0, 6.0), (200.0, 5.0), (300.0, 4.6), (400.0, 4.8)]


class TestCrossing:
    def test_it_is_on_the_straight_line_between_two_points(self) -> None:
        """Half of the way from 6.0 to 5.0 is half of the way from 100 to 200; 4.9 is a quarter from 5.0 to 4.6."""
        assert crossing(CURVE, 5.5).num_tokens == pytest.approx(150)
        assert crossing(CURVE, 4.9).num_tokens == pytest.approx(225)

    def test_a_point_itself_is_reached_there(self) -> None:
        assert crossing(CURVE, 5.0).num_tokens == 200

    def test_the_first_time_counts_although_the_curve_rises_again(self) -> None:
        assert crossing(CURVE, 4.7).num_tokens == pytest.approx(275)

    def test_what_is_not_reached_is_said_with_the_best_and_the_last(self) -> None:
        assert crossing(CURVE, 4.5) == Crossing(None, False, 4.6, 400)

    def test_the_first_point_is_an_upper_bound(self) -> None:
        assert crossing(CURVE, 6.5) == Crossing(100, True, 4.6, 400)


class TestSpeedUp:
    def test_it_is_the_baselines_tokens_divided_by_the_methods(self) -> None:
        """The baseline ends at 5.2 after 400; the method is there a fifth before 200."""
        found = speed_up("dsir", 0, CURVE, [(100, 6.2), (400, 5.2)])
        assert found is not None
        assert (found.target, found.baseline_tokens, found.crossing.num_tokens) == (5.2, 400, pytest.approx(180))
        assert found.by_tokens == pytest.approx(400 / 180)
        assert found.by_flops is None

    def test_of_flops_the_choosing_counts_on_both_sides(self) -> None:
        """500 FLOPs against 300 of training and 700 of choosing: half as fast."""
        one = SpeedUp("bliss", 0, 5.0, 500, Crossing(300, False, 4.0, 500), baseline_flops=500, flops=300 + 700)
        assert (one.by_tokens, one.by_flops) == (pytest.approx(5 / 3), 0.5)

    def test_without_points_there_is_none(self) -> None:
        assert speed_up("dsir", 0, [], CURVE) is None

    def test_a_mean_is_taken_only_where_every_seed_is_there(self) -> None:
        """1.2 and 1.6: mean 1.4, standard error 0.2."""
        assert ratio([1.2, 1.6]) == "1.40\N{MULTIPLICATION SIGN} \N{PLUS-MINUS SIGN} 0.20"
        assert ratio([1.2, None, 1.6]) == "reached by 2 of 3 seeds"
        assert ratio([None, None]) == "not reached"
        assert ratio([2.0]) == "2.00\N{MULTIPLICATION SIGN}"
        assert ratio([]) == "\N{EN DASH}"

    def test_decayed_models_are_compared_where_every_run_has_three(self) -> None:
        several, one = Curve([], CURVE[:3]), Curve(CURVE, CURVE[:1])
        assert comparable([several, several]) == "decayed"
        assert comparable([several, one]) == "stable"
        assert comparable([]) == "stable"


LOSSES = {
    ("random", ("c", 0)): 4.5, ("random", ("c", 1)): 4.6, ("random", ("c", 2)): 4.7,
    ("dsir", ("c", 0)): 4.4, ("dsir", ("c", 1)): 4.7, ("dsir", ("c", 2)): 4.5,
    ("bliss", ("c", 0)): 4.1, ("bliss", ("c", 1)): 4.1, ("bliss", ("other", 2)): 4.2,
}  # fmt: skip


class TestLosses:
    def test_differences_are_paired_by_corpus_and_seed(self) -> None:
        """dsir: -0.1, +0.1, -0.2: mean -0.0667, error 0.0882. bliss: two pairs of the same corpus, -0.4 and -0.5: -0.45 and 0.05."""
        bliss, dsir, random = losses_by_method(LOSSES, "random")
        assert (bliss.method, bliss.num_pairs, bliss.difference) == ("bliss", 2, pytest.approx(-0.45))
        assert bliss.difference_error == pytest.approx(0.05)
        assert (bliss.verdict, dsir.verdict, random.verdict) == ("better than random", "not distinguishable from random", "")
        assert (dsir.difference, dsir.difference_error) == (pytest.approx(-1 / 15), pytest.approx(0.0881917))

    def test_any_method_can_be_the_baseline(self) -> None:
        found = {one.method: one for one in losses_by_method(LOSSES, "dsir")}
        assert found["random"].difference == pytest.approx(1 / 15)
        assert found["dsir"].difference is None

    def test_what_is_said_of_a_difference(self) -> None:
        assert verdict(Mean(0.3, 0.1, 3), "random") == "worse than random"
        assert verdict(Mean(0.3, 0.1, 3), "random", lower_is_better=False) == "better than random"
        assert verdict(Mean(0.3, 0.1, 3), "random", least_error=0.15) == "not distinguishable from random"
        assert verdict(Mean(-0.2, 0.1, 3), "random") == "not distinguishable from random"
        assert verdict(Mean(-0.2, None, 1), "random") == "one seed: cannot be told from chance"
        assert verdict(None, "random") == "no run of random with the same seed"

    def test_two_errors_of_few_seeds_hold_less_than_95_in_100(self) -> None:
        """P(|t| < 2) of Student's t: with 1 degree of freedom 2/pi atan 2, with 2 degrees 2 / sqrt(6); then from tables."""
        assert coverage(2) == pytest.approx(0.704833, abs=1e-6)
        assert coverage(3) == pytest.approx(2 / 6**0.5)
        assert [coverage(number) for number in (4, 5, 6, 11)] == pytest.approx([0.860674, 0.883884, 0.898061, 0.926612], abs=1e-6)
        assert coverage(1) is None
        assert coverage(2000) == pytest.approx(0.9545, abs=1e-3)

    def test_few_seeds_many_methods_and_missing_runs_are_spoken_of(self) -> None:
        losses = losses_by_method({key: loss for key, loss in LOSSES.items() if key[1][0] == "c"}, "random")
        text = " ".join(caveats(losses, "random", {"x-dsir-s9": "nothing is done"}))
        assert "Missing: x-dsir-s9 (nothing is done)." in text
        assert "with 2 pairs in 70 % of cases; with 3 pairs in 82 % of cases, not in 95 %" in text
        assert "2 methods are held against random: if none of them differed from it, 0.5 of these differences" in text  # 0.295 + 0.184
        assert "There is no run of the baseline mates" in " ".join(caveats(losses, "mates", {}))
        alone = losses_by_method({("random", ("c", 0)): 1.0, ("dsir", ("c", 0)): 2.0}, "random")
        assert "One seed only: random, dsir." in " ".join(caveats(alone, "random", {}))
        assert [row.by_tokens for row in method_rows(alone, [], [], "random")] == ["1", "\N{EN DASH}"]


class TestTasks:
    @staticmethod
    def row(task: str, value: float, tokens: int = 10) -> Row:
        return Row(task, "accuracy", value, 0.01, 100, tokens, tokens)

    def test_the_last_model_counts_and_the_larger_noise_decides(self) -> None:
        """Differences +0.02 and +0.04: 0.03 with an error of 0.01 over seeds, but 0.02 over questions."""
        rows = {
            ("random", ("c", 0)): [self.row("sciq", 0.9, 5), self.row("sciq", 0.50)],
            ("random", ("c", 1)): [self.row("sciq", 0.52)],
            ("dsir", ("c", 0)): [self.row("sciq", 0.52)],
            ("dsir", ("c", 1)): [self.row("sciq", 0.56)],
        }
        pairs = {
            ("dsir", ("c", seed)): [PairedDifference("sciq", "accuracy", difference, 0.02, -0.1, 0.1, 100)]
            for seed, difference in enumerate((0.02, 0.04))
        }
        random, dsir = task_results(rows, pairs, "random")
        assert (random.value.value, random.difference, random.verdict) == (pytest.approx(0.51), None, "")
        assert dsir.difference is not None
        assert (dsir.difference.value, dsir.difference.standard_error) == (pytest.approx(0.03), pytest.approx(0.01))
        assert (dsir.question_error, dsir.verdict) == (pytest.approx(0.02), "not distinguishable from random")


class TestOverlap:
    def test_jaccard_from_two_shares(self) -> None:
        """A has 4, B has 6, 2 are in both: 2 of 8."""
        assert jaccard(2 / 4, 2 / 6) == pytest.approx(0.25)
        assert jaccard(0.0, 0.0) == 0.0
        assert jaccard(1.0, 1.0) == 1.0

    def test_two_independent_fifths_share_a_ninth(self) -> None:
        assert by_chance(0.2) == pytest.approx(0.04 / 0.36)

    def test_methods_are_paired_by_seed_and_their_seeds_with_each_other(self) -> None:
        class Fake:
            def __init__(self, method: str, seed: int) -> None:
                self.config = type("C", (), {"method": method, "seed": seed})

        members = [Fake("a", 0), Fake("a", 1), Fake("b", 0), Fake("b", 1)]
        values = [[None, 0.9, 0.1, 0.8], [0.9, None, 0.7, 0.3], [0.1, 0.7, None, 0.5], [0.8, 0.3, 0.5, None]]
        assert numbered(members) == (["a", "b"], ["a", "b"])
        assert numbered([*members, Fake("bliss-released", 0)]) == (["1 a", "2 b", "3 bliss-released"], ["1", "2", "3"])
        assert by_method(members, values) == [[0.9, pytest.approx(0.2)], [pytest.approx(0.2), 0.5]]


def test_the_mean_line_has_the_points_that_all_have() -> None:
    assert mean_line([[(1, 2.0), (2, 4.0)], [(1, 4.0), (2, 6.0), (3, 1.0)], []]) == [(1, 3.0), (2, 5.0)]
    assert mean_line([]) == []


def test_tokens_are_in_a_unit_that_can_be_read() -> None:
    styles = {"a": "first", "b": "second"}
    chart = lines_by_tokens({"a": [("a-s0", [(1e6, 3.0), (4e6, 2.0)])], "b": [("b-s0", [])]}, styles, title="x")
    assert chart is not None
    assert "training tokens, millions" in chart
    assert "training tokens, millions 4: 2" in chart
    assert lines_by_tokens({"a": [("a-s0", [])]}, styles, title="x") is None


def test_quantities_have_units() -> None:
    assert [flops(value) for value in (0, 12.0, 3.45e9, 1.2e15)] == ["0", "12 FLOP", "3.45 GFLOP", "1.2 PFLOP"]
    assert [seconds(value) for value in (None, 12.3, 150.0, 7200.0)] == ["\N{EN DASH}", "12 s", "2.5 min", "2.0 h"]
    assert [memory(value) for value in (None, 5 * 2**20, 3 * 2**30)] == ["\N{EN DASH}", "5 MiB", "3.0 GiB"]
    assert mean_of([]) is None
