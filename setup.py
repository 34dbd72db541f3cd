# SPDX-License-Identifier: MIT
"""Describes the one C extension; everything else about the package is in pyproject.toml.

`emulator.memory._native` gives whole, ordered loads and stores on guest memory. It uses only the
limited API of CPython 3.11, so one build (abi3) serves every later Python.
"""

from setuptools import Extension, setup

LIMITED_API = "0x030B0000"  # CPython 3.11: the first limited API with the buffer protocol

setup(
    ext_modules=[
        Extension(
            "emulator.memory._native",
            sources=["emulator/memory/_native.c"],
            define_macros=[("Py_LIMITED_API", LIMITED_API)],
            extra_compile_args=["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror=implicit"],
            py_limited_api=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
