"""Frozen encoders: loading them, pooled image features, patch tokens and text features."""
