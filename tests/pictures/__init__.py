"""The README's pictures of the page, ``top`` and the report, made from a real demo run.

``make pictures`` writes them anew into ``deploy/pictures/``; ``test_pictures`` holds that they are
there, small, and those that this makes.
"""

from pathlib import Path

DIRECTORY = Path(__file__).parents[2] / "deploy" / "pictures"
BYTES_MAX = 150_000
#: Name and width in pixels.
PICTURES = {
    "page-light.webp": 1920,
    "page-dark.webp": 1920,
    "page-phone.webp": 720,
    "top.webp": 1600,
    "report.webp": 1650,
}
