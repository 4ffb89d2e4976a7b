"""minillama4: Llama 4 written to be read, numerically equal to the real architecture."""

from .checkpoint import CheckpointError, load, save
from .config import Llama4Config, RopeScaling, VisionConfig
from .data.shipped import shipped
from .data.tokenizer import load_tokenizer
from .explore import trace
from .model import KVCache, Llama4
from .serve.generate import complete, generate
from .serve.static import StaticDecoder

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "KVCache",
    "Llama4",
    "Llama4Config",
    "RopeScaling",
    "StaticDecoder",
    "VisionConfig",
    "complete",
    "generate",
    "load",
    "load_tokenizer",
    "save",
    "shipped",
    "trace",
]
