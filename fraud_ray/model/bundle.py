"""The folder of one model: the graph that scores, and beside it the parts that it was joined from.

model.onnx           encoder, network and calibration in one graph
portable.onnx        the same for runtimes that read no text (portable.py); bundles made before there was one lack it
vocabulary.json      how a client makes the portable graph's inputs
weights.safetensors  the network's weights
encoder.json         the encoder
profile.json         what the fit rows and the scores on the final holdout looked like
bundle.json          all else: shape, calibration, threshold, hyperparameters, metrics, versions, the others' hashes
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save

from fraud_ray.model.calibration import Calibration
from fraud_ray.model.encoder import Encoder
from fraud_ray.model.graph import build_graph, scoring_graph
from fraud_ray.model.network import FraudNetwork, NetworkShape
from fraud_ray.model.portable import build_portable, vocabulary
from fraud_ray.model.profile import Profile
from fraud_ray.model.scorer import FILES, FORMAT, GRAPH, INFO, PORTABLE, VOCABULARY, GraphScorer

WEIGHTS, ENCODER, PROFILE = "weights.safetensors", "encoder.json", "profile.json"
PARTS = (WEIGHTS, ENCODER, INFO)  # what a model is read back from


@dataclass(frozen=True)
class Bundle:
    """A model as values.

    threshold: probability at and above which a row is an alert. hyperparameters: those it was trained with.
    profile: of the fit rows, with the scores on the final holdout; a bundle without one has no reference for drift.
    metrics: on the final holdout. origin: run, fold, seed, data fingerprint and package versions.
    """

    encoder: Encoder
    shape: NetworkShape
    weights: dict[str, torch.Tensor]
    calibration: Calibration
    threshold: float
    hyperparameters: dict[str, Any]
    profile: Profile | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    origin: dict[str, Any] = field(default_factory=dict)

    def network(self) -> FraudNetwork:
        """The network with its weights, ready to score."""
        network = FraudNetwork(self.shape)
        network.load_state_dict(self.weights)
        return network.eval()

    def with_results(self, metrics: dict[str, float], origin: dict[str, Any]) -> Bundle:
        """The same model with its figures and where it comes from."""
        return replace(self, metrics=metrics, origin=origin)

    def save(self, folder: Path) -> None:
        """Writes the bundle's files; graph last, so that a folder with a graph is whole."""
        folder.mkdir(parents=True, exist_ok=True)
        info = {
            "format": FORMAT,
            "threshold": self.threshold,
            "calibration": self.calibration.to_json(),
            "shape": self.shape.to_json(),
            "features": self.encoder.feature_names,
            "columns": [column.name for column in self.encoder.columns],
            "hyperparameters": self.hyperparameters,
            "metrics": self.metrics,
            "origin": self.origin,
        }
        scoring = scoring_graph(self.encoder, self.network(), self.calibration)
        contents = {WEIGHTS: save(self.weights), ENCODER: json.dumps(self.encoder.to_json(), indent=1).encode()}
        if self.profile is not None:
            contents[PROFILE] = json.dumps(self.profile.to_json()).encode()
        contents[VOCABULARY] = json.dumps(vocabulary(self.encoder, self.threshold), indent=1).encode()
        for name, build in ((PORTABLE, build_portable), (GRAPH, build_graph)):
            contents[name] = build(self.encoder, scoring, self.threshold).SerializeToString()
        info[FILES] = {name: hashlib.sha256(content).hexdigest() for name, content in contents.items()}
        (folder / INFO).write_text(json.dumps(info, indent=1, default=str))
        for name, content in contents.items():
            (folder / name).write_bytes(content)

    @classmethod
    def load(cls, folder: Path) -> Bundle:
        """Reads a bundle back. Raises ValueError for another format than this version writes."""
        info: Mapping[str, Any] = json.loads((folder / INFO).read_text())
        if info["format"] != FORMAT:
            raise ValueError(f"the bundle at {folder} has format {info['format']}, this version reads {FORMAT}")
        return cls(
            encoder=Encoder.from_json(json.loads((folder / ENCODER).read_text())),
            shape=NetworkShape.from_json(info["shape"]),
            weights=load_file(folder / WEIGHTS),
            calibration=Calibration.from_json(info["calibration"]),
            threshold=info["threshold"],
            hyperparameters=info["hyperparameters"],
            profile=load_profile(folder),
            metrics=info["metrics"],
            origin=info["origin"],
        )


def network_logits(
    network: FraudNetwork, features: npt.NDArray[np.float32], codes: npt.NDArray[np.int32], batch_rows: int = 8_192
) -> npt.NDArray[np.float32]:
    """Logits float32 (rows,) of encoded rows: features (rows, F), codes (rows, C)."""
    scored = [np.empty(0, np.float32)]
    with torch.no_grad():
        for start in range(0, len(features), batch_rows):
            cut = slice(start, start + batch_rows)
            scored.append(network(torch.tensor(features[cut]), torch.tensor(codes[cut])).numpy())
    return np.concatenate(scored)


def load_profile(folder: Path) -> Profile | None:
    """The profile in a bundle's folder; None where it holds none."""
    file = folder / PROFILE
    return Profile.from_json(json.loads(file.read_text())) if file.is_file() else None


def open_graph(folder: Path) -> GraphScorer:
    """The scorer of a bundle's graph."""
    return GraphScorer((folder / GRAPH).read_bytes())
