"""Trained models to artifacts: pure ONNX graphs that are proved equal to the model they came from.

`export_artifact` takes anybody's `nn.Module` or ONNX file; the model zoo is only its first user.
"""

from export.artifact import export_artifact
from export.errors import ExportError
from model_zoo.family import Card, Figure, Graph, Port

__all__ = ["Card", "ExportError", "Figure", "Graph", "Port", "export_artifact"]
