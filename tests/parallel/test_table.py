"""The sharding of every shipped config against the tables in `golden/`.

After a change that is meant, `python -m tests.parallel.test_table` writes them anew (on 8 devices), and
the counts in `configs/sizes.json`.
"""

from __future__ import annotations

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.parallel.sharding_table import sharding_table
from vdm_jax.commands.configs import config_names, load_config
from vdm_jax.commands.sizes import write_sizes
from vdm_jax.parallel.mesh import MeshSpec, make_mesh
from vdm_jax.stages.parameters import initial_params

GOLDEN = Path(__file__).parent / "golden"
MESH = MeshSpec(data=1, fsdp=2, tensor=2, context=2)


TRACED = {}  # parameters by network: configs have some in common


def tables(name: str) -> str:
    """The tables of all stages of a shipped config."""
    mesh, texts = make_mesh(MESH), []
    for stage in load_config(name).stages:
        network = repr(stage.network)
        if network not in TRACED:
            TRACED[network] = jax.eval_shape(lambda key, stage=stage: initial_params(stage, key), jax.random.key(0))
        texts.append(f"stage {stage.name}\n{sharding_table(TRACED[network], mesh)}")
    return "\n".join(texts)


def golden_file(name: str) -> Path:
    """Where the tables of a config are kept."""
    return GOLDEN / f"{name.replace('/', '.')}.txt"


# Open latent models have some 1,500 tensors each, which takes seconds to trace.
SLOW = ("animate_anyone", "animatediff", "dream_pose", "follow_your_pose", "lvdm", "magic_video", "make_your_video",
        "modelscope", "sparse_ctrl", "stable_diffusion", "svd", "tune_a_video", "video_ldm")


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.full) if name.startswith(SLOW) else name
                                  for name in config_names()])
def test_parameters_of_shipped_configs_live_where_the_golden_table_says(name):
    assert golden_file(name).is_file(), f"no table of {name}; write it with python -m tests.parallel.test_table"
    assert tables(name) == golden_file(name).read_text()


def test_no_table_is_of_a_config_that_is_gone():
    assert {path.name for path in GOLDEN.iterdir()} == {golden_file(name).name for name in config_names()}


def test_a_line_per_distinct_path_axes_and_partition():
    mesh = make_mesh(MeshSpec(data=2, fsdp=2, tensor=2))
    params = {f"down_0_{i}": {"residual": {"conv_in": {"kernel": np.zeros((1, 3, 3, 8, width)), "bias": jnp.zeros(8)}}}
              for i, width in enumerate((8, 8, 5))}
    assert sharding_table(params, mesh) == """\
data=2 x fsdp=2 x tensor=2 x context=1: 1,536 parameters, 402 per device (2.094 of an even share)
block/residual/conv_in/kernel  embed mlp  fsdp tensor
block/residual/conv_in/kernel  embed mlp  tensor+fsdp -
*/bias                         -          -
"""


if __name__ == "__main__":
    jax.config.update("jax_num_cpu_devices", 8)
    GOLDEN.mkdir(exist_ok=True)
    for config in config_names():
        golden_file(config).write_text(tables(config))
    write_sizes()
