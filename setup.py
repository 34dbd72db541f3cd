# SPDX-License-Identifier: MIT
"""Describes the C extensions; everything else about the package is in pyproject.toml.

`emulator.memory._native` gives whole, ordered loads and stores on guest memory;
`emulator.ring._native` reads and writes plain packets, one or many in a call. They use only the
limited API of CPython 3.11, so one build (abi3) serves every later Python.
"""

from setuptools import Extension, setup

LIMITED_API = "0x030B0000"  # CPython 3.11: the first limited API with the buffer protocol


def extension(name: str) -> Extension:
    """Describe the extension whose one source lies where its name says."""
    return Extension(
        name,
        sources=[f"{name.replace('.', '/')}.c"],
        depends=["emulator/memory/_native_view.h"],
        define_macros=[("Py_LIMITED_API", LIMITED_API)],
        extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror=implicit"],
        py_limited_api=True,
    )


setup(
    ext_modules=[extension("emulator.memory._native"), extension("emulator.ring._native")],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
