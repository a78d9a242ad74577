"""Where every process begins: are the packages ours?

Their names are the folders' (``recipes``, ``reports``, ...), and others have packages of these names too: torchtune's
wheel has a ``recipes`` that raises as soon as it is imported. So nothing of ours is imported here at first.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

HOME = Path(__file__).resolve().parents[2]
PACKAGES = ("recipes", "harness", "baselines", "reports")


def shadowed() -> str | None:
    """A sentence about the first of our packages that Python finds elsewhere."""
    for name in PACKAGES:
        spec = find_spec(name)
        places = [Path(place).resolve() for place in spec.submodule_search_locations or ()] if spec else []
        if places != [HOME / name]:
            found = places[0] if places else (spec.origin if spec else None)
            return (
                f"the package '{name}' is looked up in {found}, not in {HOME / name}: another package of that name "
                "shadows ours. Install repa-bench into an environment of its own, or take that one away (it comes from "
                "the current folder, PYTHONPATH, or another wheel)."
            )
    return None


def main() -> None:
    """Entry point of ``repa-bench`` and of ``python -m harness.cli``."""
    if sentence := shadowed():
        print(f"Error: {sentence}", file=sys.stderr)
        sys.exit(2)
    from harness.cli.app import main as run

    run()
