"""The presets: configurations to start from."""

from __future__ import annotations

import dataclasses

from fgst.config.data import DataConfig
from fgst.config.model import ModelConfig
from fgst.config.train import TrainConfig
from fgst.config.trial import TrialConfig

# Chosen by validation (benchmarks/results/nw-ucla.md): cosine decay was better than steps, and no change of the network
# was better than the paper's.
_COSINE = TrainConfig(lr=0.05, schedule="cosine", label_smoothing=0.1)
# The same training with fewer epochs, for the narrower networks that can be trained on a CPU.
_SMALL_TRAINING = dataclasses.replace(_COSINE, epochs=16)
_SMALL_NETWORK = ModelConfig(channels=(32, 32, 64, 64, 128, 128, 128, 128))
PRESETS: dict[str, TrialConfig] = {
    "paper": TrialConfig(),
    # Found for NW-UCLA on a CPU by validation, with a single seed (benchmarks/results/settings.md).
    "best": TrialConfig(
        _SMALL_NETWORK,
        DataConfig(frames=32),
        dataclasses.replace(_COSINE, epochs=8, optimizer="muon", lr=0.004, weight_decay=0.1, rotation_ramp=0.7),
    ),
    "small": TrialConfig(_SMALL_NETWORK, DataConfig(frames=32), _SMALL_TRAINING),
    "tiny": TrialConfig(
        ModelConfig(channels=(16, 16, 32, 32), stage1_layers=2, stage2_layers=2), DataConfig(frames=16), _SMALL_TRAINING
    ),
    # For the generated motion: trained in seconds. Without the part branch, stage 2 sees nothing but the focal joints.
    # Muon and the ramp: with SGD, some trainings ended several points below the others.
    "demo": TrialConfig(
        ModelConfig(
            channels=(16, 32),
            stage1_layers=1,
            stage2_layers=1,
            focal_joints=6,
            part_branch=False,
            cross_attention=False,
        ),
        DataConfig(frames=8, validation=0.4),
        dataclasses.replace(
            _COSINE,
            optimizer="muon",
            lr=0.02,
            weight_decay=0.05,
            rotation_ramp=0.7,
            epochs=3,
            repeat=4,
            batch_size=16,
        ),
    ),
}
