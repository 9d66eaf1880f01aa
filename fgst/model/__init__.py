"""The network of the paper."""

from fgst.model.fgstformer import FGSTFormer

__all__ = ["FGSTFormer"]
