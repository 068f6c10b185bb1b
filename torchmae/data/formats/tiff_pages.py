"""Which pages of a TIFF are images of a stack, from its directories alone."""

import struct
from collections.abc import Iterator

REDUCED, MASK = 1, 4  # bits of NewSubfileType: thumbnails and pyramids; transparency masks
NEW_SUBFILE = 254
# What pages of one stack have in common: width, height, bits, samples of a pixel, their format.
SHAPE = (256, 257, 258, 277, 339)
FORMATS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # of integers, by the types of TIFF


def stack_pages(data: bytes) -> list[int]:
    """The numbers of the pages that have the shape and type of the first one, which is 0.

    Pages of other shapes are none: pyramids, thumbnails, labels of slides, masks. What is cut off
    is not counted.

    Args:
        data: a TIFF or BigTIFF.
    """
    first = None
    found = []
    for number, tags in enumerate(directories(data)):
        shape = [tags.get(tag, 1) for tag in SHAPE]
        if first is None:
            first = shape
        if number == 0 or (shape == first and not tags.get(NEW_SUBFILE, 0) & (REDUCED | MASK)):
            found.append(number)
    return found or [0]


def directories(data: bytes) -> Iterator[dict[int, int]]:
    """Of each page the first value of the tags that decide."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    offset, counter, length = ("Q", "Q", 20) if big else ("I", "H", 12)
    head, width = length - struct.calcsize(offset), struct.calcsize(counter)
    wanted = {NEW_SUBFILE, *SHAPE}
    seen = set()
    try:
        at = struct.unpack_from(order + offset, data, 8 if big else 4)[0]
        while at and at not in seen:  # a loop has no end
            seen.add(at)
            count = struct.unpack_from(order + counter, data, at)[0]
            end = at + width + count * length
            following = struct.unpack_from(order + offset, data, end)[0]
            tags = {}
            for entry in range(at + width, end, length):
                tag, kind = struct.unpack_from(f"{order}HH", data, entry)
                if tag in wanted and kind in FORMATS:
                    many = struct.unpack_from(order + offset, data, entry + 4)[0]
                    inside = many * struct.calcsize(FORMATS[kind]) <= length - head
                    place = entry + head
                    place = place if inside else struct.unpack_from(order + offset, data, place)[0]
                    tags[tag] = struct.unpack_from(order + FORMATS[kind], data, place)[0]
            yield tags
            at = following
    except struct.error:
        return
