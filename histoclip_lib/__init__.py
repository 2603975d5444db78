"""HistoCLIP: multi-label classification of histopathology patches with a frozen CLIP.

The modules in the order in which data flows; each imports only from those before it::

    errors  cache  datasets/   patches, labels, groups, masks, splits
    lite0_minilm  clip         the frozen encoder
    features                   encoded once, cached
    prompts  zero_shot         classes as text, the four strategies
    cmm                        the Cross-Modal Matching head
    metrics  training          mAcc and its company; the head is fitted
    baselines                  the rows that need no CLIP text: trivial rows, linear probe
    attention  figures         what the head looks at; pictures
    params  runs  pages  cli   one parameter file -> one folder of reports
"""

__version__ = "0.1.0"
