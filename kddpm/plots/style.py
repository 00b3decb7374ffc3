"""Colours, axes and files of all figures."""

import gc
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from kddpm.base import extras
from kddpm.base.files import replacing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito's colours, which people with any kind of colour vision can distinguish.
BLUE, ORANGE, GREEN, RED, PURPLE, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"


INK, GREY, FAINT, BROWN = "#222222", "#888888", "#BBBBBB", "#8A5A2B"


DPI = 110


def subplots(width: float, height: float, columns: int = 1, rows: int = 1, dpi: int = DPI) -> tuple["Figure", Any]:
    """Return a figure of `width` x `height` inches, and its axes."""
    extras.need("plots", "A figure")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    gc.collect()  # frees earlier figures: each is a megabyte in reference cycles
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(width, height), dpi=dpi, layout=layout, facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns)
    for each in np.ravel(axes):
        each.spines[["top", "right"]].set_visible(rows > 1)
        each.title.set_color(INK)
    return figure, axes


def save(figure: "Figure", path: str | os.PathLike) -> None:
    """Write a figure as a PNG of 256 colours, which makes it a third as large; whole or not at all."""
    from PIL import Image

    picture = Image.fromarray(pixels(figure)).quantize(256, dither=Image.Dither.NONE)
    with replacing(path) as temporary:
        picture.save(temporary, format="PNG", optimize=True)


def pixels(figure: "Figure") -> np.ndarray:
    """Render a figure as uint8 (H, W, 3)."""
    canvas: Any = figure.canvas  # a FigureCanvasAgg, from `subplots`
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def few_colours(shots: list[np.ndarray], hues: Sequence[str]) -> list[np.ndarray]:
    """Return the frames in shades of grey and of these hues only, which makes a GIF a third as large."""
    from matplotlib.colors import to_rgb
    from PIL import Image

    shades = [share * np.array(to_rgb(hue)) + 1 - share for hue in hues for share in np.linspace(0.2, 1, 6)]
    greys = [np.full(3, grey) for grey in np.linspace(0, 1, 16)]
    colours = np.round(255 * np.array([*greys, *shades])).astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(colours.tobytes() + bytes(colours[-1]) * (256 - len(colours)))
    none = Image.Dither.NONE
    return [np.asarray(Image.fromarray(s).quantize(palette=palette, dither=none).convert("RGB")) for s in shots]
