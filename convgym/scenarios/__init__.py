"""Scenario families, one file each; a family's class docstring is its docs page."""
