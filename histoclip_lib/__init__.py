"""HistoCLIP: multi-label classification of histopathology patches with a frozen CLIP.

The modules in the order in which data flows; each imports only from those before it::

    errors, files, cache: bad input, files written whole, where caches lie
    datasets.base, datasets.folder, datasets.splits, datasets.about: patches, labels, groups, masks
    datasets.histoseg: BCSS-WSSS and LUAD-HistoSeg
    datasets.pannuke_arrays, datasets.pannuke_parquet, datasets.pannuke: PanNuke in its layouts
    datasets.painting, datasets.tissue, datasets.synthetic: procedural H&E
    datasets: one function that loads any of them
    lite0_minilm, clip: the frozen encoder
    features: encoded once, cached
    prompts: classes as text
    metrics: mAcc and its company
    zero_shot: the four strategies
    cmm, training: the Cross-Modal Matching head, and how it is fitted
    baselines: the rows that need no CLIP text: trivial rows, linear probe
    attention: what the head looks at
    figures.base, figures.data, figures.zero_shot, figures.training, figures.evaluation: pictures
    figures.confusion, figures.attention, figures, galleries: more of them
    page_html, run_summaries: HTML that cannot act, what runs found
    results, pages: tables, and notebooks as pages
    params, runs, cli: one parameter file -> one folder of reports
"""

__version__ = "0.1.0"
