"""Scores of a network for the clips of a split."""

from __future__ import annotations

import numpy as np
import torch

from fgst.data.loader import EVALUATION_BATCH, ClipLoader
from fgst.evaluation.metrics import Scores
from fgst.model import FGSTFormer


def score(model: FGSTFormer, loader: ClipLoader, batch_size: int = EVALUATION_BATCH) -> Scores:
    """Compute the network's scores of every clip of a split.

    The clips are not augmented. The network runs in evaluation mode and in float32, regardless of the precision of its
    training; its previous mode is restored afterwards.

    Args:
        model: the network, on the loader's device.
        loader: the clips of one split.
        batch_size: clips per forward pass; it bounds the memory that scoring needs.

    Returns:
        The scores before the softmax, float32 on the CPU, in the loader's order and with its clip names and labels.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        parts = [model(b.clips, b.person_mask).float().cpu().numpy() for b in loader.evaluation_batches(batch_size)]
    model.train(was_training)
    return Scores(loader.clip_ids, loader.labels.cpu().numpy(), np.concatenate(parts), loader.split, loader.digest)
