"""The methods, which are the lines of every table, and the paper's numbers for them."""

from __future__ import annotations

ROW_LABELS = {
    "all_negative": "All negative",
    "all_positive": "All positive",
    "majority": "Majority of train",
    "tissue_prior": "Tissue prior of train",
    "baseline": "Zero-shot: Baseline",
    "one_vs_rest": "Zero-shot: One-vs-Rest",
    "power_set": "Zero-shot: Power-set",
    "top_k": "Zero-shot: Top-k",
    "linear_probe": "Linear probe",
    "knn": "k-nearest neighbours",
    "mlp": "Two-layer MLP",
    "histoclip_text_free": "HistoCLIP, random queries",
    "histoclip_global": "HistoCLIP, global key",
    "histoclip_patch": "HistoCLIP, patch keys",
}
PAPER_ROWS = ("baseline", "one_vs_rest", "power_set", "top_k", "histoclip")


def strategy_name(row: str) -> str:
    """Return the readable name of a zero-shot row where nothing but zero-shot rows is shown: "One-vs-Rest"."""
    return ROW_LABELS[row].removeprefix("Zero-shot: ")


OFFLINE_BACKBONE = "lite0-minilm"
COLUMNS = {
    "majority": "Majority",
    "baseline": "Baseline",
    "one_vs_rest": "One-vs-Rest",
    "power_set": "Power-set",
    "top_k": "Top-k",
    "linear_probe": "Linear probe",
    "histoclip_global": "HistoCLIP global",
    "histoclip_patch": "HistoCLIP patch",
}
# Table I of the paper: Baseline, One-vs-Rest, Power-set, Top-K, HistoCLIP. It names one HistoCLIP only.
PAPER = {
    "bcss_wsss": ("BCSS-WSSS", (0.4266, 0.3757, 0.4713, 0.4358, 0.9121)),
    "luad_histoseg": ("LUAD-HistoSeg", (0.4485, 0.2932, 0.4422, 0.4738, 0.9507)),
    "pannuke": ("PanNuke", (0.4107, 0.4371, 0.5263, 0.4862, 0.8824)),
}
