"""The small files that come with the repository: trained models, vocabulary, recorded runs."""

from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "data"


def shipped(name: str) -> Path:
    """The path of ``data/<name>``; FileNotFoundError says what there is."""
    path = FOLDER / name
    if path.exists():
        return path
    if not FOLDER.is_dir():
        raise FileNotFoundError(
            f"{FOLDER} is not there: minillama4 has to be installed from a clone of its "
            "repository (pip install -e .), which holds the data beside the library."
        )
    there = ", ".join(sorted(p.name for p in FOLDER.iterdir() if not p.name.startswith(".")))
    raise FileNotFoundError(f"Nothing called {name!r} is shipped; data/ holds {there}.")
