"""`spr doctor`: what it says of packages that are not installed."""

import subprocess
import sys

# None makes Python raise the same error as for a package that is not installed.
WITHOUT_MODELS = """
import sys
sys.modules |= {"torch": None, "transformers": None}
from spr.report.doctor import diagnose
print(*diagnose(), sep="\\n")
"""


def test_on_a_bare_install_it_names_the_extra_to_install():
    result = subprocess.run([sys.executable, "-c", WITHOUT_MODELS], capture_output=True, text=True, check=True)
    hint = "not installed: pip install 'spatial-preference-rewarding[models]'"
    lines = result.stdout.splitlines()
    assert next(line for line in lines if line.startswith("Model families ")).endswith("ferret, cogvlm")
    assert f"  PyTorch {hint}" in lines
    assert "not available" not in result.stdout
