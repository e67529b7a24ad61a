"""Change pixels: augmentation, corrupted validation copies, mixup and cutmix, views for test-time augmentation."""
