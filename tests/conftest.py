"""Settings for all tests: fast compilation on the CPU, since tests compute little."""

import ctypes
import os

os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_backend_optimization_level=0"
os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax  # noqa: E402
import pytest  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def compilation_cache(tmp_path_factory):
    """Share a compilation cache with the processes that tests start: many train the same stage.

    The cache is new unless JAX_COMPILATION_CACHE_DIR names a folder.
    """
    folder = os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(tmp_path_factory.mktemp("jax")))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture(scope="module", autouse=True)
def free_compiler_memory():
    """Free compiled programs after each module. glibc would keep gigabytes over a whole run."""
    yield
    jax.clear_caches()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)
