"""Classes as text, the zero-shot strategies, and how far these depend on their words."""
