"""HistoCLIP: multi-label classification of histopathology patches with a frozen CLIP.

The modules in the order in which data flows; each imports only from those before it::

    errors, files, markdown, displays, cache: bad input, files written whole, text from users, where caches lie
    yaml_files: YAML from users, read as plain data
    datasets.images, datasets.base, datasets.checks: patches, labels, groups, masks, and what is wrong with them
    datasets.csv_tables, datasets.folder, datasets.splits, datasets.about: anyone's own data, the split
    datasets.histoseg: BCSS-WSSS and LUAD-HistoSeg
    datasets.pannuke_arrays, datasets.pannuke_parquet, datasets.pannuke: PanNuke in its layouts
    datasets.painting, datasets.tissue, datasets.synthetic: procedural H&E
    datasets: one function that loads any of them
    lite0_minilm, image_towers, onnx_tower, clip: the frozen encoder
    views, shards, encoding, features, feature_reader: encoded once, cached, read in batches
    executors, remote_encoding: the same on many processes and machines
    prompts: classes as text
    metrics: mAcc and its company
    uncertainty: intervals by bootstrap over groups, paired tests of two rows
    calibration, confusion: how far probabilities can be believed, what is taken for what
    zero_shot, prompt_sensitivity: the four strategies, and how far they depend on their words
    dropout, head_files, cmm, mlp: the Cross-Modal Matching head
    checkpoints, training_steps, training: how it is fitted
    baselines: the rows that need no CLIP text: trivial rows, linear probe, nearest patches
    leakage: copies of validation patches in the training part
    studies: more models than one: seeds, folds, splits, designs, numbers of patches
    attention, reference_maps, attention_scores: what the head looks at, and whether it is right
    figures.base, figures.data, figures.zero_shot, figures.training, figures.evaluation: pictures
    figures.calibration, figures.confusion, figures.attention, figures.leakage: more of them
    figures.exploring, figures, galleries, thumbnails: the rest of them
    pages.page_explorers: figures that a reader of a page can move through
    explore.base, explore.decisions, explore.tissue, explore.words, explore: widgets for JupyterLab
    pages.page_html, run_summaries: HTML that cannot act, what runs found
    results, comparisons, split_gap, study_tables: tables, and which row is ahead of which
    paper, model_card: what must stand beside the numbers
    pages.navigation, pages.export: notebooks and templates as pages
    pages.run_notebooks, pages.run_results, pages.run_predictions: what lies in a run's folder
    pages.headlines, pages.summary_pages, pages.run_pages: the pages of a run
    params, grids: parameter files, and those that stand for many runs
    pages.run_comparisons, pages.comparison_pages, pages.run_pairs, pages.grid_pages: the pages over several runs
    pages.overview, pages: the overview of all runs
    locks, execution, runs, many_runs: one parameter file -> one folder of reports, or many
    commands.console, commands.progress, commands.text_tables, commands.costs: what the command line prints
    commands.run_details, commands.help_texts, commands.exits, commands, cli: its commands
"""

__version__ = "0.1.0"
