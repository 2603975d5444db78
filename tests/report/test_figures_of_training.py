"""Figures of training, where a metric is not defined."""

import pandas as pd

from histoclip_lib.report import figures


def test_hidden_labels_are_drawn_where_map_is_not_defined():
    shares = pd.DataFrame(
        {"method": ["linear_probe"] * 2, "hidden": [0.0, 0.5], "mAcc": [1.0, 0.5], "mAP": [None, None]}
    )
    drawn = figures.hidden_labels(shares, {"linear_probe": "Linear probe"})
    assert "Linear probe with 50% hidden: mAcc 0.500, mAP —" in drawn.alternative
