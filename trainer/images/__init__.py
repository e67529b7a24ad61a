"""From an image file to pixels: reading, decoding, the cache of decoded images, galleries of thumbnails."""
