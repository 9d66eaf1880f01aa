"""The registered model, as MLflow loads and serves it: raw clips in, classes with probabilities out.

MLflow runs this file to make the model, beside a copy of the project's code and the networks' weights as safetensors.
Nothing is unpickled. A request, after ``mlflow models serve -m models:/NAME@champion``:

  curl http://127.0.0.1:5000/invocations -H 'Content-Type: application/json' \\
    -d '{"dataframe_records": [{"name": "clip.json", "content": "… the whole file …"}]}'
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.types.schema import Array, ColSpec, DataType, Object, Property, Schema

TOP = 5
# The whole raw file as text; of an .npy file, in base64.
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


class Served(mlflow.pyfunc.PythonModel):
    """An ensemble, or a single network, behind MLflow's interface."""

    def load_context(self, context: Any) -> None:
        from fgst.evaluation.inference import Predictor

        self.networks = Predictor.load(Path(context.artifacts["networks"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Of each clip ``name``, ``class``, ``probability`` and ``top``, the five best; or ``fault``, if it is none."""
        from fgst.data.formats import FORMATS
        from fgst.errors import InputError

        rows = []
        for name, content in zip(model_input["name"], model_input["content"], strict=True):
            row: dict[str, Any] = {"name": name, "top": []}
            try:
                binary = FORMATS[self.networks.card.preparation].is_binary
                raw = base64.b64decode(content, validate=True) if binary else content.encode()
                [best] = self.networks.top([self.networks.read(raw)], TOP)
                row["top"] = [{"class": b["class"], "probability": b["probability"]} for b in best]
                row |= row["top"][0]
            except (InputError, ValueError) as fault:
                row["fault"] = str(fault)
            rows.append(row)
        return rows


def example(networks: Path) -> pd.DataFrame:
    """A request of one clip, somebody who stands still, in the form that these networks read."""
    from fgst.data.formats import FORMATS
    from fgst.evaluation.inference import Predictor

    card = Predictor.load(networks).card
    pose = np.zeros((4, card.skeleton.num_joints, 3), np.float32)
    pose[:, :, 1] = np.linspace(-0.8, 0.8, card.skeleton.num_joints)
    raw_format = FORMATS[card.preparation]
    raw = raw_format.encode(pose)
    content = base64.b64encode(raw).decode() if raw_format.is_binary else raw.decode()
    return pd.DataFrame([{"name": f"still{raw_format.suffix}", "content": content}])


set_model(Served())
