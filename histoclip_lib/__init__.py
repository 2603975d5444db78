"""HistoCLIP: multi-label classification of histopathology patches with a frozen CLIP.

The modules in the order in which data flows; each imports only from those before it::

    errors, files, markdown, cache: bad input, files written whole, text from users, where caches lie
    datasets.base, datasets.folder, datasets.splits, datasets.about: patches, labels, groups, masks
    datasets.histoseg: BCSS-WSSS and LUAD-HistoSeg
    datasets.pannuke_arrays, datasets.pannuke_parquet, datasets.pannuke: PanNuke in its layouts
    datasets.painting, datasets.tissue, datasets.synthetic: procedural H&E
    datasets: one function that loads any of them
    lite0_minilm, image_towers, onnx_tower, clip: the frozen encoder
    features, feature_reader: encoded once, cached, read in batches
    prompts: classes as text
    metrics: mAcc and its company
    uncertainty: intervals by bootstrap over groups, paired tests of two rows
    calibration, confusion: how far probabilities can be believed, what is taken for what
    zero_shot, prompt_sensitivity: the four strategies, and how far they depend on their words
    dropout, cmm, mlp, checkpoints, training: the Cross-Modal Matching head, and how it is fitted
    baselines: the rows that need no CLIP text: trivial rows, linear probe, nearest patches
    leakage: copies of validation patches in the training part
    studies: more models than one: seeds, folds, splits, designs, numbers of patches
    attention, reference_maps, attention_scores: what the head looks at, and whether it is right
    figures.base, figures.data, figures.zero_shot, figures.training, figures.evaluation: pictures
    figures.calibration, figures.confusion, figures.attention, figures.leakage, figures, galleries: more of them
    page_html, run_summaries: HTML that cannot act, what runs found
    results, comparisons, split_gap, study_tables: tables, and which row is ahead of which
    paper, model_card: what must stand beside the numbers
    pages: notebooks as pages
    params, runs, cli: one parameter file -> one folder of reports
"""

__version__ = "0.1.0"
