"""From pixels to changed pixels: augmentation, corrupted validation copies, mixup and cutmix, views."""
