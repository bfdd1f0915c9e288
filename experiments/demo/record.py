"""Run `make demo` from the beginning in a fresh clone and record its scores and its time.

Run:  python experiments/demo/record.py            (needs Python 3.11, make and git; 10 to 15 minutes)
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def processor() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def main() -> None:
    """Clone, run, copy the evaluation here with the time it took. Nothing is cached from earlier runs."""
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "vdm_jax"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        environment = {**os.environ, "VDM_JAX_DATA": f"{folder}/data",
                       "JAX_COMPILATION_CACHE_DIR": f"{folder}/compiled"}
        start = time.monotonic()
        subprocess.run(["make", "demo"], cwd=clone, env=environment, check=True)
        minutes = (time.monotonic() - start) / 60
        run = clone / "runs" / "captioned_digits"
        record = json.loads((run / "evaluation.json").read_text())
        record |= {"minutes": minutes, "machine": processor(), "cores": os.cpu_count(), "command": "make demo",
                   "date": datetime.date.today().isoformat()}
        here = Path(__file__).parent
        (here / "evaluation.json").write_text(json.dumps(record, indent=1) + "\n")
        for name in ("demo.gif", "demo.png"):
            (here / name).write_bytes((run / name).read_bytes())
    sys.path.insert(0, str(ROOT / "experiments"))
    import readme_tables

    readme_tables.main()


if __name__ == "__main__":
    main()
