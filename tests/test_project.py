"""The promises of README.md, pyproject.toml, environment.yml and start.py to one another."""

import ast
import importlib.util
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from notebooks.execute import MACHINE_PATH

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # comes with pytest there

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def load_start():
    spec = importlib.util.spec_from_file_location("start", ROOT / "start.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


START = load_start()


# Dependencies ------------------------------------------------------------------------------------

REQUIREMENTS = [*PROJECT["dependencies"], *EXTRAS["notebooks"], *EXTRAS["dev"], *EXTRAS["gguf"]]


@pytest.mark.parametrize("line", REQUIREMENTS, ids=lambda line: Requirement(line).name)
def test_dependency_is_bounded_installed_and_within_its_range(line):
    requirement = Requirement(line)
    assert any(part.operator == "<" for part in requirement.specifier), "no upper bound"
    assert metadata.version(requirement.name) in requirement.specifier
    assert importlib.util.find_spec(requirement.name.replace("-", "_"))


def test_start_installs_a_torch_within_the_projects_range():
    pinned, ranged = Requirement(START.TORCH), Requirement(PROJECT["dependencies"][0])
    (pin,) = pinned.specifier
    assert (pinned.name, ranged.name, pin.operator) == ("torch", "torch", "==")
    assert pin.version in ranged.specifier


def test_conda_takes_everything_but_python_and_pip_from_pyproject():
    text = (ROOT / "environment.yml").read_text()
    entries = re.findall(r"^ +- (.+?)$", text, re.M)
    channel, python, *rest = entries
    assert channel == "conda-forge"
    assert python.split("=")[1] in ("3.10", "3.11", "3.12")
    extra_index = f"--extra-index-url {START.CPU_INDEX}"
    assert rest == ["pip", "pip:", extra_index, "-e .[notebooks,dev,gguf]"]
    assert {"notebooks", "dev", "gguf"} <= EXTRAS.keys()


# start.py ----------------------------------------------------------------------------------------


def test_start_needs_only_the_standard_library():
    nodes = list(ast.walk(ast.parse((ROOT / "start.py").read_text())))
    names = [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module for node in nodes if isinstance(node, ast.ImportFrom)]
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


def test_start_can_at_least_be_read_by_the_oldest_python_that_it_turns_away():
    ast.parse((ROOT / "start.py").read_text(), feature_version=(3, 7))


def test_extras_that_start_installs_exist():
    source = (ROOT / "start.py").read_text()
    lists = re.findall(r"set_up\((\[.*?\])", source)
    assert lists
    assert {name for text in lists for name in ast.literal_eval(text)} <= EXTRAS.keys()


def test_an_interrupted_set_up_starts_anew_and_a_finished_one_is_left_alone(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("version 1")
    env, calls, fails = tmp_path / ".venv", [], set()

    def pip(what, *args, may_fail=False):
        calls.append(args[-1].replace(str(tmp_path), ""))
        if fails:
            raise KeyboardInterrupt
        return True

    def create(folder, with_pip):
        calls.append("new environment")

    monkeypatch.setattr(START, "ROOT", tmp_path)
    monkeypatch.setattr(START, "ENV", env)
    monkeypatch.setattr(START, "STATE", env / "start.txt")
    monkeypatch.setattr(START, "pip", pip)
    monkeypatch.setattr(START.venv, "create", create)

    def set_up(*extras, gpu=False):
        calls.clear()
        START.set_up(list(extras), gpu)
        return calls

    fails.add("network")
    with pytest.raises(KeyboardInterrupt):
        set_up("notebooks")
    fails.clear()
    (env / "half a package").touch()
    assert set_up("notebooks") == ["new environment", START.TORCH, "[notebooks]"]
    assert not (env / "half a package").exists()
    assert set_up("notebooks") == []
    assert set_up("dev") == [START.TORCH, "[dev,notebooks]"]  # adds, and forgets nothing
    assert set_up("notebooks") == []
    (tmp_path / "pyproject.toml").write_text("version 2")
    assert set_up("dev") == [START.TORCH, "[dev,notebooks]"]
    assert set_up("dev", gpu=True)[0] == "new environment"
    assert set_up("dev") == []  # the CUDA build serves here too

    (env / "start.txt").unlink()
    with pytest.raises(SystemExit, match="did not make"):
        set_up("dev")


@pytest.mark.parametrize("sees_gpu", [True, False])
def test_gpu_sets_nothing_up_where_this_python_sees_one(sees_gpu, monkeypatch):
    calls, set_up = [], []

    def call(command, **_):
        calls.append([str(word) for word in command])
        return 0 if sees_gpu or "-c" not in command else 1

    monkeypatch.setattr(START.shutil, "which", lambda name: name)
    monkeypatch.setattr(START.subprocess, "call", call)
    monkeypatch.setattr(START, "set_up", lambda extras, gpu: set_up.append(extras))
    python = sys.executable if sees_gpu else str(START.PYTHON)
    for line in (["gpu", "--json", "my.json"], ["gpu", "--tests", "-x"]):
        monkeypatch.setattr(sys, "argv", ["start.py", *line])
        with pytest.raises(SystemExit, match="0"):
            START.main()
    looked, measured, _, tested = calls
    assert looked[:2] == [sys.executable, "-c"] and "minillama4" in looked[2]
    assert measured == [python, "-m", "tests.bench.gpu", "--json", "my.json"]
    assert tested[:4] == [python, "-m", "pytest", "--noconftest"] and tested[-1] == "-x"
    assert all(Path(file).is_file() for file in tested[4:-1]) and len(tested) > 8
    assert len(set_up) == (0 if sees_gpu else 2)


def test_what_start_runs_is_there():
    assert (ROOT / START.FIRST_NOTEBOOK).is_file()
    assert importlib.util.find_spec("tests.bench")
    for folder in ("browser", "llamacpp"):
        assert list((ROOT / "tests" / folder).glob("test_*.py"))


# README and CI -----------------------------------------------------------------------------------


def fenced_commands():
    blocks = re.findall(r"^```\w*\n(.*?)^```", README, re.M | re.S)
    return [line.strip() for block in blocks for line in block.splitlines() if line.strip()]


def test_readme_names_only_commands_that_exist():
    pattern = r"python3? start\.py (\w+)"
    fenced = [m[1] for m in map(re.compile(pattern).match, fenced_commands()) if m]
    assert {"lab", "test"} <= set(fenced)
    assert set(re.findall(pattern, README)) <= START.COMMANDS.keys()


def test_ci_runs_the_readmes_test_command_and_nothing_else():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    commands = [line for line in lines if "start.py" in line]
    assert commands == lines[-1:] == ["exec python3 start.py test"]


def test_what_readme_points_to_is_there():
    targets = re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", README)
    targets += re.findall(r"notebooks/[\w/]+\.ipynb", README)
    missing = [target for target in targets if not (ROOT / target).exists()]
    assert not missing


# What must not be in the repository --------------------------------------------------------------


def repository_texts():
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (FileNotFoundError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    for name in filter(None, listing.stdout.split("\0")):
        path = ROOT / name
        if path.suffix == ".ipynb" or not path.is_file():
            continue  # notebooks hold pictures in base64; test_notebooks.py looks at their texts
        try:
            yield name, path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue


def test_no_file_names_a_folder_of_one_machine():
    found = {name: MACHINE_PATH.findall(text) for name, text in repository_texts()}
    assert not {name: paths for name, paths in found.items() if paths}


def test_no_file_sends_pip_to_a_private_index():
    public = ("https://pypi.org/", "https://download.pytorch.org/whl/")
    index = re.compile(r"index[-_]url[\s=\"':,]+(https?://[^\s\"']+)")
    found = {url for _, text in repository_texts() for url in index.findall(text)}
    assert not [url for url in found if not url.startswith(public)]
