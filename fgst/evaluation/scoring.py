"""Scores of a network for the clips of a split."""

from __future__ import annotations

import numpy as np
import torch

from fgst.data.loader import EVALUATION_BATCH, ClipLoader
from fgst.evaluation.metrics import NotFiniteError, Scores
from fgst.model import FGSTFormer

NOT_FINITE = "the network's scores of this clip are not finite; are its coordinates in metres?"


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

    Raises:
        NotFiniteError: if a score is not finite; the message names the clip, or the network's weights.
    """
    scores = compute_scores(model, loader, batch_size)
    check_finite(model, loader.clip_ids, scores)
    return Scores(loader.clip_ids, loader.labels.cpu().numpy(), scores, loader.split, loader.digest)


def compute_scores(model: FGSTFormer, loader: ClipLoader, batch_size: int = EVALUATION_BATCH) -> np.ndarray:
    """Compute scores as :func:`score` does, ``(n, classes)``, but without checking that they are finite."""
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        parts = [model(b.clips, b.person_mask).float().cpu().numpy() for b in loader.evaluation_batches(batch_size)]
    model.train(was_training)
    return np.concatenate(parts)


def check_finite(model: FGSTFormer, clip_ids: np.ndarray, scores: np.ndarray) -> None:
    """Check scores ``(n, classes)`` of clips.

    Raises:
        NotFiniteError: if one is not finite; the message names the clip, or the network's weights.
    """
    finite = np.isfinite(scores).all(axis=1)
    if not finite.all():
        check_weights(model)
        raise NotFiniteError(f"clip {clip_ids[finite.argmin()]}: {NOT_FINITE}")


def check_weights(model: FGSTFormer) -> None:
    """Check the weights of a network whose scores are not finite.

    Raises:
        NotFiniteError: if a weight is not finite; the message names the tensor.
    """
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            raise NotFiniteError(f"the network's weights {name} are not finite, so it cannot classify any clip")
