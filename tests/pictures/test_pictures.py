"""The README's pictures."""

from PIL import Image

from tests.pictures import BYTES_MAX, DIRECTORY, PICTURES


def test_the_pictures_are_there_and_small():
    """Those that ``make pictures`` makes and no others, each below 150 kB and of its width."""
    assert {path.name for path in DIRECTORY.iterdir()} == set(PICTURES)
    for name, width in PICTURES.items():
        path = DIRECTORY / name
        assert path.stat().st_size < BYTES_MAX
        with Image.open(path) as picture:
            assert (picture.format, picture.width) == ("WEBP", width)
