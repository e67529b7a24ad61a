"""From a file to pixels: reading, decoding, the cache of decoded pages."""
