"""The report as a site: executed notebooks and templates become pages that link each other."""
