"""Comparisons: what is said of two rows is what the tests found, flattering or not."""

import re

import numpy as np
import pytest

from histoclip_lib.common.predictions import Predictions
from histoclip_lib.data.base import PatchDataset
from histoclip_lib.evaluation import comparisons
from histoclip_lib.evaluation.methods import ROW_LABELS
from histoclip_lib.evaluation.uncertainty import Comparison, Difference, compare, evaluate, holm

VAL = np.arange(0, 200, 2)
MANY = np.arange(100)  # units


def make(groups=True):
    labels = np.random.default_rng(0).integers(0, 2, (200, 3), dtype=np.uint8)
    units = np.array([f"patient {index // 10}" for index in range(200)]) if groups else None
    return PatchDataset("folder", list("abc"), [f"{index}.png" for index in range(200)], labels, None, groups=units)


def guesses(patches, accuracy, seed):
    random = np.random.default_rng(seed)
    labels = patches.labels[VAL]
    right = np.where(random.random(labels.shape) < accuracy, labels, 1 - labels).astype(bool)
    return Predictions(right + 0.3 * random.normal(size=labels.shape), right)


def all_rows(patches, ours=0.9, theirs=0.6):
    return {
        name: guesses(patches, ours if name == comparisons.OURS else theirs, seed)
        for seed, name in enumerate(ROW_LABELS)
    }


def test_every_other_row_is_compared_in_the_order_of_the_table():
    patches = make()
    rows = all_rows(patches)
    found = comparisons.against_every_row(dict(reversed(rows.items())), patches, VAL, 50, 0)
    assert list(found) == [name for name in ROW_LABELS if name != "histoclip_patch"]
    expected = compare(patches.labels[VAL], rows["histoclip_patch"], rows["top_k"], patches.groups[VAL], 50, 0)
    assert found["top_k"] == expected


@pytest.mark.parametrize(
    ("ours", "theirs", "finding"),
    [(0.95, 0.5, "is ahead of"), (0.5, 0.95, "is behind"), (0.7, 0.7, "cannot be told from")],
)
def test_the_verdict_says_how_it_is(ours, theirs, finding):
    patches = make()
    found = comparisons.against_every_row(all_rows(patches, ours, theirs), patches, VAL, 99, 0)
    *lines, _ = comparisons.verdict(found, MANY).splitlines()
    assert len(lines) == len(comparisons.RIVALS)
    for line, (name, label) in zip(lines, comparisons.RIVALS.items(), strict=True):
        assert line.startswith(f"- HistoCLIP with patch keys **{finding}** {label} in mAcc (")
        assert f"**{finding}** it in mAP (" in line
        macc, mean_ap = found[name].macc, found[name].map
        numbers = [macc.value, macc.low, macc.high, mean_ap.value, mean_ap.low, mean_ap.high]
        assert [float(text) for text in re.findall(r"[+-]0\.\d{4}", line)] == pytest.approx(numbers, abs=6e-5)
        assert [float(text) for text in re.findall(r"p = (\d\.\d{4})", line)] == pytest.approx(
            [macc.p, mean_ap.p], abs=6e-5
        )


def test_the_verdict_speaks_of_rows_that_are_there():
    patches = make()
    rows = {name: guesses(patches, 0.7, 0) for name in ("baseline", "majority", "histoclip_patch")}
    line, _ = comparisons.verdict(comparisons.against_every_row(rows, patches, VAL, 50, 0), MANY).splitlines()
    assert "the majority row" in line
    assert "p = 1.0000" in line


def gap(p):
    return Difference(0.1, 0.05, 0.15, p)


def test_the_verdict_ends_with_what_the_correction_over_all_rows_leaves():
    p = {"majority": (0.001, 0.2), "knn": (0.03, 0.04), "mlp": (0.02, 0.9)}
    found = {name: Comparison(gap(macc), gap(mean_ap)) for name, (macc, mean_ap) in p.items()}
    last = comparisons.verdict(found, MANY).splitlines()[-1]
    assert last.endswith(
        "over all 3 rows compared, p stays below 0.05 against: in mAcc Majority of train; "
        "k-nearest neighbours; Two-layer MLP, and in mAP no row."
    )
    found["knn"] = Comparison(gap(0.06), gap(0.01))
    last = comparisons.verdict(found, MANY).splitlines()[-1]
    assert last.endswith("in mAcc Majority of train; Two-layer MLP, and in mAP k-nearest neighbours.")


