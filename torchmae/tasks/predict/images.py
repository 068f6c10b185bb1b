"""The images that are predicted."""

from torchmae.data.config import decode_as_run, listing_as_run
from torchmae.data.sources import Source, as_images, open_source
from torchmae.data.sources.files import is_image_file, open_images
from torchmae.data.sources.select import select_all
from torchmae.tasks.predict.config import Predict


def open_data(config: Predict) -> Source:
    """A source of images, or single image files."""
    first = config.data[0]
    decode = decode_as_run(config.run, config.decode)
    listing = listing_as_run(config.listing, first, config.run)
    if len(config.data) == 1 and not is_image_file(first):
        return open_source(first, decode, listing)
    decode.check()
    (source,) = select_all([open_images(config.data)], listing, first)
    return as_images(source, decode, listing)
