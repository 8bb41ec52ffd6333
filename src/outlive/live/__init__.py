"""The live page: the shielded work and the disconnect flows of this process in a browser, with nothing else installed."""

from outlive.live.page import LivePage

__all__ = ["LivePage"]
