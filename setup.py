"""Extensions, their directives and the debug switch; nothing that pyproject.toml can say.

DAYBOOK_DEBUG=1    bounds checks, -O1 -g, LEDGER_DEBUG
DAYBOOK_ASAN=1     AddressSanitizer and UBSan in every extension (run with the libasan preloaded)
DAYBOOK_ONLY=a,b   build only these modules, by their dotted names (for work on one room)
"""

import os
import subprocess
import sys
import sysconfig
import tempfile
from glob import glob
from pathlib import Path

from Cython.Build import cythonize
from Cython.Compiler import Options
from setuptools import Extension, setup

ROOT = Path(__file__).resolve().parent
os.chdir(ROOT)
sys.path.insert(0, str(ROOT / "ledger"))
import _generate  # noqa: E402

_generate.generate()

PROTOS = sorted(glob("proto/loyalty/ledger/v1/*.proto"))


def generate_protobuf() -> None:
    """Generate server/_pb from the protos, when it is older.

    Python finds the modules below server/_pb, so protoc sees the protos, and their imports of each other, at that place.
    """
    from importlib.resources import files

    from grpc_tools import protoc

    made = [ROOT / "server" / "_pb" / Path(proto).relative_to("proto").with_name(f"{Path(proto).stem}_pb2_grpc.py") for proto in PROTOS]
    newest = max((ROOT / proto).stat().st_mtime for proto in PROTOS)
    if all(path.exists() and path.stat().st_mtime >= newest for path in made):
        return
    (ROOT / "server" / "_pb").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        placed = []
        for proto in PROTOS:
            placed.append(Path(folder) / "server" / "_pb" / Path(proto).relative_to("proto"))
            placed[-1].parent.mkdir(parents=True, exist_ok=True)
            placed[-1].write_text(Path(proto).read_text().replace('import "loyalty/', 'import "server/_pb/loyalty/'))
        code = protoc.main([
            "protoc", f"--proto_path={folder}", f"--proto_path={files('grpc_tools') / '_proto'}",
            f"--proto_path={Path(__import__('google.rpc', fromlist=['x']).__path__[0]).parents[1]}",
            f"--python_out={ROOT}", f"--pyi_out={ROOT}", f"--grpc_python_out={ROOT}", *map(str, placed),
        ])
    if code:
        raise SystemExit("protoc failed")


generate_protobuf()

DEBUG = os.environ.get("DAYBOOK_DEBUG") == "1"
ASAN = os.environ.get("DAYBOOK_ASAN") == "1"
ONLY = set(filter(None, os.environ.get("DAYBOOK_ONLY", "").split(",")))


def string_strategies() -> list[str]:
    """Small memory is set and copied word by word: GCC's default for x86-64 is `rep stos`, which takes longer to start than these take."""
    wanted = ["-mmemset-strategy=unrolled_loop:256:noalign,libcall:-1:noalign",
              "-mmemcpy-strategy=unrolled_loop:128:noalign,libcall:-1:noalign"]
    compiler = (sysconfig.get_config_var("CC") or "cc").split()
    asked = subprocess.run([*compiler, *wanted, "-E", "-x", "c", os.devnull], capture_output=True)
    return wanted if asked.returncode == 0 else []  # another compiler, or another processor


Options.warning_errors = True
Options.docstrings = True

compile_args = ["-std=gnu11", "-Wno-unused-function", "-Wno-sign-compare", "-Wno-unreachable-code", "-fno-strict-aliasing"]
compile_args += ["-O1", "-g", "-DLEDGER_DEBUG=1"] if DEBUG else ["-O2", "-g1", "-DNDEBUG", *string_strategies()]
link_args: list[str] = []
if ASAN:
    compile_args += ["-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-fno-omit-frame-pointer", "-g"]
    link_args += ["-fsanitize=address,undefined"]

HEADERS = [path for pattern in ("ledger/*.pxd", "ledger/*.pxi", "ledger/*.h", "server/*.pxd", "server/*.pxi", "bench/*.pxd")
           for path in glob(pattern)]

MODULES = {  # module: libraries
    "ledger._core": ["crypto"],
    "ledger._tail": ["crypto"],
    "ledger._journal": ["lmdb"],
    "ledger._ids": ["crypto", "lmdb"],
    "ledger._engine": ["crypto", "lmdb"],
    "ledger._feed": ["crypto"],
    "ledger._snapshot": ["crypto"],
    "ledger._verifier": [],
    "ledger._simulator": ["crypto"],
    "ledger._backtest": ["crypto"],
    "ledger._follower": ["crypto"],
    "ledger._index": [],
    "ledger._past": ["crypto"],
    "ledger._columns": [],
    "ledger._probe": ["crypto"],
    "server._wire": ["crypto"],
    "server._call": [],
    "server._entries": ["crypto"],
    "server._local": ["crypto"],
    "server._reader": ["crypto", "lmdb"],
    "server._http2": ["nghttp2"],
    "server._transport": [],
    "bench._load": ["nghttp2"],
    "bench._flush": [],
}

UNROLLED = {"ledger._core"}  # -O3 makes an earn 6 % shorter; elsewhere it makes nothing shorter that was measured

extensions = [
    Extension(name, [name.replace(".", "/") + ".pyx"], libraries=libraries, include_dirs=["ledger", "server"],
              depends=HEADERS, extra_compile_args=compile_args + (["-O3"] if name in UNROLLED and not DEBUG else []),
              extra_link_args=link_args)
    for name, libraries in MODULES.items()
    if (not ONLY or name in ONLY) and Path(name.replace(".", "/") + ".pyx").exists()
]

setup(
    ext_modules=cythonize(
        extensions,
        nthreads=0 if len(extensions) < 2 else 2,
        annotate=os.environ.get("DAYBOOK_ANNOTATE") == "1",
        compiler_directives={
            "language_level": 3,
            "boundscheck": DEBUG,
            "wraparound": DEBUG,
            "initializedcheck": DEBUG,
            "cdivision": True,
            "embedsignature": True,
            "freethreading_compatible": False,
        },
    )
)
