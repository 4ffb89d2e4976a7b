"""Explorers answer in JavaScript: their scripts run by node, to compare with Python."""

import json
import shutil
import subprocess

import pytest


def in_node(code: str, expression: str, cases: list) -> list:
    """What a JavaScript ``expression`` of ``x``, behind ``code``, gives for each case."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("needs node; the browser tests compare the same numbers")
    code += f"const cases = {json.dumps(cases)};\n"
    code += f"console.log(JSON.stringify(cases.map((x) => ({expression}))));"
    command = [node, "--input-type=module", "-"]
    run = subprocess.run(command, input=code, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)