@pytest.mark.parametrize(("units", "rows", "said"), [(8, 7, True), (8, 6, False), (10, 13, False), (11, 13, False)])
def test_the_verdict_says_where_too_few_groups_leave_no_corrected_p_small(units, rows, said):
    found = dict.fromkeys(list(ROW_LABELS)[:rows], Comparison(gap(0.01), gap(0.01)))
    assert "majority" in found
    ending = f" It could not: with {units} groups no p falls below {2 / 2**units:.4f} before correction."
    assert comparisons.verdict(found, np.arange(40) % units).endswith(ending) == said


def test_no_rival_no_verdict():
    assert comparisons.verdict({"top_k": Comparison(gap(0.01), gap(0.01))}, MANY) == ""


@pytest.mark.parametrize(
    ("low", "high", "p", "says"),
    [
        (0.01, 0.2, 0.01, "is ahead of"),
        (-0.2, -0.01, 0.01, "is behind"),
        (-0.01, 0.2, 0.01, "cannot be told from"),
        (0.01, 0.2, 0.06, "cannot be told from"),
        (-0.2, -0.01, 0.06, "cannot be told from"),
        (np.nan, np.nan, np.nan, "cannot be told from"),
    ],
)
def test_interval_and_test_must_agree(low, high, p, says):
    assert comparisons.finding(Difference((low + high) / 2, low, high, p)) == says


def test_an_undefined_map_is_said_and_shown_as_such():
    undefined = Difference(np.nan, np.nan, np.nan, np.nan)
    found = {"majority": Comparison(Difference(0.1, 0.05, 0.15, 0.01), undefined)}
    assert "it in mAP (not defined: no class is present)" in comparisons.verdict(found, MANY)
    assert comparisons.differences_table(found).iloc[0].tolist() == [
        *("+0.1000 (+0.050 to +0.150)", "0.0100"),
        *("—", "—"),
    ]


def test_the_table_of_differences_corrects_p_over_its_lines():
    patches = make()
    found = comparisons.against_every_row(all_rows(patches, 0.75, 0.65), patches, VAL, 99, 0)
    table = comparisons.differences_table(found)
    assert table.columns.is_unique
    assert table.index.tolist() == [ROW_LABELS[name] for name in found]
    for metric, key in (("mAcc", "macc"), ("mAP", "map")):
        gaps = [getattr(comparison, key) for comparison in found.values()]
        expected = [f"{gap.value:+.4f} ({gap.low:+.3f} to {gap.high:+.3f})" for gap in gaps]
        assert table[metric].tolist() == expected
        expected = holm(np.array([gap.p for gap in gaps]))
        assert table[f"p, {metric}"].astype(float).tolist() == pytest.approx(expected, abs=6e-5)


def test_all_pairs_are_row_minus_column_with_one_correction_for_all():
    patches = make()
    rows = {name: guesses(patches, 0.5 + 0.06 * k, k) for k, name in enumerate(("top_k", "knn", "mlp", "linear_probe"))}
    differences, p = comparisons.all_pairs(rows, patches, VAL, 0)
    names = [name for name in ROW_LABELS if name in rows]
    labels = [ROW_LABELS[name] for name in names]
    assert list(differences.index) == list(differences.columns) == list(p.index) == list(p.columns) == labels
    truth, units = patches.labels[VAL], patches.groups[VAL]
    single = {}
    for i in range(4):
        assert np.isnan([differences.iloc[i, i], p.iloc[i, i]]).all()
        for j in range(4):
            if i != j:
                one, other = rows[names[i]], rows[names[j]]
                scored = [evaluate(truth, row, list("abc"), units, 10, 0)["mAcc"] for row in (one, other)]
                assert differences.iloc[i, j] == pytest.approx(scored[0] - scored[1])
                single[i, j] = compare(truth, one, other, units, 10, 0).macc.p
    upper = [(i, j) for i, j in single if i < j]
    adjusted = holm(np.array([single[pair] for pair in upper]))
    for (i, j), value in zip(upper, adjusted, strict=True):
        assert p.iloc[i, j] == p.iloc[j, i] == pytest.approx(value)


def test_all_pairs_swap_patches_where_groups_are_not_known():
    rows = all_rows(make())
    by_group, by_patch = (comparisons.all_pairs(rows, make(groups), VAL, 0) for groups in (True, False))
    assert by_group[0].equals(by_patch[0])
    assert not by_group[1].equals(by_patch[1])


def test_one_row_alone_has_no_pairs():
    differences, p = comparisons.all_pairs({"majority": guesses(make(), 0.5, 0)}, make(), VAL, 0)
    assert differences.shape == p.shape == (1, 1)
    assert np.isnan(differences.iloc[0, 0])
