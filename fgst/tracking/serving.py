"""The registered model as MLflow loads and serves it: raw clips in, classes with probabilities out.

MLflow executes this file to create the model, together with a copy of the ``fgst`` package and the networks' weights as
safetensors; nothing is unpickled. A request to ``mlflow models serve -m models:/NAME@champion``:

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

from fgst.data.formats import find_format
from fgst.data.sources import ClipError, parse_clip
from fgst.errors import InputError
from fgst.evaluation.inference import Predictor
from fgst.evaluation.scoring import NOT_FINITE

TOP_K = 5
# ``content`` is the raw file's text, or the base64 encoding of an .npy file.
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


class ServedModel(mlflow.pyfunc.PythonModel):
    """A single network or an ensemble behind MLflow's model interface."""

    def load_context(self, context: Any) -> None:
        """Load the networks; MLflow calls this once, before the first request."""
        self.predictor = Predictor.load(Path(context.artifacts["networks"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> list[dict[str, Any]]:
        """Classify raw clips.

        Args:
            context: unused.
            model_input: a row per clip with ``name`` and ``content``.
            params: unused.

        Returns:
            A row per clip with ``name``, ``class``, ``probability`` and ``top``, the five most likely classes; for an
            invalid clip, ``fault`` with the reason, and an empty ``top``.
        """
        rows = []
        for name, content in zip(model_input["name"], model_input["content"], strict=True):
            row: dict[str, Any] = {"name": name, "top": []}
            try:
                binary = find_format(self.predictor.card.preparation).is_binary
                raw = parse_clip(_decode_base64 if binary else str.encode, content)
                [ranking] = self.predictor.top([self.predictor.read(raw)], TOP_K)
                if not ranking:
                    raise InputError(NOT_FINITE)
                row["top"] = [{"class": entry["class"], "probability": entry["probability"]} for entry in ranking]
                row |= row["top"][0]
            except (ClipError, InputError) as error:
                row["fault"] = str(error)
            rows.append(row)
        return rows


def _decode_base64(content: str) -> bytes:
    return base64.b64decode(content, validate=True)


def input_example(networks: Path) -> pd.DataFrame:
    """Return an example request: one clip of a person standing still, in the raw format that the networks read.

    Args:
        networks: folder that :meth:`fgst.evaluation.inference.Predictor.load` reads.
    """
    card = Predictor.load(networks).card
    pose = np.zeros((4, card.skeleton.num_joints, 3), np.float32)
    pose[:, :, 1] = np.linspace(-0.8, 0.8, card.skeleton.num_joints)
    raw_format = find_format(card.preparation)
    raw = raw_format.encode(pose, card.skeleton)
    content = base64.b64encode(raw).decode() if raw_format.is_binary else raw.decode()
    return pd.DataFrame([{"name": f"still{raw_format.suffix}", "content": content}])


set_model(ServedModel())
