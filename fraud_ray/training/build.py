"""From settings to the torch objects that the loop is handed: network, optimiser, scheduler, loss."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from fraud_ray.data.rows import Rows
from fraud_ray.model.network import FraudNetwork, NetworkShape
from fraud_ray.settings import TrainSettings
from fraud_ray.training.feed import Feed
from fraud_ray.training.loop import FoldFit, Holdout


def build_fold(
    shape: NetworkShape, feed: Feed, holdout: Rows | None, settings: TrainSettings, device: torch.device
) -> FoldFit:
    """The fit of one fold before its first step; `torch.manual_seed` decides the weights.

    holdout: rows to score after each epoch. Several ranks call this at the same time, each in torch's default process
    group; they go on with the weights of rank 0.
    """
    network = FraudNetwork(shape).to(device)
    optimizer = build_optimizer(network, settings, device)
    return FoldFit(
        network=network,
        # No buffer changes in training, so none is sent around before each step.
        module=network
        if feed.slot.ranks == 1
        else DistributedDataParallel(network, gradient_as_bucket_view=True, broadcast_buffers=False),
        optimizer=optimizer,
        scheduler=build_scheduler(optimizer, settings, feed.steps * settings.epochs),
        loss=build_loss(feed, settings, device),
        feed=feed,
        holdout=None if holdout is None else Holdout.of(holdout, feed.slot, device),
        device=device,
        in_bf16=settings.precision == "bf16" and device.type == "cuda",
    )


def network_shape(features: int, code_sizes: tuple[int, ...], settings: TrainSettings) -> NetworkShape:
    """The network that these settings ask for on so many features and categories."""
    chosen = {field.name for field in fields(NetworkShape)} - {"features", "code_sizes"}
    return NetworkShape(features, code_sizes, **{name: getattr(settings, name) for name in chosen})


def build_optimizer(network: nn.Module, settings: TrainSettings, device: torch.device) -> torch.optim.Optimizer:
    """Adam or AdamW on torch's fused kernel; on a GPU such that its step can be captured."""
    on_gpu = device.type == "cuda"
    # A captured step reads the rate where it lies.
    rate = torch.tensor(settings.learning_rate, device=device) if on_gpu else settings.learning_rate
    if settings.optimizer == "adam":
        return torch.optim.Adam(network.parameters(), rate, fused=True, capturable=on_gpu)
    decay = settings.weight_decay
    return torch.optim.AdamW(network.parameters(), rate, weight_decay=decay, fused=True, capturable=on_gpu)


def build_scheduler(optimizer: torch.optim.Optimizer, settings: TrainSettings, steps: int) -> LRScheduler | None:
    """What changes the learning rate after each of so many steps; None where it stays."""
    if settings.schedule == "constant" and not settings.warmup_share:
        return None
    factor = partial(rate_factor, total=steps, schedule=settings.schedule, warmup_share=settings.warmup_share)
    return LambdaLR(optimizer, factor)


def rate_factor(step: int, total: int, schedule: str, warmup_share: float) -> float:
    """Share of the peak learning rate at a step: a linear rise, then constant or a cosine to zero."""
    warmup = int(total * warmup_share)
    if step < warmup:
        return (step + 1) / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def build_loss(feed: Feed, settings: TrainSettings, device: torch.device) -> Callable[..., Tensor]:
    """Sum of the cross entropies of logits and labels of one shape, and of an optional `weight`."""
    weight = settings.positive_weight
    positive = (feed.rows - feed.frauds) / feed.frauds if weight == "balanced" else float(weight)
    return partial(
        F.binary_cross_entropy_with_logits, pos_weight=torch.tensor(positive, device=device), reduction="sum"
    )
