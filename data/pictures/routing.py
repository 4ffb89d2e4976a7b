"""Draws routing.png, the README's picture: python data/pictures/routing.py"""

from pathlib import Path

import matplotlib.pyplot as plt
import torch

import minillama4 as ml4
from minillama4.explore import plot_routing

LINES = ["    return self.name", "The value of the name", "12+30=42", " la casa es grande"]


def main() -> None:
    torch.set_num_threads(1)
    model = ml4.load(ml4.shipped("mini_scout"), dtype=torch.float32)
    tokenizer = ml4.load_tokenizer()
    ids = tokenizer.encode("\n".join(LINES))
    with ml4.trace(model) as seen, torch.no_grad():
        model(torch.tensor([[tokenizer.begin, *ids]]))
    title = "Each layer chooses its own expert for each token"
    plot_routing(seen, ["(begin)", *tokenizer.pieces(ids)], title=title)
    plt.savefig(Path(__file__).with_suffix(".png"), dpi=130)


if __name__ == "__main__":
    main()
