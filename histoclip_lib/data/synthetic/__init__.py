"""Procedural H&E: regions laid out by chance, painted, labelled and cached."""
