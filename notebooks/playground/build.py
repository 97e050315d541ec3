"""Make notebooks/playground.html: one file with everything in it, which requests nothing."""

import base64
import json
from pathlib import Path

import numpy as np
from PIL import Image

SOURCES = Path(__file__).parent
PAGE = SOURCES.parent / "playground.html"
PHOTOGRAPH = SOURCES.parent / "data" / "nuclei.png"


def features():
    """Return the feature map of the page [16, 16]: brightness averaged over 8 x 8 pixels."""
    brightness = np.asarray(Image.open(PHOTOGRAPH)).mean(axis=2)
    return brightness.reshape(16, 8, 16, 8).mean(axis=(1, 3))


def page():
    """Return the text of playground.html."""
    parts = {
        "features": json.dumps(features().tolist()),
        "photograph": base64.b64encode(PHOTOGRAPH.read_bytes()).decode(),
    }
    for name in ("playground.css", "operators.js", "playground.js"):
        parts[name] = (SOURCES / name).read_text().strip()
    text = (SOURCES / "template.html").read_text()
    for name, part in parts.items():
        text = text.replace(f"@{name}@", part)
    return text


if __name__ == "__main__":
    PAGE.write_text(page())
