"""Shared set-up of all tests: 8 virtual CPU devices, a compilation cache on disk, shapes checked at each call of the
package, and the --full switch."""

import ctypes
import gc
import os
from importlib import metadata
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")  # tests compile more than they compute
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")  # of commands that tests run, too
if metadata.version("jax").startswith("0.10."):  # its newer way of compiling fusions takes twice as long; 0.12 has one
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_cpu_use_fusion_emitters=false"
                               " --xla_cpu_parallel_codegen_split_count=1").strip()

import jax  # noqa: E402  (after the environment)
import jaxtyping  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from tests import shapes  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
cache = os.environ.get("JAX_COMPILATION_CACHE_DIR") or str(Path.home() / ".cache" / "vdm_jax" / "compiled_tests")
jax.config.update("jax_compilation_cache_dir", cache)

# Every room, before any test imports it; not `vdm_jax.errors`, whose exceptions name the function that raises them.
PACKAGE = Path(__file__).parent.parent / "vdm_jax"
# Whole rooms, but for the input pipeline, whose functions worker processes get by pickle.
CHECKED = [f"vdm_jax.{room.name}" for room in PACKAGE.iterdir() if room.is_dir() and room.name != "data"]
CHECKED += [f"vdm_jax.data.{file.stem}" for file in (PACKAGE / "data").glob("*.py") if file.stem != "pipeline"]
jaxtyping.jaxtyped = shapes.jaxtyped_where_arrays_are
install_import_hook(CHECKED, f"{shapes.__name__}.checked")


MOST = float(os.environ.get("VDM_JAX_TEST_GIB", "4")) * 2**30  # bytes that a process of tests keeps from file to file


# Collect garbage rarely, while tests are collected too: JAX's caches hold millions of objects that stay, and looking
# through them again and again takes a tenth of the processor's time.
gc.set_threshold(100_000, 50, 1000)


def pytest_collection_finish():
    gc.collect()
    gc.freeze()


def pytest_runtest_teardown(item, nextitem):
    """After a file, drop what is compiled where the process has grown large: nothing else frees it."""
    if nextitem is not None and nextitem.path != item.path and resident() > MOST:
        jax.clear_caches()
        gc.collect()
        if hasattr(ctypes.CDLL(None), "malloc_trim"):
            ctypes.CDLL(None).malloc_trim(0)


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="also run slow tests and comparisons with other libraries")


# Files that take longest start first, so that no process of tests ends long after the others.
LONGEST = (
    "multiprocess/test_training.py", "training/test_loop.py", "commands/test_train.py", "training/test_distillation.py",
    "parallel/test_table.py", "parallel/test_equality.py", "experiments/test_control_digits.py",
    "test_animate_anyone.py", "test_dream_pose.py", "test_follow_your_pose.py", "test_make_your_video.py",
    "test_magic_video.py", "test_mcdiff.py",
    "commands/test_evaluate_metrics.py", "commands/test_sample.py", "training/test_step.py",
    "commands/test_released.py",
    "generation/editing/test_rerender.py", "generation/editing/test_control_video.py", "pipelines/test_pipelines.py",
    "commands/test_latent.py", "digits/test_scorer.py", "test_notebooks.py", "generation/released/test_models.py",
    "training/test_make_a_video.py", "networks/test_unet_control.py", "networks/test_latent_patterns.py",
    "training/test_latent.py", "commands/test_distil.py", "experiments/test_scaling.py", "attention/test_attend.py",
    "training/test_meshes.py", "networks/test_resampling.py", "generation/test_extension.py", "networks/test_unet.py",
    "training/test_step_contexts.py", "diffusion/test_samplers.py", "generation/test_generator.py",
    "attention/contexts/test_contexts.py", "commands/test_embeddings.py", "commands/test_compile.py",
    "commands/test_prepare.py", "training/test_lora.py", "training/test_autoencoder_loop.py",
    "commands/test_train_folder.py", "networks/test_extra_tokens.py")


def pytest_configure(config):
    config.addinivalue_line("markers", "full: slow, or needs a peer library; runs with --full (make test-full)")
    config.option.loadscopereorder = False  # else xdist begins with the files of most tests, which are short


def pytest_collection_modifyitems(config, items):
    if hasattr(config, "workerinput"):  # one of several processes
        places = {Path(__file__).parent / name: place for place, name in enumerate(LONGEST)}
        items.sort(key=lambda item: places.get(item.path, len(LONGEST)))
    if config.getoption("--full"):
        return
    for item in items:
        if item.get_closest_marker("full") is not None:  # keywords hold names of test cases too
            item.add_marker(pytest.mark.skip(reason="runs with --full (make test-full)"))
