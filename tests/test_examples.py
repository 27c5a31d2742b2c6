"""Every example runs, as a reader would run it, with a budget that only shows that it does."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
if not EXAMPLES:
    pytest.skip("the examples are not beside the tests", allow_module_level=True)

#: What an example leaves in the folder that it is run in.
WRITES = {
    "audio_stream.py": "audio_stream.wav",
    "digits.py": "digits.png",
    "forecasting.py": "forecasting.png",
    "gradient_flow.py": "gradient_flow.png",
    "long_memory.py": "long_memory.png",
    "name_language.py": "name_language.png",
    "optimizers.py": "optimizers.png",
    "part_of_speech.py": "part_of_speech.png",
    "perceptron.py": "perceptron.png",
    "phonemes.py": "phonemes.png",
    "sentiment.py": "sentiment.png",
    "toy_self_attention.py": "toy_self_attention.png",
    "translation.py": "translation.png",
    "underfit_overfit.py": "underfit_overfit.png",
    "word_vectors.py": "word_vectors.png",
}


def run(path, folder, *options):
    environment = os.environ | {"FASTSEQ_QUICK": "1", "MPLBACKEND": "Agg", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, str(path), *options], cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False)


@pytest.fixture(autouse=True)
def packages(request):
    """An example that imports what is not installed is passed over."""
    text = request.getfixturevalue("path").read_text()
    names = set(re.findall(r"^(?:import|from) (\w+)", text, re.M)) - {path.stem for path in EXAMPLES}
    for name in sorted(names | ({"tokenizers"} if "SubwordVocabulary" in text else set())):
        pytest.importorskip(name)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_runs(path, tmp_path):
    result = run(path, tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout
    if path.name in WRITES and "no picture" not in result.stdout:
        assert (tmp_path / WRITES[path.name]).stat().st_size > 1000


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_example_says_what_it_does(path, tmp_path):
    result = run(path, tmp_path, "--help")
    assert result.returncode == 0, result.stderr
    assert any(option in result.stdout for option in ("--steps", "--epochs", "--order"))
