"""The W&B dashboard of the mirrored cells, as code: a workspace and a report.

    python scripts/wandb_dashboard.py                                print both as JSON, no server
    python scripts/wandb_dashboard.py --save --entity my-team        create them on the server
    python scripts/wandb_dashboard.py --bench textvqa,gqa            benchmarks with a scatter plot

Needs the extra: pip install -c constraints.txt -e '.[wandb]'.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--project", default="visual-token-pruning")
    parser.add_argument("--entity", default="me", help="user or team the project belongs to")
    parser.add_argument("--bench", default="textvqa", help="comma-separated names")
    parser.add_argument("--save", action="store_true", help="create them on the server")
    options = parser.parse_args()
    try:
        from harness.loggers import dashboard
    except ImportError as error:
        print(f"error: {error}; pip install -c constraints.txt -e '.[wandb]'", file=sys.stderr)
        return 1
    benches = options.bench.split(",")
    if options.save:
        for address in dashboard.save(options.entity, options.project, benches):
            print(address)
        return 0
    print(json.dumps(dashboard.spec(options.entity, options.project, benches), indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
