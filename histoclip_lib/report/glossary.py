"""What the metrics and terms of the pages mean, each in a sentence or two."""

from __future__ import annotations

from IPython.display import Markdown

GLOSSARY = {
    "mAcc": "The mean over the classes of the share of patches that are labelled correctly, eq. (6). It rewards the "
    "common answer: a class present in 5% of the patches is 95% correct if it is never predicted.",
    "mAP": "The mean over the classes of average precision, the area under the precision-recall curve. It judges the "
    "ranking of patches and needs no threshold; by chance it is about the prevalence.",
    "AUROC": "The probability that a patch with a class is ranked above one without it; 0.5 is chance.",
    "F1": "The harmonic mean of precision and sensitivity. Macro F1 is the mean over classes, micro F1 is of "
    "all labels together.",
    "Exact match": "The share of patches of which every label is correct.",
    "Sensitivity": "Or recall: of the patches in which a class is present, the share in which it is found.",
    "Specificity": "Of the patches in which a class is absent, the share in which it is not predicted.",
    "Precision": "Of the patches in which a class is predicted, the share in which it is present.",
    "False negative": "A class that is present and was not predicted.",
    "False positive": "A class that was predicted and is absent.",
    "Cross-entropy": "The mean of -log of the probability that a method gave to the truth; lower is better, and "
    "confident errors cost most.",
    "Brier score": "The mean squared difference of probability and truth; lower is better.",
    "95% interval": "Values that are compatible with the data: groups of patches (single patches if groups are "
    "unknown) are drawn again and again, and 95% of the results lie inside. In cross-validation it is widened.",
    "p": "How often a difference as large comes up when the predictions of two methods are swapped at random. Holm's "
    "method corrects it for the number of comparisons; below 0.05 a difference counts.",
    "Held-out": "Patches that a model was not fitted on; only these are scored.",
    "Linear probe": "A logistic regression on the frozen features, the simplest trained method.",
    "Patch tokens and global embedding": "HistoCLIP's head attends to the encoder's patch tokens, or to its "
    "single global embedding, as the paper writes.",
    "FNR and FPR": "False-negative and false-positive rate: 1 minus sensitivity, and 1 minus specificity.",
    "ECE": "Expected calibration error: the mean distance between predicted probability and observed frequency.",
    "IoU, mIoU and Dice": "Overlap of a predicted and a true region: the intersection divided by the union (its mean "
    "over the classes), and twice the intersection divided by the sum of both.",
    "Pointing game": "The share of maps whose highest point lies in the mask of the class.",
}


def glossary() -> Markdown:
    """Return all terms, each under a heading that links lead to."""
    return Markdown("\n\n".join(f"#### {term}\n\n{text}" for term, text in GLOSSARY.items()))
