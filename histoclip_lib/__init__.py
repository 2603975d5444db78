"""HistoCLIP: multi-label classification of histopathology patches with a frozen CLIP.

The names below are loaded on first use; importing the library loads neither PyTorch nor pandas.
"""

import lazy_loader

__version__ = "0.2.0"

_PUBLIC = {
    "clip.encoder": ["load_clip"],
    "clip.registry": ["encoder"],
    "data.base": ["PatchDataset"],
    "data.registry": ["dataset", "load_dataset"],
    "data.splits": ["split_dataset"],
    "features.encode": ["encode_dataset"],
    "prompting.strategies": ["score_zero_shot", "strategy"],
    "prompting.vocabulary": ["load_vocabulary"],
    "models.cmm": ["CMM"],
    "models.training": ["predict", "train_head"],
    "models.attention": ["attention_maps"],
    "models.bundle": ["load_model"],
    "models.baselines": ["baseline"],
    "evaluation.uncertainty": ["evaluate"],
    "runs.run": ["open_run"],
}
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs=_PUBLIC)
