"""From an image file to pixels: reading, decoding, the cache of decoded pages, galleries of thumbnails."""
