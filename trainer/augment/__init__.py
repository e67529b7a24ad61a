"""What happens to pixels: augmentation, corruption, mixing, views."""
