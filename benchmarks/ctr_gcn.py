"""CTR-GCN (Chen et al., ICCV 2021), implemented from its paper as the reference of ``benchmarks.step_time``.

It is a reference for cost only and is not trained. Layers, widths, kernels and branches are those of the paper, and so
are the number of parameters (1.4 M) and of FLOPs (1.5 GFLOPs per clip at T 64, N 20).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fgst.data.skeleton import Skeleton


class TopologyRefinement(nn.Module):
    """Channel-wise topology refinement graph convolution, with topology A + α·tanh(ψ(x)_i − φ(x)_j) per channel."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        reduced = 8 if channels_in == 3 else channels_in // 8
        self.psi = nn.Conv2d(channels_in, reduced, 1)
        self.phi = nn.Conv2d(channels_in, reduced, 1)
        self.value = nn.Conv2d(channels_in, channels, 1)
        self.widen = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor, adjacency: Tensor, alpha: Tensor) -> Tensor:
        """Apply the convolution, ``(B, C_in, T, N)`` → ``(B, C, T, N)``."""
        difference = self.psi(x).mean(2)[..., :, None] - self.phi(x).mean(2)[..., None, :]  # (B, r, N, N)
        topology = self.widen(torch.tanh(difference)) * alpha + adjacency
        return torch.einsum("bcuv,bctv->bctu", topology, self.value(x))


class GraphConvolution(nn.Module):
    """Sum of three graph convolutions with refined topologies, with norm and residual."""

    def __init__(self, channels_in: int, channels: int, adjacency: Tensor) -> None:
        super().__init__()
        self.refine = nn.ModuleList(TopologyRefinement(channels_in, channels) for _ in range(3))
        self.adjacency = nn.Parameter(adjacency.clone())
        self.alpha = nn.Parameter(torch.zeros(1))
        self.norm = nn.BatchNorm2d(channels)
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels:
            self.shortcut = nn.Sequential(nn.Conv2d(channels_in, channels, 1), nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        refined = [refine(x, self.adjacency[i], self.alpha) for i, refine in enumerate(self.refine)]
        return torch.relu(self.norm(refined[0] + refined[1] + refined[2]) + self.shortcut(x))


def temporal_convolution(channels_in: int, channels: int, kernel: int, stride: int, dilation: int = 1) -> nn.Sequential:
    """Return a convolution over frames with batch norm; padding preserves the number of frames at stride 1."""
    padding = (kernel + (kernel - 1) * (dilation - 1) - 1) // 2
    return nn.Sequential(
        nn.Conv2d(channels_in, channels, (kernel, 1), (stride, 1), (padding, 0), (dilation, 1)),
        nn.BatchNorm2d(channels),
    )


class MultiScaleTemporal(nn.Module):
    """Four temporal branches: kernel 5 with dilations 1 and 2, maximum over 3 frames, kernel 1."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        width = channels // 4
        self.branches = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                temporal_convolution(width, width, 5, stride, dilation),
            )
            for dilation in (1, 2)
        )
        self.branches.append(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.BatchNorm2d(width),
                nn.ReLU(),
                nn.MaxPool2d((3, 1), (stride, 1), (1, 0)),
                nn.BatchNorm2d(width),
            )
        )
        self.branches.append(temporal_convolution(channels, width, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


class Layer(nn.Module):
    """Graph convolution, multi-scale temporal convolution and residual."""

    def __init__(self, channels_in: int, channels: int, adjacency: Tensor, stride: int, residual: bool) -> None:
        super().__init__()
        self.graph = GraphConvolution(channels_in, channels, adjacency)
        self.temporal = MultiScaleTemporal(channels, stride)
        self.residual = residual
        self.shortcut: nn.Module = nn.Identity()
        if channels_in != channels or stride != 1:
            self.shortcut = temporal_convolution(channels_in, channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.temporal(self.graph(x))
        return torch.relu(out + self.shortcut(x) if self.residual else out)


class CTRGCN(nn.Module):
    """CTR-GCN: ten layers of 64 to 256 channels; layers 5 and 8 halve the number of frames.

    Args:
        skeleton: its bones define the three adjacency matrices (self, inward, outward), normalized by degree.
        num_classes: number of action classes.
        persons: M.
    """

    def __init__(self, skeleton: Skeleton, num_classes: int, persons: int) -> None:
        super().__init__()
        N = skeleton.num_joints
        inward = torch.zeros(N, N)
        for child, parent in enumerate(skeleton.parents):
            if parent != child:
                inward[parent, child] = 1
        graphs = [torch.eye(N), inward, inward.t()]
        adjacency = torch.stack([graph / graph.sum(0, keepdim=True).clamp_min(1) for graph in graphs])
        widths = [3] + [64] * 4 + [128] * 3 + [256] * 3
        self.input_norm = nn.BatchNorm1d(persons * N * 3)
        self.layers = nn.ModuleList(
            Layer(widths[i], widths[i + 1], adjacency, stride=2 if i in (4, 7) else 1, residual=i > 0)
            for i in range(10)
        )
        self.classifier = nn.Linear(256, num_classes)

    def forward(self, clips: Tensor) -> Tensor:
        """Return the scores of clips, ``(B, M, T, N, 3)`` → ``(B, num_classes)``."""
        B, M, T, N, C = clips.shape
        x = clips.permute(0, 1, 3, 4, 2).reshape(B, M * N * C, T)
        x = self.input_norm(x).view(B * M, N, C, T).permute(0, 2, 3, 1).contiguous()
        for layer in self.layers:
            x = layer(x)
        return self.classifier(x.mean((2, 3)).view(B, M, -1).mean(1))
