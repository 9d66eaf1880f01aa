"""The network of the paper."""

from fgst.model.fgstformer import AttentionMaps, FGSTFormer

__all__ = ["AttentionMaps", "FGSTFormer"]
