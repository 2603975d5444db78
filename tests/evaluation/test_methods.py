"""Labels, order and the paper's numbers follow the registries."""

import pytest

from histoclip_lib.common.errors import HistoCLIPError
from histoclip_lib.common.registry import FAMILIES
from histoclip_lib.evaluation import methods


def test_methods_are_ordered_by_family():
    found = methods.methods()
    families = [method.family for method in found.values()]
    assert families == sorted(families, key=FAMILIES.index)
    assert next(iter(found)) == "all_negative"
    assert list(found)[-1] == "histoclip_patch"
    assert methods.labels()["histoclip_patch"] == methods.label_of("histoclip_patch") == "HistoCLIP, patch tokens"
    adapted = ["zero_shot_standardised", "zero_shot_transductive"]
    assert methods.strategy_names() == ["baseline", "one_vs_rest", "power_set", "top_k", *adapted]
    assert methods.short_label("one_vs_rest") == "One-vs-Rest"


def test_table_order_refuses_an_unknown_method():
    assert methods.in_table_order(["knn", "baseline", "majority"]) == ["majority", "baseline", "knn"]
    with pytest.raises(HistoCLIPError, match="'toy' is not a known method"):
        methods.in_table_order(["knn", "toy"])
    assert methods.label_of("toy") == methods.short_label("toy") == "toy"


def test_paper_numbers_are_those_of_table_one():
    assert methods.paper_numbers("pannuke") == {
        "baseline": 0.4107,
        "one_vs_rest": 0.4371,
        "power_set": 0.5263,
        "top_k": 0.4862,
        "histoclip_global": 0.8824,
        "histoclip_patch": 0.8824,
    }
    assert methods.paper_numbers("bcss_wsss")["histoclip_patch"] == 0.9121
    assert methods.paper_numbers("luad_histoseg")["one_vs_rest"] == 0.2932
    assert methods.paper_numbers("folder") == methods.paper_numbers("of a plugin") == {}
