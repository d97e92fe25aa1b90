"""`make audit`: findings fail, and where nobody can be asked it says so instead of "none found"."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
KNOWN = {"name": "a", "version": "1", "vulns": []}
BAD = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1", "fix_versions": ["3"]}]}
STRANGE = {"name": "c", "skip_reason": "Dependency not found and could not be audited: c (1)"}


def audit(folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """.ci/audit in a folder with one lock file and a pip-audit of ours."""
    (folder / "requirements.lock").write_text("a==1\n")
    (folder / "pip_audit.py").write_text(program)
    return subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "audit")], cwd=folder, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(folder)},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("packages", "code", "sentence"),
    [
        ([KNOWN], 0, "requirements.lock: 0 known vulnerabilities in 1 packages\n"),
        ([KNOWN, STRANGE], 0, "0 known vulnerabilities in 1 packages; 1 others are not in the database"),
        ([KNOWN, BAD], 1, "requirements.lock: b 2: CVE-1 (fixed in 3)\nrequirements.lock: 1 known vulnerabilities"),
        ([STRANGE, STRANGE], 0, "requirements.lock: NOT audited, the database of vulnerabilities cannot be reached"),
    ],
)
def test_what_was_found_is_said(packages, code, sentence, tmp_path):
    result = audit(tmp_path, f"print({json.dumps({'dependencies': packages})!r})")
    assert result.returncode == code, result.stderr
    assert result.stdout.startswith(sentence) or sentence in result.stdout


@pytest.mark.parametrize(
    ("message", "code", "sentence"),
    [
        ("ERROR: ConnectionError: Max retries exceeded", 0, "NOT audited, the database of vulnerabilities cannot be"),
        ("ERROR: hashes are missing", 1, "NOT audited, pip-audit failed: ERROR: hashes are missing"),
    ],
)
def test_a_failure_is_not_taken_for_a_clean_result(message, code, sentence, tmp_path):
    result = audit(tmp_path, f"import sys; print({message!r}, file=sys.stderr); sys.exit(1)")
    assert result.returncode == code, result.stderr
    assert sentence in result.stdout
