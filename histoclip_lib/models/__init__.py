"""The CMM head and the models beside it: training, baselines, attention, studies."""
