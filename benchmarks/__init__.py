"""Outlive against its peers and against the floor, side by side in one run: `make bench`."""
