"""Commands that compute nothing touch no accelerator, which a training next to them may hold."""

import gc
import json
import os
import subprocess
import sys

import pytest

import vdm_jax.commands.sizes as sizes
from vdm_jax.commands.main import RARELY, main

# A platform that does not exist: whatever looks for a device fails.
COMMAND = "import sys; from vdm_jax.commands.main import main; sys.exit(main(sys.argv[1:]))"


def run_without_devices(*arguments, code=COMMAND, **environment):
    """The standard output of a command, which must succeed."""
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, "JAX_PLATFORMS": "nonexistent", "COLUMNS": "400", **environment})
    assert done.returncode == 0, done.stderr
    assert "libtpu" not in done.stderr and "Traceback" not in done.stderr
    return done.stdout


def test_loading_the_shipped_configs_initialises_no_backend():
    run_without_devices(code="from vdm_jax.commands.configs import config_names, load_config\n"
                             "for name in config_names(): load_config(name)\n"
                             "from jax._src import xla_bridge\nassert not xla_bridge._backends")


def test_list_help_and_version_import_no_jax(trained):
    """Nor what takes long to import, so that they answer at once."""
    for arguments in (["list", "--runs", str(trained.parent)], ["--help"], ["--version"]):
        code = f"from vdm_jax.commands.main import main\nassert main({arguments!r}) == 0\nimport sys\n" \
               "assert not {'jax', 'flax', 'orbax', 'numpy', 'av'} & set(sys.modules)"
        shown = run_without_devices(code=code)
    assert "base (4/4)" in run_without_devices("list", "--runs", trained.parent) and shown


@pytest.mark.parametrize(("before", "after"), [((700, 10, 10), RARELY), ((10**6, 5, 5), (10**6, 5, 5))])
def test_commands_look_for_garbage_rarely_or_as_rarely_as_before(before, after, tmp_path, capsys):
    usual = gc.get_threshold()
    try:
        gc.set_threshold(*before)
        assert main(["list", "--runs", str(tmp_path)]) == 0 and "captioned_digits" in capsys.readouterr().out
        assert gc.get_threshold() == after
    finally:
        gc.set_threshold(*usual)


def test_a_changed_config_is_listed_as_it_is_now(monkeypatch):
    recorded = json.loads((sizes.config_folder() / sizes.SIZES).read_text())
    assert set(recorded["configs"]) == set(sizes.config_names())
    recorded["configs"]["captioned_digits"] = {"files": "of before", "stages": [["base", "1x1x1", 1]]}
    monkeypatch.setattr(sizes, "_recorded", lambda: recorded)
    assert [size.name for size in sizes.stage_sizes("captioned_digits")] == ["base", "spatial_1", "spatial_2"]
