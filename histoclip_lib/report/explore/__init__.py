"""Explorers: widgets that JupyterLab shows, and pictures that stand in their place where no kernel runs."""

from __future__ import annotations

from histoclip_lib.report.explore.base import Explorer
from histoclip_lib.report.explore.decisions import thresholds
from histoclip_lib.report.explore.tissue import attention, patches
from histoclip_lib.report.explore.words import prompts

__all__ = ["Explorer", "attention", "patches", "prompts", "thresholds"]
