"""Weights in and out: ``load`` reads every published layout, ``save`` writes Hugging Face's.

    Hugging Face   config.json and safetensors, one file or many         hugging_face.py
    packed Int4    the same folder, some weights in four bits            packing.py
    Meta           params.json and consolidated.*.pth, one or eight      meta.py

Each is a table of names and a rule for which part of which stored tensor belongs where (layout.py,
parts.py); what moves the numbers is the same for all (reading.py).
"""

from .errors import CheckpointError
from .names import hf_name
from .reading import load
from .writing import save

__all__ = ["CheckpointError", "hf_name", "load", "save"]
