"""The registered model, as MLflow loads and serves it: raw clips in, classes with probabilities out.

MLflow runs this file to make the model, beside a copy of the project's code and the networks' weights as safetensors.
Nothing is unpickled. A request, after ``mlflow models serve -m models:/NAME@champion``:

  curl http://127.0.0.1:5000/invocations -H 'Content-Type: application/json' \\
    -d '{"dataframe_records": [{"name": "clip.json", "content": "… the whole file …"}]}'
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.types.schema import Array, ColSpec, DataType, Object, Property, Schema

TOP = 5
# Raw files are text but for .npy, which comes in base64.
INPUTS = Schema([ColSpec(DataType.string, "name"), ColSpec(DataType.string, "content")])
OUTPUTS = Schema(
    [
        ColSpec(DataType.string, "name"),
        ColSpec(DataType.string, "class", required=False),
        ColSpec(DataType.double, "probability", required=False),
        ColSpec(Array(Object([Property("class", DataType.string), Property("probability", DataType.double)])), "top"),
        ColSpec(DataType.string, "fault", required=False),
    ]
)


class Served(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """An ensemble, or a single network, behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        from fgst.predict import load_networks

        self.networks = load_networks(Path(context.artifacts["networks"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row per clip: ``name``, ``class``, ``probability``, ``top`` (the five best), ``fault`` if it is no clip."""
        from fgst.errors import InputError

        rows = []
        for name, content in zip(model_input["name"], model_input["content"], strict=True):
            row: dict[str, Any] = {"name": name, "class": None, "probability": None, "top": [], "fault": None}
            try:
                raw = base64.b64decode(content, validate=True) if name.endswith(".npy") else content.encode()
                row["top"] = self.networks.top(raw, name, TOP)
                row |= row["top"][0]
            except (InputError, ValueError) as fault:
                row["fault"] = str(fault)
            rows.append(row)
        return pd.DataFrame(rows, columns=OUTPUTS.input_names())


def example(networks: Path) -> pd.DataFrame:
    """A request of one clip, somebody who stands still, in the form that these networks read."""
    from fgst.predict import load_networks

    card = load_networks(networks).card
    pose = np.zeros((4, card.skeleton.num_joints, 3), np.float32)
    pose[:, :, 1] = np.linspace(-0.8, 0.8, card.skeleton.num_joints)
    if card.skeleton.name == "nw-ucla-20":
        return pd.DataFrame([{"name": "still.json", "content": json.dumps({"skeletons": pose.tolist()})}])
    file = io.BytesIO()
    np.save(file, pose)
    return pd.DataFrame([{"name": "still.npy", "content": base64.b64encode(file.getvalue()).decode()}])


set_model(Served())
