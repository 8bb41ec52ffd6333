"""The production template."""
