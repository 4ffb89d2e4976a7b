"""The colours of the series: one per expert, the same in every figure and view.

Sixteen colours, at least 10 apart in CAM02-UCS for normal vision and three kinds of colour
blindness, with dark text readable on each. No palette can do that for 128 experts: there the colour
names the column of an 8 × 16 grid of positions. The number is printed wherever a colour is used.
"""

PALETTE = (
    *("#04cfe9", "#e44100", "#fbf501", "#696cf4", "#a47684", "#efaa83", "#dcfaf4", "#b6c9c6"),
    *("#b6b601", "#8391b5", "#d07865", "#6c9efe", "#99fbb4", "#1c902f", "#aaa9bb", "#c3dc5a"),
)
INK = "#111111"  # text on any colour of the palette

# cividis in steps, dark to light: how much, where a colour cannot say who
SHADES = (
    *("#00224e", "#013271", "#2f426d", "#48526c", "#5e636f", "#727374"),
    *("#878478", "#9d9576", "#b6a96f", "#cebc63", "#e7d150", "#fee838"),
)


def expert_colour(expert: int, experts: int) -> str:
    """Hex colour of an expert; with more than sixteen, that of its column in rows of sixteen."""
    if not 0 <= expert < experts:
        raise ValueError(f"expert {expert} is not among 0 to {experts - 1}")
    return PALETTE[expert % len(PALETTE)]
