"""What a run measured: metrics, methods, uncertainty, comparisons, and the files of a run."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "across",
        "calibration",
        "confusion",
        "leakage",
        "localisation",
        "methods",
        "risk_control",
        "segmentation",
        "studies",
        "subgroups",
    ],
    submod_attrs={
        "artifacts": ["BrokenRun", "RunMetrics", "evaluate_methods", "find_runs", "read_metrics", "read_predictions"],
        "calibration": ["fit_calibration"],
        "comparisons": ["against_every_method", "compare_runs", "finding", "finding_sentence"],
        "methods": ["in_table_order", "label_of", "short_label", "strategy_names"],
        "metrics": ["point_metrics"],
        "uncertainty": ["bootstrap_interval", "compare", "evaluate"],
    },
)
