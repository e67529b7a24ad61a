"""Models: how they are built, what they are trained for, and the file that keeps them."""
