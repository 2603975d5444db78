"""What learns from labels: the CMM head and its training, baselines, attention maps, and studies of many models."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "cmm": ["CMM", "load_cmm", "save_cmm"],
        "training": ["TrainingOptions", "predict", "train_head", "train_heads"],
        "baselines": ["BASELINES", "baseline", "ensemble", "fit_baselines", "tissue_prior_method", "uninformative"],
        "attention": ["attention_maps", "maps_to_compare"],
        "studies": ["load_studies", "plan_studies", "run_studies"],
    },
)
