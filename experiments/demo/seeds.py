"""Train the demo's cascade from several seeds and score what its stages make of 256 captions; write seeds.json and the
table in docs/results.md. Seeds that are in the record are left alone, and training goes on where it stopped.

Run:  python experiments/demo/seeds.py             (8 to 12 minutes a seed on two idle cores)
      python experiments/demo/seeds.py --report    (only rewrites the table)
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("JAX_NUM_CPU_DEVICES", "2")  # as `make demo`

import jax.numpy as jnp  # noqa: E402  (after the environment)
import numpy as np  # noqa: E402
from record import processor  # noqa: E402

from vdm_jax.evaluation.digits import scorer_of  # noqa: E402
from vdm_jax.runs.directory import load  # noqa: E402
from vdm_jax.versions import versions  # noqa: E402
from vdm_jax.video.arrays import resize, to_float, to_uint8  # noqa: E402

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
RECORD = HERE / "seeds.json"
CONFIG, COUNT, SEEDS = "captioned_digits", 256, (0, 1, 2)
STAGES = ("spatial_1", "spatial_2")


def scored(run: Path, seed: int) -> dict[str, dict[str, float]]:
    """Scores by stage of the videos of the first test captions; smaller videos are enlarged, as the scorer sees
    strokes of 64 pixels."""
    generator = load(run)
    scorer = scorer_of(generator.experiment)
    captions = tuple(example["caption"] for example in scorer.examples("test", COUNT))
    size, found = generator.experiment.data.size, {}
    result = generator(captions, seed=seed)
    for name in STAGES:
        videos = to_float(jnp.asarray(result.stages[name]))
        found[name] = scorer.score(np.asarray(to_uint8(resize(videos, size, size, "bilinear"))), captions).summary()
    return found


def train(seed: int) -> Path:
    """The run of a seed, trained to its end."""
    run = ROOT / "runs" / "demo_seeds" / f"seed_{seed}"
    command = [sys.executable, "-m", "vdm_jax.commands.main", "train", CONFIG, "--seed", str(seed), "--run", str(run)]
    subprocess.run(command, check=True, cwd=ROOT)
    return run


def main() -> None:
    """Train, score, record, report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report", action="store_true", help="only rewrite the table from the record")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds to train")
    options = parser.parse_args()
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {"seeds": {}}
    for seed in () if options.report else options.seeds:
        if str(seed) in record["seeds"]:
            continue
        record["seeds"][str(seed)] = {"scores": scored(train(seed), seed)}
        record |= {"config": CONFIG, "captions": COUNT, "date": datetime.date.today().isoformat(),
                   "machine": processor(), "cores": os.cpu_count(),
                   "versions": ", ".join(f"{name} {version}" for name, version in versions().items())}
        RECORD.write_text(json.dumps(record, indent=1) + "\n")
    sys.path.insert(0, str(ROOT / "experiments"))
    import readme_tables

    readme_tables.main()


if __name__ == "__main__":
    main()
