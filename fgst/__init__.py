"""fgst: experiment sweeps of the FG-STFormer for skeleton-based action recognition."""
