from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="natural2nanoscale",
    version="0.1.0",
    description="ControlNet over a frozen natural-image backbone, for segmentation of scarce FIB-SEM data",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="MIT",
    python_requires=">=3.11",
    packages=find_packages(include=["natural2nanoscale", "natural2nanoscale.*"]),
    package_data={
        "natural2nanoscale": ["assets/*", "embedded/*", "embedded/*/*"],
        "natural2nanoscale.diffusion": ["prompts.txt"],
        "natural2nanoscale.study": ["report.css"],
    },
    install_requires=[
        "torch>=2.10",
        "diffusers>=0.35",
        "transformers>=5",
        "safetensors",
        "numpy",
        "pillow",
        "tqdm",
    ],
    extras_require={
        "em": ["tifffile>=2025.5.10", "imagecodecs", "mrcfile", "h5py", "zarr>=3"],
        "test": [
            "pytest", "scikit-learn", "scipy", "tifffile>=2025.5.10", "imagecodecs", "mrcfile", "h5py", "zarr>=3",
        ],
        "full": ["onnx", "onnxruntime"],
        "bench": ["accelerate", "monai"],
    },
    entry_points={"console_scripts": ["natural2nanoscale = natural2nanoscale.__main__:main"]},
)
