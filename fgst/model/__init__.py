"""The network of the paper."""

from fgst.model.fgstformer import FGSTFormer, Maps

__all__ = ["FGSTFormer", "Maps"]
