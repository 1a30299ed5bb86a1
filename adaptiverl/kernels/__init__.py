"""In the source tree the kernels are a room of their own beside the package; a wheel has them here.

So `import adaptiverl` finds them in a clone too, installed or not.
"""

from __future__ import annotations

from pathlib import Path

__path__ = [str(Path(__file__).resolve().parents[2] / "kernels")]
