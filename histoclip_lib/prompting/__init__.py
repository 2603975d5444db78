"""Classes in words, and the zero-shot strategies that need nothing else."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "vocabulary": ["TextEncoder", "Vocabulary", "class_embeddings", "load_vocabulary"],
        "strategies": ["STRATEGIES", "StrategyContext", "score_zero_shot", "strategy"],
        "sensitivity": ["score_variants"],
    },
)
