"""Observers that make runs, disconnects and drains visible."""
