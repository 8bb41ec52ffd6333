"""The conformance matrix: the same work after a disconnect, on every server, for every end, done in four ways."""
