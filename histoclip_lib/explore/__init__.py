"""Explorers: widgets that JupyterLab shows, and pictures that stand in their place where no kernel runs."""

from histoclip_lib.explore.base import Explorer
from histoclip_lib.explore.decisions import thresholds
from histoclip_lib.explore.tissue import attention, patches
from histoclip_lib.explore.words import prompts

__all__ = ["Explorer", "attention", "patches", "prompts", "thresholds"]
