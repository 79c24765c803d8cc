"""Compiles the hot modules: every module of mmlsm whose first line begins with `# cython:`.

`MMLSM_INTERPRETED=1 pip install .` compiles nothing and installs the same sources to run as plain Python.
What else there is to say about the package stands in pyproject.toml.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

INTERPRETED = os.environ.get("MMLSM_INTERPRETED", "") not in ("", "0")
OPTIMISE = [] if "-O" in os.environ.get("CFLAGS", "") else ["-O3"]
NO_COMPILER = """
mmlsm could not be compiled: {reason}
It takes a C compiler and Python's headers (Debian, Ubuntu: apt install gcc python3-dev). Or ask for interpreted mode:

    MMLSM_INTERPRETED=1 pip install .
"""


def hot_modules() -> list[Path]:
    """The modules to compile; `# cython:` on the first line both asks for it and sets the directives."""
    return [path for path in sorted(Path("mmlsm").rglob("*.py")) if path.open().readline().startswith("# cython:")]


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts)


class Compile(build_ext):
    """Runs Cython, then the C compiler; whatever stops either ends the installation, never a silent slow one."""

    def run(self) -> None:
        from setuptools._distutils.ccompiler import new_compiler
        from setuptools._distutils.sysconfig import customize_compiler

        compiler = new_compiler()
        customize_compiler(compiler)
        command = getattr(compiler, "compiler_so", ["cc"])[0]
        if shutil.which(command) is None:
            raise SystemExit(NO_COMPILER.format(reason=f"there is no C compiler {command!r}"))
        # Only here, and not when setup() is called: an sdist carries sources and no generated C.
        from Cython.Build import cythonize

        directory = Path(self.build_temp) / "c"
        workers = os.cpu_count() or 1
        try:
            made = cythonize(
                self.extensions, language_level=3, build_dir=str(directory), include_path=["."], nthreads=workers
            )
            for extension, compiled in zip(self.extensions, made, strict=True):
                assert extension.name == compiled.name
                extension.sources, extension.depends = compiled.sources, compiled.depends
            super().run()
        except Exception as error:
            raise SystemExit(NO_COMPILER.format(reason=error)) from error


class Copy(build_py):
    """Copies the sources, and forgets what an earlier build in the same folder left of modules that are gone."""

    def run(self) -> None:
        hot = set() if INTERPRETED else {path.with_suffix("") for path in hot_modules()}
        for path in Path(self.build_lib).glob("mmlsm/**/*.*"):
            built = path.relative_to(self.build_lib)
            if path.suffix != ".so" or built.with_name(built.name.split(".")[0]) not in hot:
                path.unlink()
        super().run()


setup(
    ext_modules=[]
    if INTERPRETED
    else [Extension(module_name(path), [str(path)], extra_compile_args=OPTIMISE) for path in hot_modules()],
    cmdclass={"build_ext": Compile, "build_py": Copy},
    options={"build": {"parallel": os.cpu_count() or 1}},
)
