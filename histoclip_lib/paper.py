"""The paper's numbers beside ours, with what is known of the difference."""

from __future__ import annotations

import re

import pandas as pd

from histoclip_lib.markdown import as_typed
from histoclip_lib.results import PAPER_ROWS, ROW_LABELS
from histoclip_lib.run_summaries import OFFLINE_BACKBONE, PAPER


def paper_table(rows: dict[str, dict], dataset: str) -> pd.DataFrame | None:
    """Return our mAcc beside the paper's, with what is known of a row's difference, as text.

    Parameters
    ----------
    rows : dict of str to dict
        As in `metrics.json`; those that the paper has are shown.
    dataset : str
        As in the parameter file.

    Returns
    -------
    DataFrame or None
        None where the data set is none of the paper's three.
    """
    if dataset not in PAPER:
        return None
    paper = dict(zip(PAPER_ROWS, PAPER[dataset][1], strict=True))
    paper |= {"histoclip_global": paper["histoclip"], "histoclip_patch": paper["histoclip"]}
    lines = {}
    for name in ROW_LABELS:
        if name in rows and name in paper:
            low, high = rows[name]["mAcc_ci"]
            lines[ROW_LABELS[name]] = {
                "mAcc": f"{rows[name]['mAcc']:.4f}",
                "95 % interval": f"{low:.3f} – {high:.3f}",
                "the paper": f"{paper[name]:.4f}",
                "difference": f"{rows[name]['mAcc'] - paper[name]:+.4f}",
                "what is known": _known(name, rows, dataset),
            }
    return pd.DataFrame.from_dict(lines, orient="index")


def _known(name: str, rows: dict[str, dict], dataset: str) -> str:
    if name == "baseline":
        scores = [f"{rows['all_positive']['mAcc']:.4f} here"] if "all_positive" in rows else []
        scores += ["0.4107 on the whole of PanNuke"] if dataset == "pannuke" else []
        said = f" Marking every label scores {' and '.join(scores)}." if scores else ""
        return f"With OpenAI's CLIP every cosine is positive, so this rule marks every label.{said}"
    if name.startswith("histoclip"):
        heights = {"majority": "the majority of train", "tissue_prior": "the tissue alone"}
        simpler = [f"{label} scores {rows[row]['mAcc']:.3f}" for row, label in heights.items() if row in rows]
        return f"mAcc rewards the common answer: {', '.join(simpler)}." if simpler else ""
    return ""


def paper_note(dataset: str, backbone: str, split: str) -> str:
    """Say in Markdown why no row need agree with the paper; empty where the data set is none of its three.

    Parameters
    ----------
    dataset, backbone, split : str
        As in the parameter file.
    """
    if dataset not in PAPER:
        return ""
    both = "The paper names ViT-B/16 in section II.A and ViT-L/14 in section III"
    if backbone == OFFLINE_BACKBONE:
        lines = [f"{as_typed(backbone)} is not CLIP, so its numbers and the paper's say nothing of each other."]
    elif re.match(r"vit-?l-?14", backbone, re.IGNORECASE):
        lines = [f"{both}; this is the latter."]
    else:
        lines = [f"{both}; this is {as_typed(backbone)}."]
    lines.append(
        {
            "random": "The paper splits 8:2, by what unit it does not say. This split draws patches, other ones.",
            "grouped": "The paper splits 8:2, by what unit it does not say. This split keeps groups apart.",
            "given": "The paper splits 8:2; this is the split that came with the data.",
        }[split]
    )
    lines.append(
        "The paper gives no batch size, no regularisation and no augmentation, and a single HistoCLIP, which stands "
        "beside both of ours."
    )
    return "\n".join(f"- {line}" for line in lines)
