"""What stands beside config.json and the weights, for those who serve a model.

generation_config.json                  which tokens end a text, and what vLLM asks there alone
tokenizer.json, tokenizer_config.json   text to ids and back, with begin-of-text in front
"""

from __future__ import annotations

import json
from pathlib import Path

import tokenizers
from tokenizers.processors import TemplateProcessing

from ..config import Llama4Config
from ..data.tokenizer import Tokenizer
from .errors import CheckpointError

GENERATION = "generation_config.json"


def write_generation(config: Llama4Config, file: Path, before: Path, stops: list[int]) -> None:
    """vLLM asks this file, and not config.json, whether NoPE layers have their temperature; where
    it says nothing, only texts made for over 32,768 tokens get one. And where the file is there,
    nobody asks config.json which tokens end a text. What else stood in ``before`` stays."""
    said = {}
    if before.exists():
        try:
            said = json.loads(before.read_text(encoding="utf-8-sig"))
        except (ValueError, OSError):
            said = None
        if not isinstance(said, dict):
            raise CheckpointError(f"{before} holds no settings in JSON: remove it first.")
    said["attn_temperature_tuning"] = config.temperature
    if stops:
        said["eos_token_id"] = stops
    file.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")


def write_tokenizer(
    tokenizer: Tokenizer, folder: Path, config: Llama4Config, stops: list[int]
) -> None:
    """Two files, as transformers and vLLM read them. Unlike ours, theirs make special tokens out of
    a text that names them, which chat templates count on."""
    names = {number: name for name, number in tokenizer.special.items()}
    cutter = tokenizers.Tokenizer.from_str(json.dumps(tokenizer.definition()))
    begin = names[tokenizer.begin]
    opens = [(begin, tokenizer.begin)]
    cutter.post_processor = TemplateProcessing(f"{begin} $A", f"{begin} $A {begin} $B", opens)
    cutter.save(str(folder / "tokenizer.json"))
    about = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": begin,
        "eos_token": tokenizer.decode(stops[:1]) or None,
        "pad_token": names[tokenizer.pad],
        "model_max_length": config.max_length,
    }
    text = json.dumps(about, indent=2, ensure_ascii=False)
    (folder / "tokenizer_config.json").write_text(text + "\n", encoding="utf-8")
