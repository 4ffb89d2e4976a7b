"""What Llama 4's vocabulary fixes besides its merges: special tokens and how text is pre-cut.

The real vocabulary has 200,000 byte-pair tokens and 2,048 special ones after them. Most special
ones are reserved; the fifteen in `ROLES` are used, and our small vocabulary has the same fifteen.

Source: meta-llama/llama-models, models/llama4/tokenizer.py.
"""

BASE_SIZE = 200_000
SPECIAL_SIZE = 2_048

ROLES = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|header_start|>",
    "<|header_end|>",
    "<|eom|>",
    "<|eot|>",
    "<|python_start|>",
    "<|python_end|>",
    "<|finetune_right_pad|>",
    "<|image_start|>",
    "<|image_end|>",
    "<|tile_x_separator|>",
    "<|tile_y_separator|>",
    "<|image|>",
    "<|patch|>",
)


def _reserved(family: str, first: int, last: int) -> list[str]:
    return [f"<|{family}reserved_special_token_{i}|>" for i in range(first, last + 1)]


def llama4_special_tokens() -> dict[str, int]:
    """Name -> id of all 2,048 special tokens of Llama 4, ids 200000 to 202047."""
    names = [
        "<|begin_of_text|>", "<|end_of_text|>",                                # 200000
        "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>",                  # 200002
        "<|header_start|>", "<|header_end|>", "<|eom|>", "<|eot|>", "<|step|>",  # 200005
        *_reserved("text_post_train_", 0, 5),                                  # 200010
        "<|python_start|>", "<|python_end|>", "<|finetune_right_pad|>",        # 200016
        *_reserved("text_post_train_", 8, 68),          # 200019; numbers 6 and 7 do not exist
        "<|image_start|>", "<|image_end|>",                                    # 200080
        *_reserved("vision_", 0, 1),                                           # 200082
        "<|tile_x_separator|>", "<|tile_y_separator|>",                        # 200084
        *_reserved("vision_", 2, 5),                                           # 200086
        "<|image|>",                                                           # 200090
        *_reserved("vision_", 6, 6),                                           # 200091
        "<|patch|>",                                                           # 200092
        *_reserved("vision_", 7, 1047),                                        # 200093
        *_reserved("reasoning_", 0, 7),                                        # 201134
        "<|reasoning_thinking_start|>", "<|reasoning_thinking_end|>",          # 201142
    ]  # fmt: skip
    names += _reserved("", 0, SPECIAL_SIZE - len(names) - 1)  # 201144 to the end
    return {name: BASE_SIZE + position for position, name in enumerate(names)}


def split_pattern(digits: str = r"\p{N}{1,3}") -> str:
    """The regular expression that cuts text before merging; with the default, o200k's own.

    A word keeps one character before it (mostly its space), may start with capitals and keeps a
    contraction such as 're; digits stand in groups; then symbols, line ends, other white space.
    """
    upper, lower = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
    before, contraction = r"[^\r\n\p{L}\p{N}]?", "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    return "|".join(
        [
            f"{before}{upper}*{lower}+{contraction}",
            f"{before}{upper}+{lower}*{contraction}",
            digits,
            r" ?[^\s\p{L}\p{N}]+[\r\n/]*",
            r"\s*[\r\n]+",
            r"\s+(?!\S)",  # spaces but the last, which belongs to the next word
            r"\s+",
        ]
    )
