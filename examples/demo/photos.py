"""Photographs: enlarge, blur, augment, reduce to thumbnails.

Every photograph is a chain of tasks: `enlarge` → `blur` → several `variant`s. What passes between them are
images of several megabytes; they stay in shared memory and each task reads them in place. The driver
never touches a large image, only the thumbnails at the end.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from PIL import Image, ImageFilter

import moray
from examples.demo.job import Advance, Job, advance_as_ready

if TYPE_CHECKING:
    from numpy.typing import NDArray

Pixels: TypeAlias = "NDArray[np.uint8]"

#: Photographs that scikit-image's wheel contains.
NAMES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "retina.jpg",
    "rocket.jpg",
)
MEGAPIXELS = 3.0
BLUR_RADIUS = 3.0
VARIANTS = 3
THUMBNAIL_PIXELS = 160


def photographs() -> list[Path]:
    """The photographs, found without importing scikit-image."""
    spec = importlib.util.find_spec("skimage")
    folders = spec.submodule_search_locations if spec else None
    paths = [Path(folder) / "data" / name for folder in folders or [] for name in NAMES]
    found = [path for path in paths if path.exists()]
    if not found:
        raise FileNotFoundError("no photographs: the demo takes them from scikit-image; `make setup` installs it")
    return found


def seeds(photograph: int) -> range:
    """A seed for each variant of the photograph with this number; no two variants share one."""
    return range(photograph * VARIANTS, (photograph + 1) * VARIANTS)


def enlarge(path: Path, megapixels: float) -> Pixels:
    """The photograph at `path` with so many pixels, shape (height, width, 3)."""
    image = Image.open(path).convert("RGB")
    factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    size = (round(image.width * factor), round(image.height * factor))
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC))


def blur(pixels: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(BLUR_RADIUS)))


def variant(pixels: Pixels, seed: int) -> Pixels:
    """A thumbnail of a randomly mirrored, turned, cropped, recoloured and noisy copy of the image."""
    rng = np.random.default_rng(seed)
    height, width, _ = pixels.shape
    top, left = rng.integers(0, height // 5), rng.integers(0, width // 5)
    crop = pixels[top : top + height * 4 // 5, left : left + width * 4 // 5]
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    colour = crop.astype(np.float32) * rng.uniform(0.7, 1.3, size=3).astype(np.float32)
    colour += rng.standard_normal(colour.shape, dtype=np.float32) * 8
    image = Image.fromarray(np.clip(colour, 0, 255).astype(np.uint8))
    return thumbnail(image.rotate(float(rng.uniform(-12, 12)), Image.Resampling.BILINEAR))


def thumbnail(image: Image.Image) -> Pixels:
    """The largest square in the middle of the image, small."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS), Image.Resampling.LANCZOS))


class Photos(Job[list[Pixels]]):
    name = "photos"

    def __init__(self) -> None:
        self.paths = photographs()
        self.steps = len(self.paths) * VARIANTS
        self.detail = f"{len(self.paths)} photographs of {MEGAPIXELS:g} megapixels, {VARIANTS} variants of each"

    def serial(self, advance: Advance) -> list[Pixels]:
        thumbnails = []
        for number, path in enumerate(self.paths):
            blurred = blur(enlarge(path, MEGAPIXELS))
            for seed in seeds(number):
                thumbnails.append(variant(blurred, seed))
                advance()
        return thumbnails

    def parallel(self, advance: Advance) -> list[Pixels]:
        enlarge_task, blur_task, variant_task = moray.remote(enlarge), moray.remote(blur), moray.remote(variant)
        refs = []
        for number, path in enumerate(self.paths):
            blurred = blur_task.remote(enlarge_task.remote(path, MEGAPIXELS))
            refs += [variant_task.remote(blurred, seed) for seed in seeds(number)]
        advance_as_ready(refs, advance)
        thumbnails: list[Pixels] = moray.get(refs)
        return thumbnails

    def equal(self, one: list[Pixels], other: list[Pixels]) -> bool:
        return len(one) == len(other) and all(map(np.array_equal, one, other))

    def summary(self, result: list[Pixels]) -> str:
        return f"{len(result)} thumbnails of {THUMBNAIL_PIXELS} x {THUMBNAIL_PIXELS} pixels"
