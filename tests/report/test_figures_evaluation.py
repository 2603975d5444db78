"""Pictures of the rows: what they draw, and what their text alternatives say."""

import numpy as np
import pandas as pd
import pytest
from drawing import draw
from matplotlib import colors

from histoclip_lib.evaluation.methods import ROW_LABELS
from histoclip_lib.report import figures
from histoclip_lib.report.figures.base import CLASS_COLOURS


def scored(k=0):
    return {
        "mAcc": 0.5 + 0.03 * k,
        "mAcc_ci": [0.4 + 0.03 * k, 0.55 + 0.03 * k],
        "mAP": 0.3 + 0.04 * k,
        "mAP_ci": [0.25 + 0.04 * k, 0.4 + 0.04 * k],
    }


ROWS = {name: scored(k) for k, name in enumerate(ROW_LABELS)}


def square(n, seed=0):
    upper = np.triu(np.random.default_rng(seed).normal(0, 0.1, (n, n)), 1)
    values = upper - upper.T
    p = np.triu(np.random.default_rng(seed).random((n, n)), 1)
    p = p + p.T
    values[np.diag_indices(n)] = p[np.diag_indices(n)] = np.nan
    names = [f"row {k}" for k in range(n)]
    return pd.DataFrame(values, names, names), pd.DataFrame(p, names, names)


def test_the_forest_has_a_panel_for_each_metric_with_every_interval_in_its_place():
    figure = figures.forest_plot(ROWS, ROW_LABELS)
    alternative = draw(figure)
    assert [axes.get_xlabel() for axes in figure.axes] == ["mAcc, 95 % interval", "mAP, 95 % interval"]
    ticks = [tick.get_text() for tick in figure.axes[0].get_yticklabels()]
    assert ticks == list(reversed(ROW_LABELS.values()))
    for axes, metric in zip(figure.axes, ("mAcc", "mAP"), strict=True):
        drawn = {tuple(line.get_xdata()): line.get_ydata()[0] for line in axes.lines if line.get_linestyle() == "-"}
        for height, row in enumerate(reversed(ROWS.values())):
            assert drawn[tuple(row[f"{metric}_ci"])] == height
    assert "histoclip_patch mAcc 0.890 (0.790 to 0.940), mAP 0.820 (0.770 to 0.920)" in alternative


def test_the_forest_marks_the_linear_probe_and_colours_histoclip():
    figure = figures.forest_plot(ROWS, ROW_LABELS)
    for axes, metric in zip(figure.axes, ("mAcc", "mAP"), strict=True):
        [dashed] = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert dashed.get_xdata()[0] == ROWS["linear_probe"][metric]
        ours = colors.to_hex(CLASS_COLOURS[0])
        coloured = {line.get_xdata()[0] for line in axes.lines if colors.to_hex(line.get_color()) == ours}
        expected = [
            v
            for name in ("histoclip_global", "histoclip_patch")
            for v in (ROWS[name][metric], ROWS[name][f"{metric}_ci"][0])
        ]
        assert coloured == set(expected)


def test_the_forest_draws_what_is_there():
    """Results of an earlier version hold mAcc alone; mAP may be undefined for a row; the probe may be absent."""
    old = {"majority": {"mAcc": 0.7, "mAcc_ci": [0.6, 0.8]}}
    figure = figures.forest_plot(old, ROW_LABELS)
    assert len(figure.axes) == 1
    assert "mAP" not in draw(figure)
    mixed = {"majority": scored() | {"mAP": None, "mAP_ci": None}, "top_k": scored(1)}
    figure = figures.forest_plot(mixed, ROW_LABELS)
    alternative = draw(figure)
    assert "majority mAcc 0.500 (0.400 to 0.550); top_k" in alternative
    assert len(figure.axes[1].lines) == 2


def test_the_comparison_map_is_row_minus_column_with_marks_where_p_is_small():
    differences, p = square(4)
    figure = figures.comparison_map(differences, p)
    alternative = draw(figure)
    texts = {text.get_position(): text.get_text() for text in figure.axes[0].texts}
    for i in range(4):
        for j in range(4):
            if i != j:
                mark = "*" if p.iloc[i, j] < 0.05 else ""
                assert texts[j + 0.5, i + 0.5] == f"{100 * differences.iloc[i, j]:+.1f}{mark}"
    assert f"row 0 minus row 2 {differences.iloc[0, 2]:+.3f} (p {p.iloc[0, 2]:.3f})" in alternative
    assert "*" in "".join(texts.values())
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == list(differences.columns)


def test_the_colours_of_the_comparison_map_are_symmetric_about_nothing():
    differences, p = square(5)
    [mesh] = [c for c in figures.comparison_map(differences, p).axes[0].collections if c.get_array() is not None]
    assert np.ma.filled(mesh.get_array(), np.nan).reshape(5, 5) == pytest.approx(
        100 * differences.to_numpy(), nan_ok=True
    )
    assert mesh.norm.vmax == -mesh.norm.vmin == pytest.approx(100 * np.nanmax(np.abs(differences)))


@pytest.mark.parametrize("n", [1, 2, 14, 20])
def test_the_comparison_map_fits_few_and_many_rows(n):
    figure = figures.comparison_map(*square(n))
    draw(figure)
    if n == 14:
        assert figure.get_size_inches()[0] < 7.6  # the page shows it nearly as large as it is drawn


def test_rows_that_are_all_alike_are_pale():
    differences, p = square(3)
    figure = figures.comparison_map(differences * 0, p)
    draw(figure)
    [mesh] = [c for c in figure.axes[0].collections if c.get_array() is not None]
    assert mesh.norm.vmax == 1


def test_hostile_names_are_drawn():
    names = ["$x^{$", "<b>", "一" * 200]
    differences, p = square(3)
    for frame in (differences, p):
        frame.index = frame.columns = names
    assert "<b> minus" in draw(figures.comparison_map(differences, p))
    draw(figures.forest_plot({"a": scored(), "b": scored(1)}, dict(zip("ab", names, strict=False))))


def test_the_per_class_map_says_every_value():
    values = pd.DataFrame([[0.1, np.nan], [0.5, 1]], ["Top-k", "Linear probe"], ["tumor", "stroma"])
    alternative = draw(figures.per_class_map(values, "average precision"))
    assert "Top-k: tumor 0.10, stroma nan; Linear probe: tumor 0.50, stroma 1.00" in alternative
